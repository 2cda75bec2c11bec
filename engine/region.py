"""Regions: what of a frame is inspected, upright, and without what is to be ignored.

    frame ─▶ where the part lies ─▶ crop, turned upright ─▶ ignored places covered ─▶ view

A bundle has its regions from training on. Whatever gives frames to its network cuts them here:
training, calibration, evaluation and the line.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import InspectionError
from engine.frame import Box, Map, Pixels
from engine.outline import motion as outline_motion
from engine.region_spec import (
    ROUNDING,
    Motion,
    RegionSpec,
    RegionsSpec,
    corners,
    is_inside,
    moved,
)

_GREY: Final = 127
"""What an ignored place looks like, to training and line alike."""
_MAP_SIDE: Final = 256
"""The longer side of a map over a whole frame, which holds the regions' maps."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """One region of one frame: its `pixels`, upright, and where they lie in the frame.

    `ignored` says which of the pixels are covered; `None`: none. `placement` is as
    `RegionSpec.placement` gives it, and `box` holds the whole region.
    """

    name: str
    pixels: Pixels
    ignored: npt.NDArray[np.bool_] | None
    placement: npt.NDArray[np.float64]
    box: Box

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """The corners of a region that is turned, in order; none where its box says it all."""
        if not self.placement[0, 1]:
            return ()
        height, width = self.pixels.shape[:2]
        places = np.array([(0, 0, 1), (width, 0, 1), (width, height, 1), (0, height, 1)])
        return tuple((float(x), float(y)) for x, y in places @ self.placement.T)

    def in_frame(self, box: Box, frame: Box) -> Box:
        """The smallest box of the frame that holds `box` of this region."""
        return _bounding(self.placement, box, frame)


class Regions:
    """Cuts the regions of frames; any number of threads may ask at once."""

    def __init__(self, spec: RegionsSpec) -> None:
        self.spec = spec
        self._ignored = [_ignored(region, spec.frame) for region in spec.regions]

    def cut(self, pixels: Pixels) -> list[Cut]:
        """All regions of a frame; raises `InspectionError` where it has no place for them."""
        frame, motion = Box.around(pixels), self._motion(pixels)
        return [
            _cut(region, pixels, ignored, motion, frame)
            for region, ignored in zip(self.spec.regions, self._ignored, strict=True)
        ]

    def _motion(self, pixels: Pixels) -> Motion | None:
        """How the part has moved; `None`: nobody has looked."""
        height, width = pixels.shape[:2]
        if (width, height) != tuple(self.spec.frame):
            raise InspectionError(
                f"the frame has {width} × {height} pixels, and the regions of the bundle are for "
                f"{self.spec.frame[0]} × {self.spec.frame[1]}; set the camera as for training"
            )
        if self.spec.outline is not None:
            motion = outline_motion(pixels, self.spec.outline)
        elif self.spec.find:
            shifts = {edge.is_across: edge.shift(pixels) for edge in self.spec.find}
            motion = moved(shifts.get(True, 0), shifts.get(False, 0))
        else:
            return None
        for region in self.spec.regions:
            if not is_inside(region, motion, self.spec.frame):
                raise InspectionError(
                    f"region {region.name} is not all in the frame: the part lies "
                    f"{_said(motion, self.spec)} its place"
                )
        return motion


def over_frame(cuts: "Iterator[tuple[Cut, Map]]", frame: Box) -> Map:
    """One map over the whole frame from those of its regions, 0 where there is none.

    Where two regions overlap the larger magnitude counts.
    """
    scale = min(1.0, _MAP_SIDE / max(frame.width, frame.height))
    size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    steps = np.array([size[0] / frame.width, size[1] / frame.height])
    whole = np.zeros(size[::-1], np.float32)
    for cut, each in cuts:
        height, width = cut.pixels.shape[:2]
        fine = max(1, round(width * scale)), max(1, round(height * scale))
        values = cv2.resize(each, fine, interpolation=cv2.INTER_LINEAR)
        matrix = cut.placement * steps[:, None]
        matrix[:, :2] *= np.array([width / fine[0], height / fine[1]])
        shown = cv2.warpAffine(
            values, _between_middles(matrix), size, flags=cv2.INTER_NEAREST, borderValue=(0.0,)
        )
        whole = np.where(np.abs(shown) > np.abs(whole), shown, whole).astype(np.float32)
    return whole


def _cut(
    region: RegionSpec,
    pixels: Pixels,
    ignored: npt.NDArray[np.bool_] | None,
    motion: Motion | None,
    frame: Box,
) -> Cut:
    placement = region.placement(motion)
    found = np.asarray(_turned(pixels, region, placement, cv2.INTER_LINEAR), dtype=np.uint8)
    if ignored is not None:
        found[ignored] = _GREY
    return Cut(
        name=region.name,
        pixels=found,
        ignored=ignored,
        placement=placement,
        box=_bounding(placement, Box.whole(*region.size), frame),
    )


def cut_mask(mask: npt.NDArray[np.bool_], cut: Cut) -> npt.NDArray[np.bool_]:
    """What `mask`, over the frame, says of the places of `cut`; ignored ones are not in it."""
    height, width = cut.pixels.shape[:2]
    found: npt.NDArray[np.bool_] = (
        cv2.warpAffine(
            mask.astype(np.uint8),
            _between_middles(cut.placement),
            (width, height),
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        )
        > 0
    )
    return found if cut.ignored is None else found & ~cut.ignored


def _turned(
    pixels: Pixels, region: RegionSpec, placement: npt.NDArray[np.float64], interpolation: int
) -> npt.NDArray[Any]:
    """The region's pixels in an array of their own."""
    if np.array_equal(placement[:, :2], np.eye(2)):
        left, top = (round(float(place)) for place in placement[:, 2])
        width, height = region.size
        return pixels[top : top + height, left : left + width].copy()
    return cv2.warpAffine(
        pixels,
        _between_middles(placement),
        region.size,
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _said(motion: Motion, spec: RegionsSpec) -> str:
    """How the part has moved, for people."""
    x, y = (0.0, 0.0) if spec.outline is None else spec.outline.at
    across, down = motion @ np.array([x, y, 1.0]) - np.array([x, y])
    turned = math.degrees(math.atan2(motion[1, 0], motion[0, 0]))
    turn = f", turned by {turned:.1f}°," if abs(turned) > ROUNDING else ""
    return f"{across:.0f} right and {down:.0f} down{turn} of"


def _between_middles(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The same for places that are measured from the middle of the first pixel, as OpenCV does."""
    moved = matrix.copy()
    moved[:, 2] += moved[:, :2].sum(axis=1) / 2 - 0.5
    return moved


def _ignored(region: RegionSpec, frame: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    """Which pixels of a region are ignored; they move with the part."""
    if not region.ignore:
        return None
    drawn = np.zeros(frame[::-1], np.uint8)
    for polygon in region.ignore:
        cv2.fillPoly(drawn, [np.round(polygon).astype(np.int32)], (1,))
    return _turned(drawn, region, region.placement(), cv2.INTER_NEAREST) > 0


def _bounding(placement: npt.NDArray[np.float64], box: Box, frame: Box) -> Box:
    found = corners(placement, box)
    left, top = np.floor(found.min(axis=0) + ROUNDING).astype(int).tolist()
    right, bottom = np.ceil(found.max(axis=0) - ROUNDING).astype(int).tolist()
    return Box(
        left=max(0, left),
        top=max(0, top),
        right=min(frame.width, right),
        bottom=min(frame.height, bottom),
    )
