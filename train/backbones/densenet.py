"""DenseNet (Huang et al. 2017) with torchvision's parameter names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import ClassVar, Final, Literal, Self

import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.spec import spec
from train.backbones import Backbone, BackboneSettings, initialise, take
from train.weights import Weights

Architecture = Literal["densenet121", "densenet201"]
Stage = Literal["denseblock2", "denseblock3"]

_LAYERS: Final[dict[Architecture, tuple[int, int, int]]] = {
    "densenet121": (6, 12, 24),
    "densenet201": (6, 12, 48),
}
_STRIDES: Final[dict[Stage, int]] = {"denseblock2": 8, "denseblock3": 16}
_FIRST: Final = 64  # channels of the stem
_GROWTH: Final = 32
_WITHIN: Final = 128  # channels between the two convolutions of a layer
_FILES: Final[dict[Architecture, str]] = {
    "densenet121": "https://download.pytorch.org/models/densenet121-a639ec97.pth",
    "densenet201": "https://download.pytorch.org/models/densenet201-c1103571.pth",
}
"""ImageNet weights as torchvision publishes them; any checkpoint of that form will do."""


@spec
class DenseNet(BackboneSettings):
    """A DenseNet cut after the deepest of `stages`, whose feature maps are given."""

    names: ClassVar = "densenet121 or densenet201"
    type: Literal["densenet"] = "densenet"
    architecture: Architecture = "densenet201"
    stages: tuple[Stage, ...] = ("denseblock2", "denseblock3")

    @property
    def label(self) -> str:
        return f"{self.architecture} {'+'.join(self.stages)}"

    @property
    def where_from(self) -> str:
        return f"download {_FILES[self.architecture]} and give its path"

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(_STRIDES[stage] for stage in self.stages)

    @classmethod
    def named(cls, name: str, strides: tuple[int, ...]) -> Self | None:
        if name not in _LAYERS:
            return None
        stages = tuple(stage for stage, stride in _STRIDES.items() if stride in strides)
        if not stages:
            raise ConfigurationError("--backbone", name, "has no feature maps that the recipe asks")
        return cls(architecture=name, stages=stages)

    @classmethod
    def recognised(cls, weights: Weights, strides: tuple[int, ...]) -> Self | None:
        names = _renamed(weights.tensors)
        layer = "features.denseblock3.denselayer{}.conv1.weight"
        deep = next(n for n in count(1) if layer.format(n) not in names) - 1
        for name, layers in _LAYERS.items():
            if deep == layers[2]:
                return cls.named(name, strides)
        return None

    def up_to(self, stage: str) -> Self:
        if stage not in _STRIDES:
            raise ConfigurationError("--stage", stage, f"a DenseNet has {', '.join(_STRIDES)}")
        return replace(self, stages=(*(each for each in self.stages if each < stage), stage))


def open(settings: DenseNet, *, side: int) -> "DenseNetBackbone":  # noqa: ARG001 - any side will do
    """Build the DenseNet that `settings` describe."""
    return DenseNetBackbone(settings)


class DenseNetBackbone(Backbone):
    """The blocks of a DenseNet, from the stem to the deepest one that is asked for."""

    def __init__(self, settings: DenseNet) -> None:
        super().__init__()
        self._stages = settings.stages
        channels = _FIRST
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, channels, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(channels))
        self.features.add_module("relu0", nn.ReLU())
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        built: dict[str, int] = {}
        for number, layers in enumerate(_LAYERS[settings.architecture], 1):
            block = nn.Sequential()
            for layer in range(1, layers + 1):
                block.add_module(f"denselayer{layer}", _DenseLayer(channels))
                channels += _GROWTH
            name = f"denseblock{number}"
            self.features.add_module(name, block)
            built[name] = channels
            if name == settings.stages[-1]:
                break
            self.features.add_module(f"transition{number}", _Transition(channels))
            channels //= 2
        self.channels = tuple(built[stage] for stage in settings.stages)
        self.strides = settings.strides

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for name, part in self.features.named_children():
            x = part(x)
            if name in self._stages:
                found.append(x)
        return found

    def initialise(self) -> None:
        initialise(self)

    def load(self, weights: Weights) -> None:
        """As `Backbone.load`; what is deeper than the last block is left out."""
        take(self, weights, _renamed(weights.tensors), left_out=self._is_deeper)

    def prepare_export(self, *, half: bool) -> None:
        # Most of these BatchNorms come before their convolution, where nothing can be folded.
        super().prepare_export(half=False)
        for parent in list(self.modules()):
            for name, norm in list(parent.named_children()):
                if isinstance(norm, nn.BatchNorm2d):
                    parent.add_module(name, _Scaled(norm))
        super().prepare_export(half=half)

    def _is_deeper(self, name: str) -> bool:
        part = name.removeprefix("features.").split(".")[0]
        return part not in dict(self.features.named_children())


class _DenseLayer(nn.Module):
    """1×1 and 3×3, each behind BatchNorm and ReLU; its channels join those that it saw."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, _WITHIN, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(_WITHIN)
        self.conv2 = nn.Conv2d(_WITHIN, _GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(new)))], dim=1)


class _Transition(nn.Module):
    """Half of the channels, on half of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(torch.relu(self.norm(x))), 2)


class _Scaled(nn.Module):
    """A BatchNorm in evaluation as one product and one sum, made in fp32."""

    gain: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.register_buffer("gain", gain.detach()[:, None, None])
        shift = norm.bias - norm.running_mean * gain
        self.register_buffer("shift", shift.detach()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.shift


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Older files have `norm.1` where newer ones have `norm1`."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name): tensor
        for name, tensor in tensors.items()
    }
