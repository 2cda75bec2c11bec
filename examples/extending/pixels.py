"""A backbone without parameters: the mean colour of 8 × 8 pixels, and how much it varies."""

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor

from engine.spec import spec
from train.backbones import Backbone, BackboneSettings


@spec
class Pixels(BackboneSettings):
    type: Literal["pixels"] = "pixels"
    names: ClassVar = "pixels"
    label: ClassVar = "pixels"
    strides: ClassVar = (8,)

    @classmethod
    def named(cls, name: str, strides: tuple[int, ...]) -> Self | None:  # noqa: ARG003
        return cls() if name == "pixels" else None


class PixelsBackbone(Backbone):
    channels, strides = (6,), (8,)

    def maps(self, x: Tensor) -> list[Tensor]:
        mean = F.avg_pool2d(x, 8)
        return [torch.cat([mean, F.avg_pool2d(x * x, 8) - mean * mean], dim=1)]


def open(settings: Pixels, *, side: int) -> Backbone:  # noqa: ARG001
    return PixelsBackbone()
