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

    def placement(self, shift: tuple[int, int] = (0, 0)) -> npt.NDArray[np.float64]:
        """The `(2, 3)` matrix from places in what is cut to places in the frame.

        Places are measured from the corner of the first pixel. `shift` is how far, right and down,
        the part lies from where it lay when the region was drawn.
        """
        left, top, right, bottom = self.crop
        width, height = self.size
        angle = math.radians(self.rotate)
        cos, sin = round(math.cos(angle), 12), round(math.sin(angle), 12)
        across, down = (left + right) / 2 + shift[0], (top + bottom) / 2 + shift[1]
        return np.array(
            [
                [cos, -sin, across - (cos * width - sin * height) / 2],
                [sin, cos, down - (sin * width + cos * height) / 2],
            ]
        )


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
class RegionsSpec:
    """All regions of a bundle, in frames of the size `frame`: width and height in pixels."""

    frame: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    regions: Annotated[tuple[RegionSpec, ...], Field(min_length=1, max_length=32)]
    find: Annotated[tuple[EdgeSpec, ...], Field(max_length=2)] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        width, height = self.frame
        names = [region.name for region in self.regions]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two regions are called {name}; give each its own name")
        for region in self.regions:
            if not is_inside(region, (0, 0), self.frame):
                raise ValueError(
                    f"region {region.name} reaches beyond the frame of {width} × {height}"
                )
        for each in self.find:
            if each.band[2] > width or each.band[3] > height:
                raise ValueError(f"a band reaches beyond the frame of {width} × {height}")
        if len({each.is_across for each in self.find}) < len(self.find):
            raise ValueError("find takes one edge for each direction")
        return self

    def blank(self, grey: int) -> Pixels:
        """A frame without a defect, in which the part is found in its place: `(H, W)`."""
        pixels = np.full(self.frame[::-1], grey, np.uint8)
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
            pixels[top:bottom, left:right] = grey + 128 if grey < 128 else grey - 128
        return pixels


def is_inside(region: RegionSpec, shift: tuple[int, int], frame: tuple[int, int]) -> bool:
    found = corners(region.placement(shift), Box.whole(*region.size))
    return bool(np.all((found >= -ROUNDING) & (found <= np.array(frame) + ROUNDING)))


def corners(placement: npt.NDArray[np.float64], box: Box) -> npt.NDArray[np.float64]:
    places = [(x, y, 1.0) for x in (box.left, box.right) for y in (box.top, box.bottom)]
    return np.array(places) @ placement.T


def _rectangle(sides: Sides, key: str) -> None:
    left, top, right, bottom = sides
    if left >= right or top >= bottom:
        raise ValueError(f"{key} should be left, top, right, bottom, with left before right")
