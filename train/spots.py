"""How small a defect may be and still be found: spots of known sizes on good parts.

Nobody has photographs of defects of every size. A spot is a disc of one tone that differs by
`CONTRAST` grey levels from what it covers, so a person sees one that is a few pixels wide. Real
defects with less contrast must be larger to be found.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import numpy as np

from engine.frame import Box, Pixels
from engine.inspector import Inspector

CONTRAST: Final = 60
FOUND: Final = 0.9
"""The share of the spots of a size that must be found for the size to count as found."""
_LARGEST: Final = 0.25  # of the frame's shorter side
_MIDDLE: Final = 0.6  # of both sides: nearer to the border there may be no part
_TRIES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Spots:
    """The share of spots found, by their diameter in pixels; what is inspected of a frame is
    `width` × `height` pixels.
    """

    width: int
    height: int
    found: dict[int, float]

    @property
    def smallest(self) -> int | None:
        """The size from which on spots are found; None where the largest are not."""
        largest_first = sorted(self.found, reverse=True)
        good_enough = takewhile(lambda size: self.found[size] >= FOUND, largest_first)
        return min(good_enough, default=None)


def spots_found(
    inspector: Inspector,
    frames: Iterable[tuple[Pixels, Sequence[Box]]],
    *,
    threshold: float,
    seed: int = 0,
) -> Spots:
    """Inspect good `frames`, at least one, with a spot of each size on them.

    Args:
        inspector: As the line will have it.
        frames: Good parts that training has not seen, and the boxes that are inspected of each;
            those of the first say which sizes there are.
        threshold: A score above it counts as found.
        seed: Of the places of the spots.
    """
    rng = np.random.default_rng(seed)
    above: dict[int, list[bool]] = {}
    width = height = 0
    for frame, boxes in frames:
        if not above:
            outer = Box.holding(boxes)
            height, width = outer.height, outer.width
            above = {size: [] for size in _sizes(min(width, height))}
        for size, found in above.items():
            found.append(inspector.inspect(with_spot(frame, boxes, size, rng)).score > threshold)
    shares = {size: float(np.mean(found)) for size, found in above.items()}
    return Spots(width=width, height=height, found=shares)


def with_spot(pixels: Pixels, boxes: Sequence[Box], size: int, rng: np.random.Generator) -> Pixels:
    """`pixels` with a spot in the middle part of what is inspected; darker where it is bright.

    Args:
        pixels: The frame.
        boxes: What is inspected of it.
        size: How wide the spot is, in pixels.
        rng: Draws the place.
    """
    x, y = _place(boxes, rng)
    reach = size / 2 + 1
    rows = slice(max(0, int(y - reach)), int(y + reach) + 1)
    columns = slice(max(0, int(x - reach)), int(x + reach) + 1)
    spotted = pixels.copy()
    below = spotted[rows, columns].astype(np.float64)
    down, across = np.ogrid[rows.start : rows.start + len(below), columns.start : columns.stop]
    share = np.clip(size / 2 + 0.5 - np.hypot(down - y, across[:, : below.shape[1]] - x), 0, 1)
    tone = below[share > 0.5].mean(axis=0)
    tone = tone + (CONTRAST if tone.mean() < 128 else -CONTRAST)
    share = share[..., None] if pixels.ndim == 3 else share
    mixed = np.rint(below * (1 - share) + tone * share)
    spotted[rows, columns] = np.clip(mixed, 0, 255).astype(np.uint8)
    return spotted


def _place(boxes: Sequence[Box], rng: np.random.Generator) -> tuple[float, float]:
    """A place in the middle part of all boxes together that lies in one of them."""
    for box in (*[Box.holding(boxes)] * _TRIES, boxes[0]):
        across, down = rng.uniform((1 - _MIDDLE) / 2, (1 + _MIDDLE) / 2, 2)
        x, y = box.left + across * box.width, box.top + down * box.height
        if any(one.left <= x < one.right and one.top <= y < one.bottom for one in boxes):
            break
    return x, y


def _sizes(shorter: int) -> list[int]:
    """4, 6, 8, 12, 16, 24 … pixels, up to a quarter of the frame's shorter side."""
    steps = (2**power * half // 2 for power in range(2, 16) for half in (2, 3))
    return list(takewhile(lambda size: size <= max(4, _LARGEST * shorter), steps))
