"""Backbones: what turns views into feature maps. Each kind is one module of this package.

It exports its settings class, which derives from `BackboneSettings`, and `open(settings, *, side)`,
which builds a `Backbone` for views of that side. Nothing outside that module asks which it is.
"""

from collections.abc import Callable
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
