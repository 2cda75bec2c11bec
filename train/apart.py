"""Feature maps of several stages: stacked on one grid, and the same work with each on its own.

What is linear in them may be done before a deeper map is enlarged, on a quarter of the patches.
"""

import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn


def enlarged(feature: Tensor, size: torch.Size) -> Tensor:
    """A map `(N, C, h, w)`, linear between its patches, on a grid of `size`."""
    (height, width), (wanted_h, wanted_w) = feature.shape[-2:], size
    if (height, width) == (wanted_h, wanted_w):
        return feature
    if wanted_h % height == wanted_w % width == 0:
        # The same, and in ONNX a constant: a size would be put together again in each run.
        scale = (wanted_h / height, wanted_w / width)
        return F.interpolate(feature, scale_factor=scale, mode="bilinear", align_corners=False)
    return F.interpolate(feature, size, mode="bilinear", align_corners=False)


def stacked(features: list[Tensor]) -> Tensor:
    """Feature maps of several stages as one, on the grid of the first and finest."""
    size = features[0].shape[-2:]
    return torch.cat([enlarged(feature, size) for feature in features], dim=1)


def lengths(maps: list[Tensor]) -> Tensor:
    """The lengths of the patches of `maps`, as stacked on the grid of the first: `(N, 1, h, w)`."""
    size = maps[0].shape[-2:]
    squares = [
        enlarged(each, size).to(torch.float32).square().sum(dim=1, keepdim=True) for each in maps
    ]
    return torch.cat(squares, dim=1).sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)


class Apart(nn.Module):
    """A 1×1 convolution of stacked maps, each map convolved on its own grid and then enlarged.

    Both are linear, so their order is free, and the deeper maps have fewer patches. With `half` the
    convolutions are in fp16 and their sum in fp32.
    """

    def __init__(self, stacked: nn.Conv2d, channels: tuple[int, ...], *, half: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        for weight in torch.split(stacked.weight, list(channels), dim=1):
            part = nn.Conv2d(weight.shape[1], len(weight), 1, bias=not self.parts)
            part.weight.data = weight.data.clone()
            if part.bias is not None:
                part.bias.data = (
                    torch.zeros(len(weight)) if stacked.bias is None else stacked.bias.data.clone()
                )
            self.parts.append(part)
        self._kind = torch.float16 if half else torch.float32
        self.to(self._kind)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps `(N, C, h, w)`, the finest first → float32 on the grid of the first."""
        found = [part(m.to(self._kind)) for part, m in zip(self.parts, maps, strict=True)]
        size = found[0].shape[-2:]
        total: Tensor = found[0].to(torch.float32)
        for each in found[1:]:
            total = total + enlarged(each, size).to(torch.float32)
        return total
