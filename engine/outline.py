"""Where a part lies and how it is turned, by its outline before an even background.

    window ─▶ what differs from its border ─▶ the largest piece ─▶ convex hull ─▶ middle, direction

The hull hides holes, print and small chips, and its moments use the whole of it, so that a single
noisy place of the edge moves the part by little.
"""

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.errors import InspectionError
from engine.frame import Pixels
from engine.region_spec import Motion, OutlineSpec, Sides, moved

_SIDE: Final = 480
"""A larger window is looked at in this size."""
_BORDER: Final = 3
"""This number of pixels along the sides of what is looked at show the background."""
_KERNEL: Final = np.ones((3, 3), np.uint8)
_LEAST: Final = 0.001
"""A smaller part of the window is dirt."""
_OTHER: Final = 0.5
"""What has this share of the largest piece may be the part as well."""
_MOST_TIMES: Final = 1.5
"""What is so much larger or smaller than the part is something else, or two of them."""
MOST_ROUND: Final = 1.1
"""What is less longer than wide has no direction that could be relied on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The middle of a part, its direction clockwise in degrees, and its length and width.

    Length and width are those of a rectangle with the same moments; the direction is that of the
    length, from above -90 to 90.
    """

    at: tuple[float, float]
    angle: float
    size: tuple[float, float]


def outline(pixels: Pixels, within: Sides, contrast: float) -> Outline:
    """The outline of the part in the window `within`; raises `InspectionError` for none."""
    left, top, right, bottom = within
    scale = min(1.0, _SIDE / max(right - left, bottom - top))
    window = np.ascontiguousarray(pixels[top:bottom, left:right])
    if scale < 1:
        small = cv2.resize(window, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        window = np.asarray(small, np.uint8)
    hull = _hull(_foreground(window, contrast))
    if hull is None:
        raise InspectionError(
            f"the part was not found: nothing in {list(within)} differs from its border by "
            f"{contrast:g} grey levels"
        )
    height, width = window.shape[:2]
    steps = np.array([(right - left) / width, (bottom - top) / height])
    places = (hull.reshape(-1, 2) + 0.5) * steps
    span = np.array([right - left, bottom - top])
    if (places < steps).any() or (places > span - steps).any():
        raise InspectionError(f"the part reaches beyond the window {list(within)}")
    return _measured(places + np.array([left, top]))


def motion(pixels: Pixels, spec: OutlineSpec) -> Motion:
    """How the part has moved from its place; raises `InspectionError` where there is none."""
    found = outline(pixels, spec.within, spec.contrast)
    times = math.prod(found.size) / math.prod(spec.size)
    if not 1 / _MOST_TIMES <= times <= _MOST_TIMES:
        raise InspectionError(
            f"the part was not found: what is there is {times:.2g} times as large"
        )
    across, down = (there - here for there, here in zip(found.at, spec.at, strict=True))
    if not spec.turns:
        return moved(round(across), round(down))
    turned = (found.angle - spec.angle + 90) % 180 - 90
    if abs(turned) > spec.most_degrees:
        raise InspectionError(
            f"the part is turned by {turned:.1f}°, and {spec.most_degrees:g}° are allowed"
        )
    return moved(across, down, turned, about=spec.at)


def _foreground(window: Pixels, contrast: float) -> npt.NDArray[np.uint8]:
    """Where a window differs from the median of its border, in any of its colours."""
    planes = window.reshape(*window.shape[:2], -1)
    border = np.concatenate(
        [
            side.reshape(-1, planes.shape[2])
            for side in (
                planes[:_BORDER],
                planes[-_BORDER:],
                planes[:, :_BORDER],
                planes[:, -_BORDER:],
            )
        ]
    )
    background, like = np.round(np.median(border, axis=0)), math.ceil(contrast) - 1
    found = cv2.bitwise_not(cv2.inRange(window, background - like, background + like))
    return np.asarray(cv2.morphologyEx(found, cv2.MORPH_OPEN, _KERNEL), np.uint8)


def _hull(foreground: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32] | None:
    contours, _ = cv2.findContours(foreground, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    areas = np.array([cv2.contourArea(each) for each in contours])
    first, *others = np.sort(areas)[::-1]
    if first < _LEAST * foreground.size:
        return None
    if others and others[0] > _OTHER * first:
        raise InspectionError("the part was not found: there are two pieces of similar size")
    return np.asarray(cv2.convexHull(contours[int(areas.argmax())]), np.int32)


def _measured(places: npt.NDArray[np.float64]) -> Outline:
    """The outline of a polygon, by its moments."""
    near = places.mean(axis=0)
    moments = cv2.moments((places - near).astype(np.float32).reshape(-1, 1, 2))
    area = moments["m00"]
    middle = near + np.array([moments["m10"], moments["m01"]]) / area
    across, both, down = (moments[name] / area for name in ("mu20", "mu11", "mu02"))
    spread = math.hypot((across - down) / 2, both)
    mean = (across + down) / 2
    return Outline(
        at=(float(middle[0]), float(middle[1])),
        angle=math.degrees(math.atan2(2 * both, across - down) / 2),
        size=(math.sqrt(12 * (mean + spread)), math.sqrt(12 * max(0.0, mean - spread))),
    )
