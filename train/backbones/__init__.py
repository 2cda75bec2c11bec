"""Backbones: what turns views into feature maps. Each kind is one module of this package.

It exports its settings class, which derives from `BackboneSettings`, and `open(settings, *, side)`,
which builds a `Backbone` for views of that side. Nothing outside that module asks which it is.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Final, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.errors import ConfigurationError
from engine.registry import Kinds
from train.weights import Weights


class BackboneSettings:
    """Which backbone, and which of its feature maps; goes into a bundle as part of its recipe.

    `names` says what `--backbone` may be to mean one of these.
    """

    type: str
    names: ClassVar[str]

    @property
    def label(self) -> str:
        """Names backbone and feature maps in records: `resnet50 layer2+layer3`."""
        raise NotImplementedError

    @property
    def where_from(self) -> str:
        """How to get pretrained weights, as part of an error message."""
        raise NotImplementedError

    @classmethod
    def named(cls, name: str, strides: tuple[int, ...]) -> Self | None:
        """The settings that `--backbone NAME` means, or None where the name is another kind's.

        Args:
            name: What the user typed.
            strides: Those of the feature maps that the recipe wants.

        Raises:
            ConfigurationError: The name is of this kind, but there is no such backbone.
        """
        raise NotImplementedError

    @classmethod
    def recognised(cls, weights: Weights, strides: tuple[int, ...]) -> Self | None:
        """The settings that `weights` are of, as `named` gives them; None where they do not tell.

        Args:
            weights: Of any backbone.
            strides: Those of the feature maps that the recipe wants.
        """
        del weights, strides
        return None

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of a view for each patch, map by map."""
        raise NotImplementedError

    def up_to(self, stage: str) -> Self:
        """The same with `stage` as its deepest; raises `ConfigurationError` if it has no such."""
        raise NotImplementedError

    def fitted(self, weights: Weights) -> Self:  # noqa: ARG002 - for those that need it
        """The same with what `weights` decide, such as where strides are."""
        return self

    def download(self) -> Weights:
        """Pretrained weights from the network; raises `ConfigurationError` where there are none."""
        raise ConfigurationError(
            "--backbone-weights", "download", f"is not for {self.label}; {self.where_from}"
        )


BACKBONES: Final = Kinds("train.backbones", BackboneSettings, noun="backbone")
AnyBackbone = Annotated[BackboneSettings, BACKBONES]


class Backbone(nn.Module):
    """φ: standardised RGB float32 `(N, 3, H, W)` → float32 maps `(N, C, h, w)`, the finest first.

    `channels` and `strides` are those of the maps, in their order. `standardisation` is the mean
    and standard deviation that its weights were trained with; None: the recipe's. In int8 exports
    the operators `int8_operators` are quantised.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    standardisation: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    int8_operators: tuple[str, ...] = ("Conv", "Relu", "Add", "MaxPool")
    _computes_in = torch.float32

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps, in the precision that the parameters have."""
        raise NotImplementedError

    def computed(self, x: Tensor) -> list[Tensor]:
        """As `forward`, in the precision that it computes in."""
        return self.maps(x.to(self._computes_in))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [feature.to(torch.float32) for feature in self.computed(x)]

    def initialise(self) -> None:
        """Random parameters; kinds whose constructor does it leave this as it is."""

    def load(self, weights: Weights) -> None:
        """Take pretrained `weights`; raises `ConfigurationError` naming what does not fit."""
        raise NotImplementedError

    def adapt(self, show: Callable[[], object]) -> None:
        """Prepare loaded weights for training; `show` runs the backbone on some good views."""

    def prepare_export(self, *, half: bool) -> None:
        """Fold what can be folded, in evaluation mode; with `half`, compute in fp16 from now on."""
        fold_batch_norm(self)  # in fp32: small variances would be lost in fp16
        if half:
            self.half()
            self._computes_in = torch.float16


def named_backbone(name: str, strides: tuple[int, ...]) -> BackboneSettings:
    """The settings that `--backbone NAME` means; raises `ConfigurationError` where none do."""
    for kind in BACKBONES.names():
        found = BACKBONES.find(kind).settings.named(name, strides)
        if found is not None:
            return found
    known = " or ".join(BACKBONES.find(kind).settings.names for kind in BACKBONES.names())
    raise ConfigurationError("--backbone", name, f"is not known; write {known}")


def recognised_backbone(weights: Weights, wanted: BackboneSettings) -> BackboneSettings:
    """The backbone that `weights` are of, with maps of the strides of `wanted`; else `wanted`."""
    for kind in BACKBONES.names():
        found = BACKBONES.find(kind).settings.recognised(weights, wanted.strides)
        if found is not None and type(found) is not type(wanted):
            return found
    return wanted


def take(
    backbone: nn.Module,
    weights: Weights,
    tensors: Mapping[str, Tensor],
    *,
    left_out: Callable[[str], bool],
) -> dict[str, Tensor]:
    """Load `tensors` into `backbone`, and return those that were taken.

    Args:
        backbone: Receives them.
        weights: What the user gave, for the message.
        tensors: Its tensors, as the backbone names them.
        left_out: Whether a tensor is of what the backbone does not have.

    Raises:
        ConfigurationError: Some are missing, unexpected or of another shape.
    """
    expected, offered = (
        {name: each for name, each in of.items() if not name.endswith("num_batches_tracked")}
        for of in (backbone.state_dict(), tensors)
    )
    offered = {name: each for name, each in offered.items() if not left_out(name)}
    shared = expected.keys() & offered.keys()
    faults = [
        *_told("missing", expected.keys() - shared),
        *_told("unexpected", offered.keys() - shared),
        *_told(
            "of another shape",
            {name for name in shared if expected[name].shape != offered[name].shape},
        ),
    ]
    if faults:
        raise ConfigurationError(
            "--backbone-weights",
            weights.source,
            f"does not fit this backbone ({'; '.join(faults)}); is --backbone right?",
        )
    backbone.load_state_dict(offered, strict=False)
    return offered


def _told(fault: str, names: set[str]) -> list[str]:
    shown = sorted(names)[:5]
    rest = len(names) - len(shown)
    return [f"{fault}: {', '.join(shown)}" + (f" and {rest} more" if rest else "")] if names else []


def fold_batch_norm(network: nn.Module) -> None:
    """Fold every BatchNorm into the convolution defined just before it; evaluation mode only."""
    for parent in network.modules():
        for (name, convolution), (norm_name, norm) in pairwise(list(parent.named_children())):
            # A BatchNorm of a class of its own may do more than one.
            if type(norm) is not nn.BatchNorm2d:
                continue
            if isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d):
                transpose = isinstance(convolution, nn.ConvTranspose2d)
                parent.add_module(name, fuse_conv_bn_eval(convolution, norm, transpose))
                parent.add_module(norm_name, nn.Identity())


def initialise(module: nn.Module) -> None:
    """He initialisation (normal, fan-out, ReLU) of all convolutions; BatchNorm γ=1, β=0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
