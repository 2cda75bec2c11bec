"""How a bundle says which regions of a frame it inspects; `engine/region.py` cuts them."""

import math
from typing import Annotated, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from engine.errors import InspectionError
from engine.frame import Box, Pixels
from engine.spec import spec

_Side = Annotated[int, Field(ge=0, le=100_000)]
Sides = tuple[_Side, _Side, _Side, _Side]
"""Left, top, right and bottom of a rectangle in pixels; right and bottom are excluded."""
Motion = npt.NDArray[np.float64]
"""A `(2, 3)` matrix from places of the frame where the part lay to those where it lies now."""
Point = tuple[float, float]
Polygon = Annotated[tuple[Point, ...], Field(min_length=3, max_length=10_000)]

ROUNDING: Final = 1e-6
_BACKGROUND: Final = 0.05
"""The share of a band, at its beginning, that shows the background."""


@spec
class RegionSpec:
    """A rectangle of the frame with a name.

    `crop` is turned clockwise by `rotate` degrees about its middle; what lies in it is shown
    upright. The polygons `ignore` have their corners in pixels of the frame.
    """

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]
    crop: Sides
    rotate: Annotated[float, Field(gt=-360, lt=360)] = 0.0
    ignore: Annotated[tuple[Polygon, ...], Field(max_length=10_000)] = ()

    @model_validator(mode="after")
    def _is_rectangle(self) -> Self:
        _rectangle(self.crop, "crop")
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is cut, in pixels."""
        left, top, right, bottom = self.crop
        return right - left, bottom - top

    def placement(self, motion: Motion | None = None) -> npt.NDArray[np.float64]:
        """The `(2, 3)` matrix from places in what is cut to places in the frame.

        Places are measured from the corner of the first pixel. `motion` is how the part has moved
        from where it lay when the region was drawn.
        """
        left, top, right, bottom = self.crop
        width, height = self.size
        angle = math.radians(self.rotate)
        cos, sin = round(math.cos(angle), 12), round(math.sin(angle), 12)
        across, down = (left + right) / 2, (top + bottom) / 2
        drawn = np.array(
            [
                [cos, -sin, across - (cos * width - sin * height) / 2],
                [sin, cos, down - (sin * width + cos * height) / 2],
            ]
        )
        return drawn if motion is None else _after(motion, drawn)


@spec
class EdgeSpec:
    """Where one edge of the part is looked for; the regions move with it.

    `band` begins on the background, on that side of the part where the `edge` is, and reaches into
    the part. The edge is where the mean of a line across the band first differs from the background
    by `contrast` grey levels. `at` is its place in frames as the regions were drawn in: pixels from
    the left for the edges left and right, from above for top and bottom.
    """

    edge: Literal["left", "right", "top", "bottom"]
    band: Sides
    at: _Side
    contrast: Annotated[float, Field(ge=1, le=100)] = 20.0

    @model_validator(mode="after")
    def _is_in_band(self) -> Self:
        _rectangle(self.band, "band")
        first, last = self._span
        if not first <= self.at <= last:
            raise ValueError(f"at should lie in the band, {first} to {last}")
        return self

    @property
    def is_across(self) -> bool:
        """Whether the part moves to the left and right by it, not up and down."""
        return self.edge in {"left", "right"}

    @property
    def _span(self) -> tuple[int, int]:
        left, top, right, bottom = self.band
        return (left, right) if self.is_across else (top, bottom)

    def shift(self, pixels: Pixels) -> int:
        """How far the part lies from `at`; raises `InspectionError` where there is no edge."""
        left, top, right, bottom = self.band
        others = {*range(pixels.ndim)} - {1 if self.is_across else 0}
        lines = pixels[top:bottom, left:right].mean(axis=tuple(others))
        first, last = self._span
        is_backwards = self.edge in {"right", "bottom"}
        profile = lines[::-1] if is_backwards else lines
        background = np.median(profile[: max(3, int(len(profile) * _BACKGROUND))])
        beyond = np.flatnonzero(np.abs(profile - background) >= self.contrast)
        if not beyond.size:
            raise InspectionError(
                f"the part was not found: no {self.edge} edge between {first} and {last}"
            )
        place = last - int(beyond[0]) if is_backwards else first + int(beyond[0])
        return place - self.at


@spec
class OutlineSpec:
    """Where the whole part is looked for; the regions move with its middle, and turn with it.

    The rectangle `within` holds the part wherever it lies, and shows background at its border. The
    part is the largest thing there that differs from this background by `contrast` grey levels.
    `at`, `angle` and `size` are the middle, direction and length and width of its convex hull in
    the frame in which the regions were drawn, as `engine/outline.py` finds them. With `turns` the
    regions turn as the part does, by `most_degrees` at most; else they move by whole pixels.
    """

    within: Sides
    at: Point
    angle: Annotated[float, Field(ge=-90, le=90)]
    size: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    contrast: Annotated[float, Field(ge=1, le=100)] = 25.0
    turns: bool = True
    most_degrees: Annotated[float, Field(gt=0, lt=90)] = 30.0

    @model_validator(mode="after")
    def _is_rectangle(self) -> Self:
        _rectangle(self.within, "within")
        return self


@spec
class RegionsSpec:
    """All regions of a bundle, in frames of the size `frame`: width and height in pixels."""

    frame: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    regions: Annotated[tuple[RegionSpec, ...], Field(min_length=1, max_length=32)]
    find: Annotated[tuple[EdgeSpec, ...], Field(max_length=2)] = ()
    outline: OutlineSpec | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        width, height = self.frame
        names = [region.name for region in self.regions]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two regions are called {name}; give each its own name")
        for region in self.regions:
            if not is_inside(region, None, self.frame):
                raise ValueError(
                    f"region {region.name} reaches beyond the frame of {width} × {height}"
                )
        for each in self.find:
            if each.band[2] > width or each.band[3] > height:
                raise ValueError(f"a band reaches beyond the frame of {width} × {height}")
        if len({each.is_across for each in self.find}) < len(self.find):
            raise ValueError("find takes one edge for each direction")
        if self.outline is not None:
            if self.find:
                raise ValueError("the part is found by its outline or by edges; remove one of them")
            if self.outline.within[2] > width or self.outline.within[3] > height:
                raise ValueError(f"within reaches beyond the frame of {width} × {height}")
        return self

    def blank(self, grey: int) -> Pixels:
        """A frame without a defect, in which the part is found in its place: `(H, W)`."""
        pixels = np.full(self.frame[::-1], grey, np.uint8)
        other = grey + 128 if grey < 128 else grey - 128
        if self.outline is not None:
            pixels[_rectangle_at(self.outline, self.frame)] = other
        for each in self.find:
            left, top, right, bottom = each.band
            match each.edge:
                case "left":
                    right = each.at
                case "right":
                    left = each.at
                case "top":
                    bottom = each.at
                case "bottom":
                    top = each.at
            pixels[top:bottom, left:right] = other
        return pixels


def moved(across: float, down: float, turned: float = 0.0, about: Point = (0.0, 0.0)) -> Motion:
    """A turn by degrees clockwise about a place, and a move to the right and down."""
    cos, sin = math.cos(math.radians(turned)), math.sin(math.radians(turned))
    x, y = about
    return np.array(
        [
            [cos, -sin, x + across - cos * x + sin * y],
            [sin, cos, y + down - sin * x - cos * y],
        ]
    )


def _after(motion: Motion, placement: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found = motion[:, :2] @ placement
    found[:, 2] += motion[:, 2]
    return found


def _rectangle_at(outline: OutlineSpec, frame: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where in a frame a rectangle lies that has an outline's middle, direction and size."""
    (x, y), (length, width) = outline.at, outline.size
    cos, sin = math.cos(math.radians(outline.angle)), math.sin(math.radians(outline.angle))
    rows, columns = np.mgrid[: frame[1], : frame[0]] + 0.5
    along = (columns - x) * cos + (rows - y) * sin
    across = (rows - y) * cos - (columns - x) * sin
    found: npt.NDArray[np.bool_] = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)
    return found


def is_inside(region: RegionSpec, motion: Motion | None, frame: tuple[int, int]) -> bool:
    found = corners(region.placement(motion), Box.whole(*region.size))
    return bool(np.all((found >= -ROUNDING) & (found <= np.array(frame) + ROUNDING)))


def corners(placement: npt.NDArray[np.float64], box: Box) -> npt.NDArray[np.float64]:
    places = [(x, y, 1.0) for x in (box.left, box.right) for y in (box.top, box.bottom)]
    return np.array(places) @ placement.T


def _rectangle(sides: Sides, key: str) -> None:
    left, top, right, bottom = sides
    if left >= right or top >= bottom:
        raise ValueError(f"{key} should be left, top, right, bottom, with left before right")
