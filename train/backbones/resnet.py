"""ResNet (He et al. 2016) with torchvision's parameter names."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Final, Literal, Self

import torch
from torch import Tensor, nn

from engine.errors import ConfigurationError
from engine.spec import spec
from train.backbones import Backbone, BackboneSettings, initialise, take
from train.weights import Weights

Architecture = Literal["resnet18", "resnet18_half", "resnet50"]
Stage = Literal["layer2", "layer3", "layer4"]
Form = Literal["v1", "v1.5"]

_BLOCKS: Final[dict[Architecture, tuple[int, int, int, int]]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet18_half": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
}
_STAGES: Final = ("layer1", "layer2", "layer3", "layer4")
_WIDTHS: Final = (64, 128, 256, 512)
_FORMS: Final[dict[str, Form | None]] = {"": None, "v1": "v1", "v1.5": "v1.5"}
_STRIDES: Final[dict[Stage, int]] = {"layer2": 8, "layer3": 16, "layer4": 32}

_FILES: Final[dict[Architecture, str]] = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
}
"""ImageNet weights as torchvision publishes them; any checkpoint of that form will do."""


@spec
class ResNet(BackboneSettings):
    """A ResNet cut after the deepest of `stages`, whose feature maps are given.

    `resnet18_half` has half the channels of ResNet-18; it is trained from nothing, since nobody
    publishes its weights. `form` says where ResNet-50 halves the resolution: in the first 1×1
    convolution of a stage (v1) or in its 3×3 (v1.5, torchvision). Shapes are the same in both, so
    weights cannot tell by themselves; None: as their file says, else v1.5.
    """

    names: ClassVar = "resnet18 or resnet50"
    type: Literal["resnet"] = "resnet"
    architecture: Architecture = "resnet50"
    stages: tuple[Stage, ...] = ("layer4",)
    form: Form | None = None

    @property
    def label(self) -> str:
        form = ":v1" if self.form == "v1" else ""
        return f"{self.architecture}{form} {'+'.join(self.stages)}"

    @property
    def where_from(self) -> str:
        return f"download {_FILES[self.architecture]} and give its path"

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(_STRIDES[stage] for stage in self.stages)

    @classmethod
    def named(cls, name: str, strides: tuple[int, ...]) -> Self | None:
        architecture, _, given = name.partition(":")
        if architecture not in _FILES:
            return None
        if given not in _FORMS:
            raise ConfigurationError(
                "--backbone", name, f"give {architecture}:v1 or {architecture}"
            )
        stages = tuple(stage for stage, stride in _STRIDES.items() if stride in strides)
        return cls(architecture=architecture, stages=stages, form=_FORMS[given])

    def up_to(self, stage: str) -> Self:
        if stage not in _STRIDES:
            raise ConfigurationError("--stage", stage, f"a ResNet has {', '.join(_STRIDES)}")
        return replace(self, stages=(*(each for each in self.stages if each < stage), stage))

    def fitted(self, weights: Weights) -> Self:
        stated: Form = "v1" if weights.metadata.get("stride_in", "").startswith("conv1") else "v1.5"
        return replace(self, form=self.form or stated)


def open(settings: ResNet, *, side: int) -> "ResNetBackbone":  # noqa: ARG001 - any side will do
    """Build the ResNet that `settings` describe."""
    return ResNetBackbone(settings)


class ResNetBackbone(Backbone):
    """The stages of a ResNet, from the stem to the deepest one that is asked for."""

    def __init__(self, settings: ResNet) -> None:
        super().__init__()
        form = settings.form or "v1.5"
        # Weights of the v1 form come from Keras, whose BatchNorm has this ε.
        eps = 1.001e-5 if form == "v1" else 1e-5
        self._stages = settings.stages
        self._is_fused = False
        halved = 2 if settings.architecture == "resnet18_half" else 1
        channels = _WIDTHS[0] // halved
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        built: dict[str, int] = {}
        blocks_of = _BLOCKS[settings.architecture]
        for name, full, blocks in zip(_STAGES, _WIDTHS, blocks_of, strict=True):
            width, layers = full // halved, list[nn.Module]()
            for block in range(blocks):
                stride = 2 if block == 0 and name != "layer1" else 1
                if settings.architecture != "resnet50":
                    layers.append(_BasicBlock(channels, width, stride, eps=eps))
                    channels = width
                else:
                    layers.append(_Bottleneck(channels, width, stride, eps=eps, form=form))
                    channels = width * 4
            self.add_module(name, nn.Sequential(*layers))
            built[name] = channels
            if name == settings.stages[-1]:
                break
        self._layers = tuple(built)
        self.channels = tuple(built[stage] for stage in settings.stages)
        self.strides = settings.strides

    def maps(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        features = []
        for name in self._layers:
            x = self.get_submodule(name)(x)
            if name in self._stages:
                features.append(x)
        return features

    def initialise(self) -> None:
        initialise(self)

    def load(self, weights: Weights) -> None:
        """As `Backbone.load`; stages deeper than these and the classifier `fc` are left out."""
        missing = [
            stage for stage in self._layers if not any(n.startswith(stage) for n in weights.tensors)
        ]
        if missing:
            have = [s for s in _STAGES if any(n.startswith(f"{s}.") for n in weights.tensors)]
            raise ConfigurationError(
                "--backbone-weights",
                weights.source,
                f"has no {', '.join(missing)}; "
                + (
                    f"choose --stage {have[-1]} or give a complete checkpoint"
                    if have
                    else "it is not a ResNet checkpoint with torchvision's names"
                ),
            )
        deeper = tuple(f"{stage}." for stage in _STAGES if stage not in self._layers)
        offered = take(
            self,
            weights,
            weights.tensors,
            left_out=lambda name: name.startswith((*deeper, "fc.")),
        )
        means = [tensor for name, tensor in offered.items() if name.endswith("running_mean")]
        self._is_fused = bool(means) and all(not mean.any() for mean in means)

    def adapt(self, show: Callable[[], object]) -> None:
        """Where BatchNorm was folded into the convolutions, give it statistics again.

        Such a BatchNorm has mean 0 and variance 1 whatever comes. The first batch that trains would
        put its own statistics in their place, which is another network.
        """
        if self._is_fused:
            unfold(self, show)


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, *, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, width, stride, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut: Tensor = self.downsample(x)
        return torch.relu(out + shortcut)


class _Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 and a shortcut (ResNet-50); `form` says which one has the stride."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, *, eps: float, form: Form) -> None:
        super().__init__()
        first, second = (stride, 1) if form == "v1" else (1, stride)
        self.conv1 = nn.Conv2d(channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4, eps)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, width * 4, stride, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut: Tensor = self.downsample(x)
        return torch.relu(out + shortcut)


def _shortcut(channels: int, out: int, stride: int, *, eps: float) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out, eps))


def unfold(backbone: nn.Module, show: Callable[[], object]) -> None:
    """Give every BatchNorm of `backbone` the statistics of what it sees in `show`.

    `show` runs the backbone. γ and β change as well, so that the backbone computes what it did, up
    to rounding.
    """
    norms = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    seen: dict[nn.Module, Tensor] = {}

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[norm] = torch.stack([f(inputs[0], dim=(0, 2, 3)) for f in (torch.mean, torch.var)])

    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        show()
        for norm in norms:
            mean, variance = seen[norm]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            norm.bias.add_(gain * (mean - norm.running_mean))
            norm.weight.copy_(gain * torch.sqrt(variance + norm.eps))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    backbone.train(training)
    for hook in hooks:
        hook.remove()
