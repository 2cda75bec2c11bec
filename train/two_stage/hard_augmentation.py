"""Hard augmentation (§3.2.1): synthetic anomalies, and where they still show the normal part.

    x ─ rotation ─ permutation ─ colour jitter ─▶ x'   A' = 0
    x with a region that is 0, or that of x'    ─▶ x''  A'' = 1 outside the region

All of it works on batches of RGB images `(N, 3, side, side)` in [0, 1], on the device they are on,
and draws from torch's own generator; sizes and strengths are those of CSI (Tack et al. 2020), which
the paper cites, where it says none itself.

What changes an image so is often easier to see than a defect. So noise in what the encoder found in
a good part is an anomaly too, which the paper has not.
"""

import math
from dataclasses import replace
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
_KNOTS: Final = (1, 2, 4, 8, 16)  # a side, of the noise in features
_NOISY: Final = (0.002, 0.3)  # share of the area that has it
_VISIBLE: Final = 12 / 255  # what changes by less, as black that replaces black, is no anomaly
_GREY: Final = (0.299, 0.587, 0.114)


@spec
class HardAugmentation:
    """How synthetic anomalies are made.

    `whole` of them are x', the others x''. Its region has this share of the image's `area`, drawn
    log-uniformly; it is a `rectangle`, or a `blot`: what smooth noise leaves of one. There are
    `regions` of them at most; an opacity between `opacity` and 1 covers what one replaces.
    `noise` is in deviations of a feature of good parts; 0 leaves it out, as the paper does.
    """

    kinds: tuple[Augmentation, ...] = ("rotation", "permutation", "jitter")
    whole: Share = 0.25
    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (
        0.002,
        0.15,
    )
    region: Literal["rectangle", "blot"] = "blot"
    regions: Annotated[int, Field(ge=1)] = 3
    opacity: Annotated[float, Field(gt=0, le=1)] = 0.3
    noise: Annotated[float, Field(ge=0)] = 1.0


def anomalies(images: Tensor, settings: HardAugmentation) -> tuple[Tensor, Tensor]:
    """x_ano of `images`, and A_ano `(N, 1, side, side)`: 1 where they show the normal part.

    That is also where a region looks as the part did, but A' is 0 everywhere, as in the paper.
    """
    augmented = hard(images, settings.kinds)
    whole = round(settings.whole * len(images))
    made, anomalous = images, torch.zeros_like(images[:, :1])
    for number in range(settings.regions):
        region = regions(images, settings)
        if number:  # the first is there always, each other by equal chance
            region *= torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        region[:whole] = number == 0
        made = cut(made, augmented, region, settings.opacity)
        anomalous = torch.maximum(anomalous, region)
    is_seen = (made - images).abs().amax(dim=1, keepdim=True) >= _VISIBLE
    is_seen[:whole] = True
    return made, 1 - anomalous * is_seen


def hard(images: Tensor, kinds: tuple[Augmentation, ...]) -> Tensor:
    """x': the augmentations of `kinds`, one after the other."""
    for kind in kinds:
        images = _AUGMENTATIONS[kind](images)
    return images


def cut(images: Tensor, augmented: Tensor, region: Tensor, opacity: float = 1.0) -> Tensor:
    """x'': `images` with zero or `augmented`, by equal chance, where `region` `(N, 1, …)` is 1.

    What replaces covers with an opacity drawn between `opacity` and 1. A region that is the whole
    image is never zero, and covered wholly: it gives x'.
    """
    is_part = region.amin(dim=(1, 2, 3), keepdim=True) < 1
    is_zero = is_part & (torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5)
    covered = torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(opacity, 1)
    covered = torch.where(is_part, covered, torch.ones_like(covered))
    filling = torch.where(is_zero, torch.zeros_like(augmented), augmented)
    return torch.lerp(images, filling, region * covered)


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


def noised(features: Tensor, noise: float) -> Tensor:
    """`features` `(N, C, h, w)` with normal noise: this number of deviations of each channel."""
    deviation = features.std(dim=(0, 2, 3), keepdim=True)
    drawn = torch.randn(features.shape, device=features.device)  # slow in bf16 on CPUs
    return features + noise * deviation * drawn.to(features.dtype)


def noised_in_regions(
    features: Tensor, where: Tensor, settings: HardAugmentation
) -> tuple[Tensor, Tensor]:
    """Features of anomalies with noise in regions too, and where they still show the normal part.

    Noise that differs from place to place would be told by that, and a defect would not. So it is
    smooth, and another one for each image.

    Args:
        features: `(N, C, h, w)`.
        where: A_ano of the images, `(N, 1, side, side)`.
        settings: How strong the noise is.
    """
    n, _, height, width = features.shape
    knots = min(_KNOTS[int(torch.randint(len(_KNOTS), (1,)))], height)
    coarse = torch.randn(n, features.shape[1], knots, knots, device=features.device)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    smooth = smooth / smooth.std(dim=1, keepdim=True)
    region = regions(where, replace(settings, area=_NOISY))
    region = F.interpolate(region, (height, width), mode="area")
    region = (region >= region.amax(dim=(2, 3), keepdim=True) / 2).to(features.dtype)
    deviation = features.std(dim=(0, 2, 3), keepdim=True)
    clean = F.interpolate(1 - region, where.shape[-2:])
    return features + settings.noise * deviation * smooth * region, torch.minimum(where, clean)


def _hue_turned(images: Tensor, turn: Tensor) -> Tensor:
    """Colours turned about the grey axis by `turn` radians `(N, 1, 1, 1)` (Rodrigues' formula)."""
    cosine, sine = turn.cos(), turn.sin()
    red, green, blue = images.unbind(dim=1)
    crossed = torch.stack((blue - green, red - blue, green - red), dim=1) / math.sqrt(3)
    along = images.mean(dim=1, keepdim=True)
    return images * cosine + crossed * sine + along * (1 - cosine)


_AUGMENTATIONS: Final = {"rotation": rotated, "permutation": permuted, "jitter": jittered}
