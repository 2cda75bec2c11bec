"""DenseNet: weights by torchvision's names, what an export computes, and who is recognised."""

import re

import pytest
import torch

from engine.errors import ConfigurationError
from train.backbones import densenet, named_backbone, recognised_backbone
from train.backbones.densenet import DenseNet
from train.backbones.resnet import ResNet
from train.weights import Weights

SMALL = DenseNet(architecture="densenet121", stages=("denseblock2",))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    found = densenet.open(SMALL, side=32).eval()
    found.initialise()
    for part in found.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 2)
    return found


def older(name):
    """A name as torchvision's first files have it."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)


def test_weights_of_either_form_fit_and_others_are_named(backbone):
    given = {older(name): tensor for name, tensor in backbone.state_dict().items()}
    given["classifier.bias"] = given["features.norm5.weight"] = torch.zeros(4)
    again = densenet.open(SMALL, side=32).eval()
    again.load(Weights(source="d121", tensors=given))
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        found, expected = again(x), backbone(x)
    assert [tuple(each.shape[1:]) for each in found] == [(512, 4, 4)]
    torch.testing.assert_close(found, expected)
    del given["features.conv0.weight"]
    with pytest.raises(ConfigurationError, match=r"missing: features\.conv0\.weight"):
        again.load(Weights(source="d121", tensors=given))


@pytest.mark.parametrize("half", [False, True])
def test_an_export_computes_the_same(backbone, half):
    copy = densenet.open(SMALL, side=32).eval()
    copy.load_state_dict(backbone.state_dict())
    copy.prepare_export(half=half)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in copy.modules())
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        found, expected = copy(x)[0], backbone(x)[0]
    assert (found - expected).norm() < (0.01 if half else 1e-5) * expected.norm()


def test_it_is_recognised_by_how_deep_its_weights_are():
    layer = "features.denseblock3.denselayer{}.conv1.weight"
    tensors = {layer.format(number): torch.zeros(1) for number in range(1, 49)}
    found = recognised_backbone(
        Weights(source="d201", tensors=tensors), ResNet(stages=("layer2", "layer3"))
    )
    assert found == DenseNet() == named_backbone("densenet201", (8, 16))
    resnet = ResNet(stages=("layer2", "layer3"))
    assert recognised_backbone(Weights(source="r50", tensors={}), resnet) == resnet
    with pytest.raises(ConfigurationError, match="--stage"):
        DenseNet().up_to("layer3")
