"""Synthetic defects: good parts with something wrong put in, and the mask of where.

Each kind is one function `(pixels, donor, rng) -> (pixels, mask)` over native frames, uint8, mono
or RGB; `donor` is of the same kind and any size. Neither input is changed. This comes before
CLAHE, as a real defect would.

    cutmix   a rectangle from elsewhere, the paper's only kind
    patch    a small rectangle from elsewhere, turned and tinted (CutPaste, Li et al. 2021)
    scar     the same, long and thin
    blotch   shuffled texture under a Perlin mask (MemSeg's structural kind)
    stroke   a dark or bright scratch

`transplanted` puts a known defect, whose mask is known, onto a good part.
"""

from collections.abc import Callable
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from engine.frame import Box, Pixels

Mask = npt.NDArray[np.bool_]
"""Bool `(H, W)`, True where the part is defective; in the pixels of its frame."""

Kind = Literal["cutmix", "patch", "scar", "blotch", "stroke"]

# Geometry of CutMix: share of the image area, sides' ratio (log-uniform), brightness jitter.
_AREA: Final = (0.02, 0.15)
_ASPECT: Final = (0.3, 3.3)
_JITTER: Final = 0.1
_TRIES: Final = 20

_PATCH_AREA: Final = (0.0008, 0.02)
_SCAR_AREA: Final = (0.0005, 0.006)
_SCAR_ASPECT: Final = (1 / 12, 12.0)
_TINT: Final = 0.4
_SHUFFLED_TILES: Final = 8  # a side (MemSeg)

# Of transplanted defects: how many stay about where they were, and what of one must remain.
_IN_PLACE: Final = 0.5
_REMAINS: Final = 0.3

# A change smaller than this is no defect: grey levels, and share of the image area.
_VISIBLE_LEVELS: Final = 12
_VISIBLE_AREA: Final = 0.00015


def cutmix(pixels: Pixels, donor: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """`pixels` with a rectangle of `donor` pasted elsewhere, a little brighter or darker.

    Both are uint8 of one kind (mono or RGB), of any sizes. Neither is changed. A patch that
    happens to leave the picture as it was is drawn again.
    """
    height, width = pixels.shape[:2]
    changed = pixels.copy()
    mask = np.zeros((height, width), dtype=np.bool_)
    for _ in range(_TRIES):
        patch_height, patch_width = _patch_size(
            min(height, donor.shape[0]), min(width, donor.shape[1]), rng, _AREA, _ASPECT
        )
        top = int(rng.integers(height - patch_height + 1))
        left = int(rng.integers(width - patch_width + 1))
        from_top = int(rng.integers(donor.shape[0] - patch_height + 1))
        from_left = int(rng.integers(donor.shape[1] - patch_width + 1))
        gain = rng.uniform(1 - _JITTER, 1 + _JITTER)
        patch = donor[from_top : from_top + patch_height, from_left : from_left + patch_width]
        window = (slice(top, top + patch_height), slice(left, left + patch_width))
        pasted = np.clip(np.rint(patch * gain), 0, 255).astype(np.uint8)
        if not np.array_equal(pasted, pixels[window]):
            changed[window] = pasted
            mask[window] = True
            return changed, mask
    # Only a picture without any content defeats every try; a hole is a defect in it too.
    changed[window] = 255 - pixels[window]
    mask[window] = True
    return changed, mask


def patch(pixels: Pixels, donor: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """`pixels` with a small piece of `donor` pasted turned, tinted and soft-edged."""
    return _turned_piece(pixels, donor, rng, _PATCH_AREA, _ASPECT)


def scar(pixels: Pixels, donor: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """As `patch`, with a long thin piece."""
    return _turned_piece(pixels, donor, rng, _SCAR_AREA, _SCAR_ASPECT)


def blotch(pixels: Pixels, donor: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """`pixels` with a half-transparent blot of `donor`'s texture, its tiles shuffled."""
    height, width = pixels.shape[:2]
    noise = _perlin(height, width, 2 ** int(rng.integers(1, 6)), 2 ** int(rng.integers(1, 6)), rng)
    rows, columns = np.ogrid[:height, :width]
    radius = rng.uniform(0.05, 0.3) * max(height, width)
    near = (rows - rng.integers(height)) ** 2 + (columns - rng.integers(width)) ** 2 < radius**2
    opacity = ((noise > rng.uniform(0.2, 0.4)) & near).astype(np.float32)
    texture = _tinted(_shuffled(_sized(donor, width, height), rng), rng)
    return _blended(pixels, texture, opacity * np.float32(rng.uniform(0.3, 1.0)), rng)


def stroke(pixels: Pixels, donor: Pixels, rng: np.random.Generator) -> tuple[Pixels, Mask]:  # noqa: ARG001 - all kinds have one signature
    """`pixels` with a scratch: a wandering line, lighter or darker than what it crosses."""
    height, width = pixels.shape[:2]
    long_side = max(height, width)
    points = [rng.uniform((0.0, 0.0), (width, height))]
    angle = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(2, 8))):
        angle += rng.normal(0, 0.5)
        step = rng.uniform(0.01, 0.06) * long_side
        points.append(points[-1] + step * np.array([np.cos(angle), np.sin(angle)]))
    line = np.zeros((height, width), dtype=np.uint8)
    thickness = max(1, round(rng.uniform(0.002, 0.015) * long_side))
    cv2.polylines(
        line, [np.array(points, dtype=np.int32)], isClosed=False, color=1, thickness=thickness
    )
    shade = rng.choice((-1.0, 1.0)) * rng.uniform(20, 90)
    return _blended(pixels, _tinted(pixels, rng) + np.float32(shade), line.astype(np.float32), rng)


Synthesis = Callable[[Pixels, Pixels, np.random.Generator], tuple[Pixels, Mask]]
SYNTHESES: Final[dict[Kind, Synthesis]] = {
    "cutmix": cutmix,
    "patch": patch,
    "scar": scar,
    "blotch": blotch,
    "stroke": stroke,
}


def synthesised(
    kinds: tuple[Kind, ...], pixels: Pixels, donor: Pixels, rng: np.random.Generator
) -> tuple[Pixels, Mask]:
    """A synthetic defect of one of `kinds`, drawn again until it can be seen.

    A picture that hides every try (all of one tone) gets a CutMix, which always shows.
    """
    for _ in range(_TRIES):
        changed, mask = SYNTHESES[kinds[int(rng.integers(len(kinds)))]](pixels, donor, rng)
        if mask.sum() >= max(1.0, _VISIBLE_AREA * mask.size):
            return changed, mask
    return cutmix(pixels, donor, rng)


def _turned_piece(
    pixels: Pixels,
    donor: Pixels,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[Pixels, Mask]:
    height, width = pixels.shape[:2]
    donor = _sized(donor, width, height)
    piece_height, piece_width = _patch_size(height, width, rng, area, aspect)
    to_top, from_top = rng.integers(height - piece_height + 1, size=2)
    to_left, from_left = rng.integers(width - piece_width + 1, size=2)
    window = (slice(to_top, to_top + piece_height), slice(to_left, to_left + piece_width))
    layer = np.zeros(pixels.shape, dtype=np.float32)
    layer[window] = _tinted(
        donor[from_top : from_top + piece_height, from_left : from_left + piece_width], rng
    )
    opacity = np.zeros((height, width), dtype=np.float32)
    opacity[window] = 1
    centre = (float(to_left + piece_width / 2), float(to_top + piece_height / 2))
    turn = cv2.getRotationMatrix2D(centre, float(rng.uniform(-90, 90)), 1.0)
    layer = np.asarray(cv2.warpAffine(layer, turn, (width, height)), dtype=np.float32)
    opacity = np.asarray(cv2.warpAffine(opacity, turn, (width, height)), dtype=np.float32)
    return _blended(pixels, layer, opacity, rng)


def _blended(
    pixels: Pixels,
    layer: npt.NDArray[np.float32],
    opacity: npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> tuple[Pixels, Mask]:
    """`layer` over `pixels`, its edge softened; the mask is where the change can be seen."""
    softness = max(0.3, rng.uniform(0.3, 1.5) * max(opacity.shape) / 512)
    opacity = np.asarray(cv2.GaussianBlur(opacity, (0, 0), softness), dtype=np.float32)
    weight = opacity if pixels.ndim == 2 else opacity[..., None]
    mixed = np.clip(pixels * (1 - weight) + layer * weight, 0, 255).astype(np.uint8)
    change = cv2.absdiff(mixed, pixels)
    visible = change if change.ndim == 2 else change.max(axis=2)
    return mixed, np.asarray(visible > _VISIBLE_LEVELS)


def _tinted(pixels: Pixels, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """`pixels` a little brighter or darker as a whole and, for RGB, in each colour."""
    gain = np.float32(1 + rng.uniform(-_TINT, _TINT))
    tinted = pixels.astype(np.float32) * gain
    if pixels.ndim == 3:
        tinted *= 1 + rng.uniform(-_TINT, _TINT, size=3).astype(np.float32) / 1.5
    tinted += np.float32(rng.uniform(-40, 40) * _TINT)
    return np.asarray(np.clip(tinted, 0, 255))


def _shuffled(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """`pixels` cut into 8 × 8 tiles that have changed places; a remainder at the border stays."""
    height, width = (length // _SHUFFLED_TILES for length in pixels.shape[:2])
    shuffled = pixels.copy()
    for place, tile in enumerate(rng.permutation(_SHUFFLED_TILES**2)):
        top, left = (
            index * size
            for index, size in zip(divmod(place, _SHUFFLED_TILES), (height, width), strict=True)
        )
        y, x = (
            index * size
            for index, size in zip(divmod(int(tile), _SHUFFLED_TILES), (height, width), strict=True)
        )
        shuffled[top : top + height, left : left + width] = pixels[y : y + height, x : x + width]
    return shuffled


def _perlin(
    height: int, width: int, rows: int, columns: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Gradient noise (Perlin 2002) with `rows` × `columns` lattice fields, about -1 … 1."""
    angles = rng.uniform(0, 2 * np.pi, size=(rows + 1, columns + 1))
    y = np.arange(height)[:, None] * rows / height
    x = np.arange(width)[None, :] * columns / width
    row, column = y.astype(int), x.astype(int)
    dy, dx = y - row, x - column

    def corner(down: int, across: int) -> npt.NDArray[np.float64]:
        angle = angles[row + down, column + across]
        return np.asarray(np.cos(angle) * (dx - across) + np.sin(angle) * (dy - down))

    fade_y, fade_x = (t**3 * (t * (t * 6 - 15) + 10) for t in (dy, dx))
    upper = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    lower = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    return np.asarray((upper * (1 - fade_y) + lower * fade_y) * np.sqrt(2), dtype=np.float32)


def _patch_size(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int]:
    pixels = rng.uniform(*area) * height * width
    ratio = float(np.exp(rng.uniform(*np.log(aspect))))
    return (
        min(height, max(1, round(float(np.sqrt(pixels / ratio))))),
        min(width, max(1, round(float(np.sqrt(pixels * ratio))))),
    )


def _sized(donor: Pixels, width: int, height: int) -> Pixels:
    if donor.shape[:2] == (height, width):
        return donor
    return np.asarray(cv2.resize(donor, (width, height)), dtype=np.uint8)


def alike(donor: Pixels, pixels: Pixels) -> Pixels:
    """`donor` as mono or RGB, whichever `pixels` is."""
    if donor.ndim == pixels.ndim:
        return donor
    code = cv2.COLOR_GRAY2RGB if pixels.ndim == 3 else cv2.COLOR_RGB2GRAY
    return np.asarray(cv2.cvtColor(donor, code), dtype=np.uint8)


def transplanted(
    pixels: Pixels, donor: Pixels, mask: Mask, rng: np.random.Generator
) -> tuple[Pixels, Mask]:
    """`pixels` with the known defect of `donor`, which is where `mask` says, and its new mask.

    `donor` is of the same kind as `pixels`, and of any size; `mask`, which has its size, is not
    empty.
    Half of the time about where it was, as some kinds come in one place only; else anywhere and
    turned. The surface around it is brought to the tone of the new place.
    """
    height, width = pixels.shape[:2]
    donor = _sized(donor, width, height)
    share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    where = (share > 0).astype(np.uint8)
    rows, columns = np.nonzero(where)
    middle = np.array([columns.mean(), rows.mean()])
    size = np.array([width, height])
    soft = cv2.GaussianBlur(cv2.dilate(where, np.ones((5, 5))).astype(np.float32), (0, 0), 2)
    for _ in range(_TRIES):
        if rng.random() < _IN_PLACE:
            angle, to = rng.uniform(-10, 10), middle + rng.uniform(-0.08, 0.08, 2) * size
        else:
            angle, to = rng.uniform(-180, 180), rng.uniform(0.1, 0.9, 2) * size
        scale = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        turn = cv2.getRotationMatrix2D(middle.tolist(), float(angle), float(scale))
        turn[:, 2] += to - middle
        new = cv2.warpAffine(where, turn, (width, height), flags=cv2.INTER_NEAREST) > 0
        if new.sum() >= max(1.0, _REMAINS * where.sum()):
            break
    piece = cv2.warpAffine(donor, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
    opacity = cv2.warpAffine(soft, turn, (width, height))
    rim = (opacity > 0.02) & (opacity < 0.5)
    shown = piece.astype(np.float32)
    if rim.any():
        shown += pixels[rim].mean(axis=0) - shown[rim].mean(axis=0)
    if pixels.ndim == 3:
        opacity = opacity[:, :, None]
    changed = np.clip(np.rint(pixels + (shown - pixels) * opacity), 0, 255).astype(np.uint8)
    return changed, np.asarray(new)


def moved(
    pixels: Pixels, mask: Mask | None, rng: np.random.Generator
) -> tuple[Pixels, Mask | None]:
    """A known defect and its mask a little shifted, turned, scaled and brightened.

    So few of them are known that the network would otherwise overfit to each.
    """
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D(
        (width / 2, height / 2), float(rng.uniform(-5, 5)), float(rng.uniform(0.97, 1.03))
    )
    turn += np.array([[0, 0, rng.uniform(-0.02, 0.02) * side] for side in (width, height)])
    shown = cv2.warpAffine(pixels, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
    brightened = np.clip(np.rint(shown * rng.uniform(0.95, 1.05)), 0, 255).astype(np.uint8)
    if mask is None:
        return brightened, None
    where = cv2.warpAffine(mask.astype(np.uint8), turn, (width, height), flags=cv2.INTER_NEAREST)
    return brightened, np.asarray(where > 0)


def patches(mask: Mask, box: Box, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """The part of `mask` inside `box` on a map of `rows` × `columns`: 1 where any pixel is set."""
    inside = mask[box.top : box.bottom, box.left : box.right].astype(np.float32)
    share = cv2.resize(inside, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(share > 0, dtype=np.float32)
