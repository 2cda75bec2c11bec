"""Attention map → box: Algorithm 1 of the paper (docs/method.md, Attention and the box)."""

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from engine.frame import Box, Map
from engine.spec import spec


@spec
class CropSpec:
    """How the attention box is cut; belongs to the bundle.

    `omega` is ω, the share of the map's maximum above which a pixel is attended (Eq 5).
    `gate` is an absolute floor: a map whose maximum stays below it points at no region, so there is
    no pass 2; 0 is the paper.
    `padding` (share of the box side, on each side), `min_side` (view pixels) and `square` widen the
    box; their defaults are the paper's.
    """

    omega: Annotated[float, Field(gt=0, le=1)] = 0.40
    gate: Annotated[float, Field(ge=0)] = 0.0
    padding: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_side: Annotated[int, Field(ge=1)] = 1
    square: bool = False


def attention_box(attention: Map, whole: Box, spec: CropSpec) -> Box:
    """The box of `whole` (a view's own box) that holds everything attended; Algorithm 1, 1-6.

    `attention` is the non-negative float32 `(h, w)` map of pass 1. A map that says nothing (not
    finite, nowhere positive, below the gate) gives `whole`.
    """
    if not np.isfinite(attention).all():
        return whole
    attention = np.maximum(attention, np.float32(0))
    peak = float(attention.max())
    if peak <= 0 or peak < spec.gate:
        return whole
    normalised = attention / peak
    # cv2's linear resize puts sample points at pixel centres: align_corners=False.
    upsampled = cv2.resize(
        normalised.astype(np.float32), (whole.width, whole.height), interpolation=cv2.INTER_LINEAR
    )
    attended = upsampled >= spec.omega
    columns = np.flatnonzero(attended.any(axis=0))
    rows = np.flatnonzero(attended.any(axis=1))
    if not len(rows):  # between two patches the upsampled peak can stay below a high ω
        return whole
    left, right = _span(int(columns[0]), int(columns[-1]) + 1, whole.width, spec)
    top, bottom = _span(int(rows[0]), int(rows[-1]) + 1, whole.height, spec)
    if spec.square:
        side = max(right - left, bottom - top)
        left, right = _widened(left, right, side, whole.width)
        top, bottom = _widened(top, bottom, side, whole.height)
    return Box(left=left, top=top, right=right, bottom=bottom)


def _span(start: int, stop: int, length: int, spec: CropSpec) -> tuple[int, int]:
    padded = stop - start + 2 * round(spec.padding * (stop - start))
    return _widened(start, stop, max(padded, spec.min_side), length)


def _widened(start: int, stop: int, side: int, length: int) -> tuple[int, int]:
    """`start … stop` grown about its centre to `side`, shifted to stay inside `0 … length`."""
    side = min(max(side, stop - start), length)
    start = min(max(0, start - (side - (stop - start)) // 2), length - side)
    return start, start + side
