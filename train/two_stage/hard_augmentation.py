"""Hard augmentation (§3.2.1): synthetic anomalies, and where they still show the normal part.

    x ─ rotation ─ permutation ─ colour jitter ─▶ x'   A' = 0
    x with a region that is 0, or that of x'    ─▶ x''  A'' = 1 outside the region

All of it works on batches of RGB images `(N, 3, side, side)` in [0, 1], on the device they are on,
and draws from torch's own generator; sizes and strengths are those of CSI (Tack et al. 2020), which
the paper cites, where it says none itself.
"""

import math
from typing import Annotated, Final, Literal

import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from pydantic import Field
from torch import Tensor

from engine.spec import spec

Augmentation = Literal["rotation", "permutation", "jitter"]
Share = Annotated[float, Field(ge=0, le=1)]

_TILES: Final = (2, 4)  # tiles a side that change places
_BRIGHTNESS: Final = 0.4
_CONTRAST: Final = 0.4
_SATURATION: Final = 0.4
_HUE: Final = 0.1  # of a turn
_ASPECT: Final = (0.3, 3.3)  # of a region, as CutMix's in train.anomalies
_LATTICE: Final = (4, 8, 16)  # a side, of the noise that gives a blot its outline
_GREY: Final = (0.299, 0.587, 0.114)


@spec
class HardAugmentation:
    """How synthetic anomalies are made.

    `whole` of them are x', the others x''. Its region has this share of the image's `area`, drawn
    log-uniformly; it is a `rectangle`, or a `blot`: what smooth noise leaves of one.
    """

    kinds: tuple[Augmentation, ...] = ("rotation", "permutation", "jitter")
    whole: Share = 0.25
    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
        0.002,
        0.15,
    )
    region: Literal["rectangle", "blot"] = "blot"


def anomalies(images: Tensor, settings: HardAugmentation) -> tuple[Tensor, Tensor]:
    """x_ano of `images`, and A_ano `(N, 1, side, side)`: 1 where they show the normal part."""
    augmented = hard(images, settings.kinds)
    region = regions(images, settings)
    region[: round(settings.whole * len(images))] = 1
    return cut(images, augmented, region), 1 - region


def hard(images: Tensor, kinds: tuple[Augmentation, ...]) -> Tensor:
    """x': the augmentations of `kinds`, one after the other."""
    for kind in kinds:
        images = _AUGMENTATIONS[kind](images)
    return images


def cut(images: Tensor, augmented: Tensor, region: Tensor) -> Tensor:
    """x'': `images` with zero or `augmented`, by equal chance, where `region` `(N, 1, …)` is 1.

    A region that is the whole image is never zero: it gives x'.
    """
    is_zero = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    is_zero &= region.amin(dim=(1, 2, 3), keepdim=True) < 1
    filling = torch.where(is_zero, torch.zeros_like(augmented), augmented)
    return torch.where(region > 0, filling, images)


def rotated(images: Tensor) -> Tensor:
    """Each image turned by one, two or three quarters."""
    turns = torch.randint(1, 4, (len(images), 1, 1, 1), device=images.device)
    for quarters in (1, 2, 3):
        images = torch.where(turns == quarters, images.rot90(quarters, (2, 3)), images)
    return images


def permuted(images: Tensor) -> Tensor:
    """Each image with its tiles, 2 × 2 or 4 × 4 of them, in another order."""
    tiles = _TILES[int(torch.randint(len(_TILES), (1,)))]
    n, channels, side, _ = images.shape
    length = side // tiles
    pieces = images.reshape(n, channels, tiles, length, tiles, length).permute(0, 2, 4, 1, 3, 5)
    pieces = pieces.reshape(n, tiles**2, channels, length, length)
    order = torch.rand(n, tiles**2, device=images.device).argsort(dim=1)
    pieces = pieces[torch.arange(n, device=images.device)[:, None], order]
    pieces = pieces.reshape(n, tiles, tiles, channels, length, length).permute(0, 3, 1, 4, 2, 5)
    return pieces.reshape(n, channels, side, side)


def jittered(images: Tensor) -> Tensor:
    """Each image with another brightness, contrast, saturation and hue."""

    def drawn(strength: float) -> Tensor:
        low, high = 1 - strength, 1 + strength
        return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(low, high)

    weights = torch.tensor(_GREY, device=images.device).view(1, 3, 1, 1)
    images = images * drawn(_BRIGHTNESS)
    middle = (images * weights).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = middle + (images - middle) * drawn(_CONTRAST)
    grey = (images * weights).sum(dim=1, keepdim=True)
    images = grey + (images - grey) * drawn(_SATURATION)
    turn = (drawn(_HUE) - 1) * 2 * math.pi
    return _hue_turned(images, turn).clamp(0, 1)


def regions(images: Tensor, settings: HardAugmentation) -> Tensor:
    """A region of each image as a map `(N, 1, side, side)` of 0 and 1; it has a pixel at least."""
    n, side, device = len(images), images.shape[-1], images.device

    def drawn(low: float, high: float) -> Tensor:
        return torch.empty(n, 1, 1, 1, device=device).uniform_(low, high)

    area = drawn(*(math.log(share) for share in settings.area)).exp() * side**2
    aspect = drawn(*(math.log(ratio) for ratio in _ASPECT)).exp()
    height = (area / aspect).sqrt().clamp(2, side)
    width = (area * aspect).sqrt().clamp(2, side)
    top, left = drawn(0, 1) * (side - height), drawn(0, 1) * (side - width)
    at = torch.arange(side, device=device) + 0.5
    rows, columns = at.view(1, 1, -1, 1), at.view(1, 1, 1, -1)
    rectangle = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    if settings.region == "rectangle":
        return rectangle.to(images.dtype)
    knots = _LATTICE[int(torch.randint(len(_LATTICE), (1,)))]
    noise = torch.rand(n, 1, knots, knots, device=device)
    noise = F.interpolate(noise, (side, side), mode="bicubic", align_corners=False)
    blot = rectangle & (noise > 0.5)
    is_empty = ~blot.flatten(1).any(dim=1).view(-1, 1, 1, 1)
    return torch.where(is_empty, rectangle, blot).to(images.dtype)


def _hue_turned(images: Tensor, turn: Tensor) -> Tensor:
    """Colours turned about the grey axis by `turn` radians `(N, 1, 1, 1)` (Rodrigues' formula)."""
    cosine, sine = turn.cos(), turn.sin()
    red, green, blue = images.unbind(dim=1)
    crossed = torch.stack((blue - green, red - blue, green - red), dim=1) / math.sqrt(3)
    along = images.mean(dim=1, keepdim=True)
    return images * cosine + crossed * sine + along * (1 - cosine)


_AUGMENTATIONS: Final = {"rotation": rotated, "permutation": permuted, "jitter": jittered}
