import pickle

import pytest
import safetensors.torch
import torch

from engine.errors import ConfigurationError
from train.backbones import initialise, named_backbone
from train.backbones.resnet import ResNet, ResNetBackbone, unfold
from train.weights import Weights, read_weights


def resnet(architecture="resnet18", *stages, form=None):
    return ResNetBackbone(ResNet(architecture=architecture, stages=stages, form=form))


class Intruder:
    def __reduce__(self):
        return (print, ("code in a checkpoint ran",))


@pytest.mark.parametrize(
    ("architecture", "channels", "parameters"),
    # The counts are torchvision's resnet18 and resnet50 without `fc`.
    [("resnet18", (128, 256, 512), 11_176_512), ("resnet50", (512, 1024, 2048), 23_508_032)],
)
def test_stages_have_strides_8_16_32(architecture, channels, parameters):
    backbone = resnet(architecture, "layer2", "layer3", "layer4").eval()
    assert (backbone.channels, backbone.strides) == (channels, (8, 16, 32))
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels[0], 8, 8),
        (1, channels[1], 4, 4),
        (1, channels[2], 2, 2),
    ]


def test_the_form_says_which_convolution_halves():
    strides = {
        form: (block.conv1.stride, block.conv2.stride)
        for form in ("v1", "v1.5", None)
        for block in [resnet("resnet50", "layer2", form=form).layer2[0]]
    }
    later = ((1, 1), (2, 2))
    assert strides == {"v1": ((2, 2), (1, 1)), "v1.5": later, None: later}


def test_he_initialisation_fans_out():
    backbone = resnet("resnet18", "layer4")
    backbone.initialise()
    weight = backbone.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_comes_back_whole(tmp_path, suffix):
    torch.manual_seed(1)
    saved = resnet("resnet18", "layer4").state_dict()
    saved |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    path = tmp_path / f"resnet18{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(saved, path)

    backbone = resnet("resnet18", "layer2", "layer3")
    backbone.load(read_weights(path))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in backbone.state_dict().items())


def test_half_precision_weights_are_widened(tmp_path):
    saved = {n: tensor.half() for n, tensor in resnet("resnet18", "layer2").state_dict().items()}
    safetensors.torch.save_file(saved, tmp_path / "half.safetensors")
    weights = read_weights(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float32}


def fault(tmp_path, tensors, architecture="resnet18", stage="layer3"):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ConfigurationError) as error:
        resnet(architecture, stage).load(read_weights(path))
    return str(error.value)


def test_misfits_are_named(tmp_path):
    good = dict(resnet("resnet18", "layer3").state_dict())
    lacking = {k: v for k, v in good.items() if k != "layer2.0.conv1.weight"}
    assert "missing: layer2.0.conv1.weight" in fault(tmp_path, lacking)
    extra = good | {"layer2.0.se.weight": torch.zeros(1)}
    assert "unexpected: layer2.0.se.weight" in fault(tmp_path, extra)
    other = good | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    assert "of another shape: conv1.weight" in fault(tmp_path, other)
    assert "is --backbone right?" in fault(tmp_path, good, "resnet50")


def test_a_shallow_checkpoint_names_the_stage_that_would_do(tmp_path):
    shallow = dict(resnet("resnet18", "layer3").state_dict())
    assert "has no layer4; choose --stage layer3" in fault(tmp_path, shallow, stage="layer4")
    assert "not a ResNet checkpoint" in fault(tmp_path, {"net.weight": torch.zeros(1)})


def test_files_that_are_no_checkpoints_are_refused(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"conv1.weight": Intruder()}))
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "nested.pth")
    for name in ("text.pth", "code.pth", "nested.pth", "absent.safetensors"):
        with pytest.raises(ConfigurationError, match="--backbone-weights") as caught:
            read_weights(tmp_path / name)
        assert "weights_only" not in str(caught.value)  # torch's own advice is to execute it
    assert "ran" not in capsys.readouterr().out


def test_the_user_then_the_file_then_torchvision_decide_the_form(tmp_path):
    tensors = dict(resnet("resnet18", "layer2").state_dict())
    plain, stated = tmp_path / "plain.safetensors", tmp_path / "stated.safetensors"
    safetensors.torch.save_file(tensors, plain)
    safetensors.torch.save_file(tensors, stated, {"stride_in": "conv1 (the first 1x1)"})
    settings = ResNet()
    assert settings.fitted(read_weights(plain)).form == "v1.5"
    assert settings.fitted(read_weights(stated)).form == "v1"
    assert settings.fitted(read_weights(stated)).label == "resnet50:v1 layer4"
    chosen = named_backbone("resnet50:v1.5", (32,))
    assert chosen.fitted(read_weights(stated)).form == "v1.5"


def test_a_name_and_a_stage_choose_the_maps():
    both = named_backbone("resnet18", (8, 16))
    assert both == ResNet(architecture="resnet18", stages=("layer2", "layer3"))
    assert both.up_to("layer2").stages == ("layer2",)
    assert both.up_to("layer4").stages == ("layer2", "layer3", "layer4")
    assert ResNet(stages=("layer4",)).up_to("layer3").stages == ("layer3",)
    with pytest.raises(ConfigurationError, match="a ResNet has layer2, layer3, layer4"):
        both.up_to("layer9")
    with pytest.raises(ConfigurationError, match="give resnet50:v1 or resnet50"):
        named_backbone("resnet50:v2", (8,))
    with pytest.raises(ConfigurationError, match="resnet18 or resnet50 or timm:NAME"):
        named_backbone("vgg", (8,))
    with pytest.raises(ConfigurationError, match=r"is not for resnet18 .*resnet18-f37072fd\.pth"):
        both.download()


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_an_unfolded_backbone_computes_what_it_did_and_normalises_by_what_it_saw(architecture):
    torch.manual_seed(2)
    backbone = resnet(architecture, "layer3").eval()
    initialise(backbone)
    for name, tensor in backbone.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.2)
    views = 3 * torch.randn(4, 3, 64, 64) + 1
    other = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = backbone(views)[0], backbone(other)[0]
        unfold(backbone, lambda: backbone(views))
        assert not backbone.training
        for was, now in zip(before, (backbone(views)[0], backbone(other)[0]), strict=True):
            torch.testing.assert_close(now, was, rtol=1e-3, atol=1e-3 * was.std().item())
        in_training = backbone.train()(views)[0]
    # By the variance of n values where `views` gave that of a sample, n - 1.
    assert (in_training - before[0]).norm() < 0.02 * before[0].norm()


@pytest.mark.parametrize("fused", [True, False])
def test_only_folded_weights_are_adapted(fused):
    saved = resnet("resnet18", "layer2").state_dict()
    if not fused:
        saved["bn1.running_mean"] += 1
    backbone, shown = resnet("resnet18", "layer2"), []
    backbone.load(Weights(source="weights.pth", tensors=saved))
    backbone.adapt(lambda: shown.append(backbone(torch.randn(2, 3, 64, 64))))
    assert len(shown) == fused


def test_an_export_in_half_precision_gives_float32_maps():
    backbone = resnet("resnet18", "layer2").eval()
    views = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = backbone(views)[0]
        backbone.prepare_export(half=True)
        after = backbone(views)[0]
    assert backbone.conv1.weight.dtype == torch.float16
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)


@pytest.mark.data
@pytest.mark.parametrize(("name", "form"), [("resnet50", "v1"), ("resnet18", "v1.5")])
def test_real_weights_load(data, name, form):
    weights = read_weights(data / "weights" / f"{name}_layer3.safetensors")
    settings = ResNet(architecture=name, stages=("layer3",)).fitted(weights)
    assert settings.form == form
    backbone = ResNetBackbone(settings)
    backbone.load(weights)
    assert torch.equal(backbone.conv1.weight, weights.tensors["conv1.weight"])
