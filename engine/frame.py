"""The things that travel through the rooms: a frame, a box in it, and what inspection found."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""uint8 pixels: `(H, W)` mono or `(H, W, 3)` RGB."""

Map = npt.NDArray[np.float32]
"""A float32 `(h, w)` map over a view, row 0 at the top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle in pixels, half-open: columns `left … right-1`, rows `top … bottom-1`."""

    left: int
    top: int
    right: int
    bottom: int

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right and 0 <= self.top < self.bottom):
            raise ValueError(f"not a box: {self}")

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @staticmethod
    def whole(width: int, height: int) -> "Box":
        """The box that covers an image of this size."""
        return Box(left=0, top=0, right=width, bottom=height)

    @staticmethod
    def around(pixels: Pixels) -> "Box":
        """The box that covers all of `pixels`."""
        return Box.whole(pixels.shape[1], pixels.shape[0])

    def scaled(self, *, of: "Box", to: "Box") -> "Box":
        """The smallest box of image `to` that contains this box of image `of`.

        Both images show the same scene from corner to corner, at different sizes.
        """
        return Box(
            left=self.left * to.width // of.width,
            top=self.top * to.height // of.height,
            right=-(-self.right * to.width // of.width),
            bottom=-(-self.bottom * to.height // of.height),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One picture from a camera.

    `number` is the camera's own frame number, counting from 0; a gap means lost frames.
    `captured_ns` is UTC, in nanoseconds since 1970.
    """

    pixels: Pixels
    number: int
    captured_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Wall time of each stage of one inspection, in seconds; 0 for a pass that was skipped."""

    view_1: float
    pass_1: float
    attention: float
    view_2: float
    pass_2: float

    @property
    def total(self) -> float:
        return self.view_1 + self.pass_1 + self.attention + self.view_2 + self.pass_2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What the two passes found in one frame.

    `score` is γ(x) (Eq 10), the mean of `pass_scores`; `deviation` is Eq 11. `box` is in frame
    pixels and covers the whole frame when there was nothing to zoom into (`zoomed` is False and
    pass 2, which would repeat pass 1 exactly, was skipped). The maps are those of pass 1, raw.
    """

    score: float
    pass_scores: tuple[float, float]
    deviation: float
    box: Box
    zoomed: bool
    attention: Map
    score_map: Map
    times: StageTimes
