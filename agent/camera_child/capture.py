"""What OpenCV decodes without pause: a thread keeps the newest frame alone.

A stream that is not read falls seconds behind, and a read that hangs must not be noticed late.
"""

import threading
from collections.abc import Callable
from time import monotonic, time_ns
from typing import Any, Final

import numpy as np

from agent.camera_child import stream
from agent.camera_child.wire import GoneError, Message

_GRACE_S: Final = 1.0


class Capture:
    """A device of `stream.py` whose frames come out of `opened()`, a `cv2.VideoCapture`.

    Args:
        memory: The shared memory.
        opened: Opens it; may hang.
        remedy: What to check where nothing comes.
        open_s: How long that may take.
        silent_s: After so long without a frame it has gone.
    """

    def __init__(
        self,
        memory: int,
        opened: Callable[[], Any],
        *,
        remedy: str,
        open_s: float,
        silent_s: float,
    ) -> None:
        self._memory = memory
        self._opened = opened
        self._remedy = remedy
        self._open_s = open_s
        self._silent_s = silent_s
        self._slots: stream.Slots | None = None
        self._capture: Any = None
        self._newest: tuple[int, Any] | None = None
        self._came = threading.Condition()
        self._count = 0
        self._has_ended = False
        self._last = monotonic()

    def open(self, sign: Callable[[], None]) -> Message:
        opening = threading.Thread(target=self._open, daemon=True)
        opening.start()
        until = monotonic() + self._open_s + _GRACE_S
        while opening.is_alive() and monotonic() < until:
            opening.join(0.3)
            sign()
        if opening.is_alive() or self._capture is None or not self._capture.isOpened():
            raise GoneError(f"gives no stream within {self._open_s:g} s; check {self._remedy}")
        ok, first = self._capture.read()
        if not ok:
            raise GoneError("gives a stream without a picture; check its codec and its path")
        self._slots = stream.Slots(self._memory, first.nbytes)
        self._keep(first)
        threading.Thread(target=self._decode, daemon=True).start()
        return stream.opened(self._slots, pixel_format="BGR8")

    def _open(self) -> None:
        self._capture = self._opened()

    def _decode(self) -> None:
        while True:
            ok, picture = self._capture.read()
            if not ok:
                break
            self._keep(picture)
        with self._came:
            self._has_ended = True
            self._came.notify()

    def _keep(self, picture: Any) -> None:
        with self._came:
            self._newest = (time_ns(), picture)
            self._last = monotonic()
            self._came.notify()

    def next(self, within_s: float) -> Message | None:
        assert self._slots is not None
        with self._came:
            self._came.wait_for(lambda: self._newest is not None or self._has_ended, within_s)
            newest, self._newest = self._newest, None
            if newest is None and (self._has_ended or monotonic() - self._last > self._silent_s):
                raise GoneError("gives no more frames; it is opened again")
        if newest is None:
            return None
        captured_ns, picture = newest
        height, width = picture.shape[:2]
        if picture.nbytes > self._slots.size:
            raise GoneError("gives larger pictures than before; it is opened again")
        if (slot := self._slots.take()) is None:
            return None
        # Only what is given counts: a picture that a newer one has replaced was nobody's part.
        self._count += 1
        np.frombuffer(self._slots.view(slot), np.uint8, picture.nbytes)[:] = picture.reshape(-1)
        return stream.frame(
            slot,
            width=width,
            height=height,
            pixel_format="BGR8",
            block_id=self._count,
            captured_ns=captured_ns,
        )

    def free(self, slot: int) -> None:
        assert self._slots is not None
        self._slots.free(slot)

    def fire(self) -> None: ...

    def close(self) -> None:
        """The process ends; a reader that hangs is not waited for."""
