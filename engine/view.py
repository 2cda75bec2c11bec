"""A view: what the network sees of a frame. The only preprocessing in the product.

Training, calibration, the line and the benchmark all call `view`, so what was learnt and what
is inspected cannot drift apart.
"""

from typing import Annotated, Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from engine.frame import Box, Pixels
from engine.spec import spec


@spec
class ViewSpec:
    """How views are made; belongs to the bundle and travels with the weights.

    `equalise` says when CLAHE runs: on the native frame `before_resize` (paper; supplement §2),
    on the small view `after_resize` (18-124 ms a frame cheaper), or `never`.
    `crop_from` says what pass 2 is cut from: the pass-1 `view` (paper) or the native `frame`,
    where the zoom adds real detail.
    `reducing_gap` lets Pillow shrink by whole steps first (see `Image.resize`); 3.0 stays within
    2 grey levels of the exact filter, `None` is exact.
    """

    side: Annotated[int, Field(ge=32, le=1024)] = 224
    equalise: Literal["before_resize", "after_resize", "never"] = "before_resize"
    crop_from: Literal["view", "frame"] = "view"
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    reducing_gap: Annotated[float, Field(ge=1.0)] | None = None
    clahe_clip_limit: Annotated[float, Field(gt=0)] = 2.0
    clahe_tiles: Annotated[int, Field(ge=1, le=64)] = 8

    @property
    def box(self) -> Box:
        """The box of a whole view, in view pixels."""
        return Box.whole(self.side, self.side)


_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def view(pixels: Pixels, box: Box, spec: ViewSpec) -> Pixels:
    """Cut `box` (pixels of the image `pixels`) out, resize, equalise: `(side, side, 3)` uint8 RGB.

    Mono images are equalised as mono and their one channel is repeated. Resizing is Pillow's,
    which antialiases; `box` is taken to the image's border exactly, without a prior crop, so
    pixels just outside still reach the filter. The aspect ratio is not kept (spec §6.6).
    """
    if spec.equalise == "before_resize":
        pixels = equalised(pixels, spec)
    small = np.asarray(
        Image.fromarray(pixels).resize(
            (spec.side, spec.side),
            _FILTERS[spec.resize],
            box=(box.left, box.top, box.right, box.bottom),
            reducing_gap=spec.reducing_gap,
        )
    )
    if spec.equalise == "after_resize":
        small = equalised(small, spec)
    if small.ndim == 2:
        small = cv2.cvtColor(small, cv2.COLOR_GRAY2RGB)
    return small


def zoomed(pixels: Pixels, whole: Pixels, box: Box, spec: ViewSpec) -> tuple[Pixels, Box]:
    """The view of pass 2 and the box of `pixels` that it shows.

    `whole` is the pass-1 view of `pixels`; `box` is in its pixels. With `crop_from="view"` this
    is Algorithm 1, lines 5-7: slice the view, scale back bilinearly.
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
