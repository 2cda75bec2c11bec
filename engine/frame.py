"""The things that travel through the rooms: a frame, a box in it, and what inspection found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""uint8 pixels: `(H, W)` mono or `(H, W, 3)` RGB."""

Bayer = Literal["bayer_rggb", "bayer_grbg", "bayer_gbrg", "bayer_bggr"]
"""The pattern of raw colour pixels, `(H, W)`: the first two of row 0, then of row 1."""

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

    @staticmethod
    def holding(boxes: "Sequence[Box]") -> "Box":
        """The smallest box that contains all of `boxes`, at least one."""
        return Box(
            left=min(box.left for box in boxes),
            top=min(box.top for box in boxes),
            right=max(box.right for box in boxes),
            bottom=max(box.bottom for box in boxes),
        )

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
    `captured_ns` is UTC, in nanoseconds since 1970. With `bayer` the pixels are raw ones of that
    pattern, for an inspector that takes such. The rest is what a camera may know besides:
    `device_id` names the device, `block_id` is the device's own number of the frame, unwrapped,
    `device_ns` is the time on its clock, `trigger_count` counts the triggers it has seen, and
    `problem` says in one sentence why the frame may not be inspected, such as lost packets.
    `product` is the one whose features the camera had, `""` that of none.
    """

    pixels: Pixels
    number: int
    captured_ns: int
    bayer: Bayer | None = None
    device_id: str | None = None
    block_id: int | None = None
    device_ns: int | None = None
    exposure_us: float | None = None
    trigger_count: int | None = None
    problem: str | None = None
    product: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One run of the network over one view: the `box` of the frame that it showed, and its score.

    `view_s` and `network_s` are wall times in seconds; 0 where a device does not tell them apart.
    """

    box: Box
    score: float
    view_s: float
    network_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRegion:
    """A region of a frame by its name, the `box` that holds it, and its score.

    `corners` are those of a region that is turned, in order; empty: those of the box.
    """

    name: str
    box: Box
    score: float
    corners: tuple[tuple[float, float], ...] = ()

    @classmethod
    def told(cls, said: Mapping[str, Any]) -> "FoundRegion":
        """What `dataclasses.asdict` has made of one, also by way of JSON."""
        corners = tuple((float(x), float(y)) for x, y in said["corners"])
        return cls(name=said["name"], box=Box(**said["box"]), score=said["score"], corners=corners)

    def scaled(self, *, of: Box, to: Box) -> "FoundRegion":
        """The same in an image `to` that shows the frame `of` at another size."""
        across, down = to.width / of.width, to.height / of.height
        corners = tuple((x * across, y * down) for x, y in self.corners)
        return replace(self, box=self.box.scaled(of=of, to=to), corners=corners)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What a method found in one frame.

    `passes` has at least one pass; the first saw the whole frame. `score` is the mean of their
    scores, γ(x) of Eq 10; `deviation` is Eq 11. The maps are those of the first pass, raw.
    Where a bundle has `regions`, passes and score are those of the region with the highest score,
    the first pass saw the whole of it, and the maps are over the frame and show all regions.
    `attention_s` is the wall time from there to the next box. `map_threshold` is the magnitude of
    the score map that is a finding; None: the threshold of the score.
    """

    score: float
    deviation: float
    passes: tuple[Pass, ...]
    attention: Map
    score_map: Map
    attention_s: float = 0.0
    map_threshold: float | None = None
    regions: tuple[FoundRegion, ...] = ()

    @property
    def box(self) -> Box:
        """What the last pass looked at, in frame pixels."""
        return self.passes[-1].box

    @property
    def zoomed(self) -> bool:
        """Whether a part of the frame was looked at more closely."""
        return len(self.passes) > 1

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of each stage, in order: `view_1`, `pass_1`, `attention`, `view_2`, `pass_2`."""
        found: dict[str, float] = {}
        for number, each in enumerate(self.passes, 1):
            found |= {f"view_{number}": each.view_s, f"pass_{number}": each.network_s}
            if number == 1:
                found["attention"] = self.attention_s
        return found

    @property
    def seconds(self) -> float:
        """Wall time of the whole inspection."""
        return sum(self.stages.values())

    def scaled(self, *, of: Box, to: Box) -> "Inspection":
        """The same with the boxes of image `to`, which shows the frame `of` at another size."""
        passes = (replace(each, box=each.box.scaled(of=of, to=to)) for each in self.passes)
        regions = (each.scaled(of=of, to=to) for each in self.regions)
        return replace(self, passes=tuple(passes), regions=tuple(regions))
