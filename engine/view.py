"""A view: what the network sees of a frame (docs/method.md, Views). The only preprocessing.

Training, calibration, the line and the benchmark all call `view`, so what was learnt and what
is inspected cannot drift apart.
"""

import math
from typing import Annotated, Final, Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from engine.frame import Box, Pixels
from engine.spec import spec


@spec
class ViewSpec:
    """How views are made; belongs to the bundle and travels with the weights.

    `equalise` says when CLAHE runs: on the native frame `before_resize` (paper), on the small view
    `after_resize` (18-124 ms a frame cheaper), or `never`.
    `crop_from` says what pass 2 is cut from: the pass-1 `view` (paper) or the native `frame`,
    where the zoom adds real detail.
    `reducing_gap` lets Pillow shrink by whole steps first (see `Image.resize`); on a part 3.0
    stays within 2 grey levels of the exact filter and 2.0 within 3, `None` is exact.
    """

    side: Annotated[int, Field(ge=32, le=1024)] = 224
    equalise: Literal["before_resize", "after_resize", "never"] = "before_resize"
    crop_from: Literal["view", "frame"] = "view"
    reducing_gap: Annotated[float, Field(ge=1.0)] | None = None
    clahe_clip_limit: Annotated[float, Field(gt=0)] = 2.0
    clahe_tiles: Annotated[int, Field(ge=1, le=64)] = 8

    @property
    def box(self) -> Box:
        """The box of a whole view, in view pixels."""
        return Box.whole(self.side, self.side)


_FILTER: Final = Image.Resampling.BICUBIC
_SUPPORT: Final = 2.0
"""How far the filter reaches from its middle, in pixels of the view or of the frame, the larger."""
_STRIP: Final = 1_000_000
"""In pixels: a strip's memory is there for the next one, that of a large frame would not be."""
_Edges = tuple[float, float]
"""Where a box begins and ends, across or along, in pixels."""


def view(pixels: Pixels, box: Box, spec: ViewSpec) -> Pixels:
    """Cut `box` (pixels of the image `pixels`) out, resize, equalise: `(side, side, 3)` uint8 RGB.

    Mono images are equalised as mono and their one channel is repeated. Resizing is Pillow's,
    which antialiases; `box` is taken to the image's border exactly, without a prior crop, so
    pixels just outside still reach the filter. The aspect ratio is not kept.
    """
    if spec.equalise == "before_resize":
        pixels = equalised(pixels, spec)
    small = _resized(pixels, box, spec)
    if spec.equalise == "after_resize":
        small = equalised(small, spec)
    if small.ndim == 2:
        small = np.asarray(cv2.cvtColor(small, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    return small


def zoomed(pixels: Pixels, whole: Pixels, box: Box, spec: ViewSpec) -> tuple[Pixels, Box]:
    """The view of pass 2 and the box of `pixels` that it shows.

    With `crop_from="view"` the view of pass 1 is cut and scaled back bilinearly, as in the paper's
    Algorithm 1.

    Args:
        pixels: The frame.
        whole: The view of pass 1.
        box: Where pass 2 looks, in pixels of `whole`.
        spec: How views are made.
    """
    in_frame = box.scaled(of=spec.box, to=Box.around(pixels))
    if spec.crop_from == "frame":
        return view(pixels, in_frame, spec), in_frame
    crop = np.ascontiguousarray(whole[box.top : box.bottom, box.left : box.right])
    resized = Image.fromarray(crop).resize((spec.side, spec.side), Image.Resampling.BILINEAR)
    return np.asarray(resized), in_frame


def equalised(pixels: Pixels, spec: ViewSpec) -> Pixels:
    """CLAHE (Zuiderveld 1994) on grey values, or on L of CIE LAB for RGB so that hues stay."""
    clahe = cv2.createCLAHE(spec.clahe_clip_limit, (spec.clahe_tiles, spec.clahe_tiles))
    if pixels.ndim == 2:
        return np.asarray(clahe.apply(pixels), dtype=np.uint8)
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[..., 0] = clahe.apply(lab[..., 0])
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8)


def _resized(pixels: Pixels, box: Box, spec: ViewSpec) -> Pixels:
    """What Pillow's `resize` with this box and `reducing_gap` gives, to the bit, in less time.

    Pillow filters rows, then columns, a byte at a time; of an image of four channels it takes four
    at once. Both are columns here, as the image is turned before, and four neighbours in a row
    are taken for channels. Only what the filter reaches is copied.
    """
    across, along = (float(box.left), float(box.right)), (float(box.top), float(box.bottom))
    steps = _steps(across, spec), _steps(along, spec)
    if steps != (1, 1):
        # As far as Pillow goes, since the steps begin there.
        reach = _SUPPORT - 0.5
        columns = _reached(across, reach * _scale(across, spec), pixels.shape[1])
        rows = _reached(along, reach * _scale(along, spec), pixels.shape[0])
        pixels = _reduced(pixels[rows, columns], steps)
        across = _within(across, columns.start, steps[0])
        along = _within(along, rows.start, steps[1])
    height, width = pixels.shape[:2]
    if height - spec.side > max(0, 2 * (width - spec.side)):
        # Which axis goes first with tall images differs between Pillow's versions, and is seen.
        corners = across[0], along[0], across[1], along[1]
        tall = Image.fromarray(pixels)
        return np.asarray(tall.resize((spec.side, spec.side), _FILTER, box=corners))
    columns = _reached(across, _margin(across, spec), width)
    rows = _reached(along, _margin(along, spec), height)
    narrow = _filtered(pixels[rows, columns], across, columns.start, width, spec)
    return _filtered(narrow, along, rows.start, height, spec)


def _filtered(pixels: Pixels, edges: _Edges, start: int, width: int, spec: ViewSpec) -> Pixels:
    """The columns between `edges`, filtered to `side` columns and turned: `(side, H)`, or × 3.

    `pixels` are columns of an image of this `width`, from `start` on, and keep their places: with
    others Pillow would round its weights differently. All other columns are not read.
    """
    height, count = pixels.shape[:2]
    turned = np.empty((width, height + -height % 4, *pixels.shape[2:]), np.uint8)
    cv2.transpose(pixels, dst=turned[start : start + count, :height])
    fours = turned[0].size // 4
    image = Image.frombuffer("RGBX", (fours, width), turned, "raw", "RGBX", 0, 1)
    small = image.resize((fours, spec.side), _FILTER, box=(0, edges[0], fours, edges[1]))
    rows = np.asarray(small).reshape(spec.side, *turned.shape[1:])
    return np.ascontiguousarray(rows[:, :height])


def _reduced(pixels: Pixels, steps: tuple[int, int]) -> Pixels:
    """The means of `steps` columns by rows, rounded as Pillow does.

    OpenCV rounds the means of two by two alike, in a tenth of the time. Else in strips, as Pillow
    copies what is in colour into pixels of four bytes.
    """
    height, width = pixels.shape[:2]
    if steps == (2, 2):
        if height % 2 or width % 2:  # a last row or column counts alone, so it may count twice
            pixels = np.asarray(
                cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE),
                dtype=np.uint8,
            )
        half = (width + 1) // 2, (height + 1) // 2
        return np.asarray(cv2.resize(pixels, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    strip = max(1, _STRIP // pixels.shape[1] // steps[1]) * steps[1]
    return np.concatenate(
        [
            np.asarray(Image.fromarray(pixels[top : top + strip]).reduce(steps))
            for top in range(0, pixels.shape[0], strip)
        ]
    )


def _steps(edges: _Edges, spec: ViewSpec) -> int:
    """How many columns, or rows, are taken for one before the filter."""
    return 1 if spec.reducing_gap is None else int(_scale(edges, spec) / spec.reducing_gap) or 1


def _scale(edges: _Edges, spec: ViewSpec) -> float:
    return (edges[1] - edges[0]) / spec.side


def _margin(edges: _Edges, spec: ViewSpec) -> float:
    """How far beyond the edges the filter reads, and a pixel more."""
    return _SUPPORT * max(1.0, _scale(edges, spec)) + 1


def _reached(edges: _Edges, margin: float, length: int) -> slice:
    return slice(max(0, int(edges[0] - margin)), min(length, math.ceil(edges[1] + margin)))


def _within(edges: _Edges, start: int, steps: int) -> _Edges:
    return (edges[0] - start) / steps, (edges[1] - start) / steps
