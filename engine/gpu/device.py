"""What an inspection on the device is given: frames, and a network at addresses on the GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np

from engine.errors import BackendError, InspectionError
from engine.frame import Bayer, Pixels
from engine.gpu.graph import Graph

Form = Literal["mono", "rgb"] | Bayer
"""What the pixels of a frame mean."""

RED: Final[dict[Form, tuple[int, int]]] = {
    "bayer_rggb": (0, 0),
    "bayer_grbg": (1, 0),
    "bayer_gbrg": (0, 1),
    "bayer_bggr": (1, 1),
}
"""Column and row, 0 or 1, of the first red pixel."""

DeviceMemory = Callable[[int], int]
"""Allocates bytes on the GPU until everything closes, and gives their address."""


class NoRoomError(BackendError):
    """The GPU has no memory for this; it may have after something else is given back."""


MAX_BATCH: Final = 16
"""Networks take 1 to this many views at once, and are fastest at one."""


class DeviceNetwork(Protocol):
    """A network that runs from and to addresses on the GPU."""

    @property
    def name(self) -> str: ...

    def bound(self, **tensors: int) -> Callable[[int, Any], None]:
        """A function that enqueues N views, from and to these addresses, on a stream.

        `tensors` has the address of `views`, uint8 `(count, side, side, 3)`, and of each output of
        the network, float32 `(count, ...)`. It returns at once.
        """
        ...

    def capture(self, stream: Any, record: Callable[[], None]) -> Graph:
        """What `record` enqueues on `stream`, as a graph."""
        ...


DeviceOpening = Callable[[DeviceMemory, Any], DeviceNetwork]
"""Makes the network while the context of its GPU is current; all its work is on this stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A frame's size and form: what its kernels are launched for."""

    width: int
    height: int
    form: Form

    @property
    def channels(self) -> int:
        """Of the frame as the view sees it: 1 for mono, 3 for anything with colours."""
        return 1 if self.form == "mono" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels as the camera gives them."""
        return (self.height, self.width, 3) if self.form == "rgb" else (self.height, self.width)

    @property
    def size(self) -> int:
        """Bytes of the frame as the view sees it."""
        return self.width * self.height * self.channels


def geometry_of(pixels: Pixels, form: Form | None = None) -> Geometry:
    """The geometry of `pixels`; without `form`, two dimensions are mono and three RGB."""
    form = form or ("mono" if pixels.ndim == 2 else "rgb")
    if pixels.ndim < 2 or not pixels.size:
        raise InspectionError(f"{form} frames have rows and columns, not {pixels.shape}")
    found = Geometry(width=pixels.shape[1], height=pixels.shape[0], form=form)
    if pixels.dtype != np.uint8 or pixels.shape != found.shape:
        raise InspectionError(f"{form} frames are uint8 {found.shape}, not {pixels.dtype}")
    if form in RED and min(found.width, found.height) < 3:
        raise InspectionError(
            f"a Bayer frame of {found.width}×{found.height} pixels has no colours"
        )
    return found


def sizes_of(geometries: Sequence[Geometry]) -> str:
    """Frames of these sizes, in words."""
    return ", ".join(f"{each.width}×{each.height} {each.form}" for each in geometries)
