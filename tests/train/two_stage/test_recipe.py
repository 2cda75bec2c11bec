from dataclasses import replace

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import ValidationError

from engine.backends.opening import open_inspector
from engine.bundle import open_bundle
from engine.errors import ConfigurationError, TrainingError
from engine.frame import Box
from engine.methods.two_stage import TwoStageMethod
from engine.view import view
from tests.training_parts import trained
from train.backbones.resnet import ResNet
from train.checkpoint import CHECKPOINT
from train.datasets import LEAST_GOOD, find_source
from train.export.gate import add_precision, load_network
from train.network import TorchBackend
from train.recipes import RECIPE_JSON
from train.recipes.two_stage import TwoStage, Watch, network
from train.report import REPORT, examine, write_report
from train.run import train_bundle
from train.two_stage.network import around


@pytest.fixture(scope="session")
def two_stage():
    settings = TwoStage()
    return replace(
        settings,
        view=replace(settings.view, side=64),
        freeze=True,  # of random weights, as most tests give none: quicker
        latent=8,
        widths=(16, 16, 8, 8),
        detail=8,
        path=4,
        discriminator=4,
        features=8,
        adgan_discriminator=8,
        adgan_latent=8,
        adgan_widths=(8, 8, 8, 8),
        batch=4,
        least_steps=2,
        epochs=2,
        adgan_from=1,
    )


@pytest.fixture(scope="session")
def finished(source, two_stage, tmp_path_factory):
    heard = []
    folder = tmp_path_factory.mktemp("two_stage") / "bundle"
    done = train_bundle(source, folder, two_stage, weights=None, on_warning=heard.append)
    return done, heard


def test_its_settings_survive_their_file(two_stage):
    assert RECIPE_JSON.validate_json(RECIPE_JSON.dump_json(two_stage)) == two_stage


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"adgan_from": 40}, "ADGAN needs an epoch"), ({"view": {"side": 224}}, "side of 64, 128")],
)
def test_settings_that_fit_no_network_are_refused(changes, said):
    if "view" in changes:
        changes = {"view": replace(TwoStage().view, **changes["view"])}
    with pytest.raises(ValidationError, match=said):
        replace(TwoStage(), **changes)


def test_both_stages_last_as_long_as_was_asked():
    assert (TwoStage().lasting(20).epochs, TwoStage().lasting(20).adgan_from) == (20, 10)
    assert TwoStage().lasting(2).adgan_from == 1
    with pytest.raises(ConfigurationError, match="--epochs: '1': two stages need two epochs"):
        TwoStage().lasting(1)


def test_a_backbone_of_another_stride_is_refused():
    deeper = replace(TwoStage(), backbone=ResNet(architecture="resnet18", stages=("layer4",)))
    with pytest.raises(ConfigurationError, match="--stage: 'resnet18 layer4': does not fit"):
        deeper.settled(None)


def test_the_network_gives_score_and_attention_of_the_view(two_stage):
    net = network(two_stage).eval()
    with torch.inference_mode():
        found = net(torch.zeros(3, 64, 64, 3, dtype=torch.uint8))
    assert (found.score.shape, found.attention.shape) == ((3, 1), (3, 64, 64))
    assert found.score.min() >= 0
    assert 0 <= found.attention.min() <= found.attention.max() <= 1


def test_its_page_speaks_of_one_pass(finished, tmp_path):
    done, _ = finished
    write_report(tmp_path / REPORT, examine(done), done.images)
    page = (tmp_path / REPORT).read_text(encoding="utf-8")
    assert "shown three times" in page
    assert "what pass 2 inspects" not in page


def test_good_parts_alone_train_a_bundle(finished, source):
    done, heard = finished
    manifest = done.written.bundle.manifest
    assert (manifest.training.recipe, manifest.training.defective) == ("two_stage", 0)
    assert [epoch.number for epoch in done.epochs] == [1, 2]
    assert sum(item.defective for item in done.split.test) == 10
    assert heard[:2] == [
        "only 20 good images train; 50 or more are advisable, of several days and batches",
        (
            "the recipe two_stage learns from good parts alone: all 10 defective images are kept "
            "for agent evaluate"
        ),
    ]
    bundle = open_bundle(done.written.bundle.path)
    method = bundle.manifest.method
    assert isinstance(method, TwoStageMethod)
    with open_inspector(bundle) as inspector, TorchBackend(load_network(bundle)) as torch_backend:
        item = done.split.test[0]
        pixels = done.images.pixels(item)
        found = inspector.inspect(pixels)
        seen = view(pixels, Box.around(pixels), method.view)
        same = torch_backend.run(seen[None])
    assert found.score == pytest.approx(float(same["score"][0, 0]), rel=1e-3)
    assert np.allclose(found.attention, same["attention"][0], atol=1e-4)
    assert np.allclose(found.score_map, 1 - found.attention)
    assert found.deviation == (found.score - method.good_mean) / method.good_std
    assert (found.box, found.zoomed, found.map_threshold) == (Box.around(pixels), False, 0.5)


def test_it_is_exported_in_every_precision(finished, source):
    done, _ = finished
    bundle = done.written.bundle
    pixels = done.images.pixels(done.split.test[0])
    for precision in ("fp16", "int8", "int8_symmetric"):
        bundle, judged = add_precision(bundle, precision, source, accept_flips=True)
        assert all(parity.median_box_iou == 1 for parity in judged.values())
        with open_inspector(bundle, precision=precision) as inspector:
            assert np.isfinite(inspector.inspect(pixels).score)


def test_the_mean_around_a_place_counts_zeros_beyond_the_border_but_no_pool_does(finished):
    encoded = torch.randn(2, 3, 5, 4)
    assert torch.allclose(around(encoded), F.avg_pool2d(encoded, 3, 1, 1), atol=1e-6)
    done, _ = finished
    graph = onnx.load_from_string(done.written.bundle.network("fp32")).graph
    pools = [node for node in graph.node if node.op_type == "AveragePool"]
    assert pools
    for pool in pools:  # OpenVINO computes such a pool of quantised values wrongly at the border
        of = {each.name: onnx.helper.get_attribute_value(each) for each in pool.attribute}
        assert not (of.get("count_include_pad") and any(of.get("pads", ())))


def test_the_same_seed_gives_the_same_weights_also_after_an_interruption(
    images, two_stage, tmp_path
):
    settings = replace(two_stage, epochs=4, adgan_from=2)

    def weights(folder, **options):
        return trained(settings, images, tmp_path / folder, **options).network.state_dict()

    class InterruptionError(Exception): ...

    def interrupt(epoch):
        if epoch.number == 3:
            raise InterruptionError

    one = weights("one")
    with pytest.raises(InterruptionError):
        weights("other", on_epoch=interrupt)
    torch.manual_seed(99)  # whatever happened before must not matter
    other, third = weights("other", resume=True), weights("third", seed=1)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, third[name]) for name, tensor in one.items())


def test_stage_two_leaves_the_attention_network_as_it_is(images, two_stage, tmp_path):
    seen = {}

    def keep(epoch):
        state = safetensors.torch.load_file(tmp_path / CHECKPOINT)
        seen[epoch.number] = {
            name: tensor for name, tensor in state.items() if "attention_network" in name
        }

    trained(two_stage, images, tmp_path, on_epoch=keep)
    assert seen[1].keys() == seen[2].keys()
    assert all(torch.equal(tensor, seen[2][name]) for name, tensor in seen[1].items())


@pytest.mark.parametrize("term", ["adversarial", "anomaly_adversarial", "attention"])
def test_each_loss_can_be_left_out(images, two_stage, tmp_path, term):
    settings = replace(two_stage, **{term: 0.0}, least_steps=1)
    assert trained(settings, images, tmp_path).history[-1].number == 2


def test_the_attention_map_can_be_made_of_the_decoders_alone_as_in_the_paper(
    images, two_stage, tmp_path
):
    settings = replace(two_stage, detail=0, least_steps=1)
    net = trained(settings, images, tmp_path).network.eval()
    assert not [name for name in net.state_dict() if "detail" in name]
    encoded = torch.zeros(1, sum(net.attention_network.backbone.channels), 8, 8)
    net.attention_network.latent_mean.requires_grad_(requires_grad=False).weight.zero_()
    assert torch.equal(*map(net.attention_network.attention, (encoded, encoded + 1)))


def test_a_constant_attention_map_ends_the_training(images, two_stage, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "saw", lambda self, _: self._spreads.append(torch.tensor(1e-4)))
        with pytest.raises(TrainingError, match="the attention map is the same everywhere"):
            trained(two_stage, images, tmp_path)


def test_a_discriminator_at_its_limit_is_warned_of(images, two_stage, tmp_path):
    heard = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "heard", lambda self, *_: self._gaps.append(torch.tensor(0.9999)))
        trained(two_stage, images, tmp_path, on_warning=heard.append)
    assert len(heard) == 2
    assert heard[0].startswith("mode collapse: the attention network's discriminator")
    assert heard[1].startswith("mode collapse: ADGAN's discriminator")


def test_a_watch_tells_limit_and_constancy():
    watch = Watch()
    assert not watch.is_at_limit
    assert not watch.is_constant
    watch.heard(torch.full((4, 1), 20.0), torch.full((4, 1), -20.0))
    watch.saw(torch.full((2, 1, 8, 8), 0.5))
    assert watch.is_at_limit
    assert watch.is_constant
    watch.heard(torch.zeros(4, 1), torch.full((4, 1), -20.0))
    watch.saw(torch.rand(2, 1, 8, 8))
    assert not watch.is_at_limit
    assert not watch.is_constant


def test_a_loss_that_is_not_a_number_ends_the_training(images, two_stage, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss became .* in epoch 1.*--seed"):
        trained(replace(two_stage, first_rate=1e30, least_steps=8), images, tmp_path)


def test_too_few_good_images_are_refused(parts, two_stage, tmp_path):
    few = tmp_path / "good"
    few.mkdir()
    for path in sorted((parts / "train" / "good").iterdir())[: LEAST_GOOD + 1]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(TrainingError, match=r"has only 9 different good images.*at least 8"):
        train_bundle(find_source(None, few, None), tmp_path / "out", two_stage, weights=None)
