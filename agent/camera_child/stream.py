"""The child's side of a device that gives frames by itself.

    device ── open, next ──▶ serve ── frame in a slot of the shared memory, its facts ──▶ agent
           ◀── free, fire, adjust ──   ◀── this slot is free, expose now, be set up like this ──

A module of this package has `serve`, which makes a `Device` and calls `serve` of this module. The
device writes the pixels of each frame into a slot itself, as they come from the wire or out of a
decoder; the agent's copy out of the slot is the only one. Imports nothing but Python's own.
"""

import ctypes
import mmap
import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol, runtime_checkable

from agent.camera_child.wire import GoneError, Message, RefusedError, receive, send

_SIGN_S: Final = 0.3
_MOST_SLOTS: Final = 32
_FEWEST_SLOTS: Final = 3
_MOST_BYTES: Final = 256 << 20


class Device(Protocol):
    """One camera, as its vendor's code knows it. Made, it has touched nothing.

    The main thread calls `open`, then `next` again and again, then `close`, also after an error. A
    second thread calls `free` and `fire` meanwhile; the main thread may call `fire` too. Any of
    them may raise `GoneError` when the camera cannot be used now, and `open` may raise
    `RefusedError` when it never can with this configuration. What hangs or crashes is noticed by
    the agent.
    """

    def open(self, sign: Callable[[], None]) -> Message:
        """Connect, configure and start; gives what `DeviceCamera` calls `Opened`.

        Call `sign` at least every few seconds.
        """
        ...

    def next(self, within_s: float) -> Message | None:
        """The next frame, as `frame` makes it; `None` when there is none in time."""
        ...

    def free(self, slot: int) -> None:
        """The agent has what was in this slot."""
        ...

    def fire(self) -> None:
        """Have the camera expose now."""
        ...

    def close(self) -> None:
        """Stop, and give the camera back to others."""
        ...


@runtime_checkable
class Adjustable(Protocol):
    """A device whose features may change while it is open; the main thread calls."""

    def pause(self) -> None:
        """Have the camera give no more frames; `next` gives those that are there."""
        ...

    def adjust(self, features: Sequence[tuple[str, Any]], sign: Callable[[], None]) -> Message:
        """Write these features, and start again; gives what `open` gives.

        Raises `RefusedError` for a feature that it does not take, and goes on with what it has;
        `GoneError` where it has to be opened again.
        """
        ...


class Slots:
    """The shared memory as slots of `size` bytes each, as many as are reasonable.

    A device that fills slots by itself takes a free one with `take`; one that owns them all, such
    as by addresses given to a driver, does not.
    """

    def __init__(self, file: int, size: int) -> None:
        self.size = size + -size % mmap.PAGESIZE
        self.count = min(_MOST_SLOTS, max(_FEWEST_SLOTS, _MOST_BYTES // self.size))
        if os.fstat(file).st_size < self.count * self.size:  # never less: the agent has it mapped
            os.ftruncate(file, self.count * self.size)
        self.memory = memoryview(mmap.mmap(file, self.count * self.size))
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.count):
            self._free.put(slot)

    def view(self, slot: int) -> memoryview:
        """The memory of a slot."""
        return self.memory[slot * self.size : (slot + 1) * self.size]

    def address(self, slot: int) -> int:
        """Where a slot begins in this process."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + slot * self.size

    def take(self) -> int | None:
        """A free slot; `None` while the agent has all of them: this frame is lost."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return None

    def free(self, slot: int) -> None:
        """This slot may be taken again."""
        self._free.put(slot)


def opened(slots: Slots, *, pixel_format: str, **more: object) -> Message:
    """What `Device.open` gives: the memory, the format of the pixels, and what is known besides.

    Args:
        slots: Where the frames will be.
        pixel_format: A name of `agent/cameras/pixel_formats.py`, which the agent checks.
        more: Any fields of `Opened`: `id`, `vendor`, `model`, `serial`, `firmware`, `features`, …
    """
    return {"slot_bytes": slots.size, "pixel_format": pixel_format, **more}


def frame(
    slot: int,
    *,
    width: int,
    height: int,
    pixel_format: str,
    block_id: int,
    captured_ns: int,
    stride: int | None = None,
    device_ns: int | None = None,
    exposure_us: float | None = None,
    trigger_count: int | None = None,
    problem: str | None = None,
) -> Message:
    """What `Device.next` gives.

    Args:
        slot: Where its pixels are.
        width: In pixels.
        height: In pixels.
        pixel_format: A name of `agent/cameras/pixel_formats.py`.
        block_id: The camera's own number of the frame, as it gives it.
        captured_ns: UTC when it began to arrive.
        stride: Bytes from row to row, where they are not those of `width` pixels.
        device_ns: The time on the camera's clock.
        exposure_us: Its exposure, where the camera says so.
        trigger_count: How many triggers the camera has counted, where it does.
        problem: Why it may not be inspected, with the remedy, in one sentence.
    """
    return {
        "frame": slot,
        "width": width,
        "height": height,
        "pixel_format": pixel_format,
        "block_id": block_id,
        "captured_ns": captured_ns,
        "stride": stride,
        "device_ns": device_ns,
        "exposure_us": exposure_us,
        "trigger_count": trigger_count,
        "problem": problem,
    }


def serve(connection: Connection, device: Device) -> None:
    """Serve `device` to the agent until it closes the connection."""
    _Serving(connection, device).run()


class _Serving:
    def __init__(self, connection: Connection, device: Device) -> None:
        self._connection = connection
        self._device = device
        self._telling = threading.Lock()
        self._is_over = threading.Event()
        self._failure: GoneError | None = None
        self._waiting = threading.Lock()
        self._wanted: Message | None = None
        self._is_fired = False

    def run(self) -> None:
        receive(self._connection)  # the agent asks for it to be opened
        try:
            self._tell({"opened": self._device.open(lambda: self._tell({"doing": "open"}))})
            threading.Thread(target=self._obey, daemon=True).start()
            while not self._is_over.is_set():
                if self._failure is not None:
                    raise self._failure
                if self._wanted is not None:
                    self._adjust(self._wanted)
                self._tell(self._device.next(_SIGN_S) or {"doing": "wait"})
        except GoneError as error:
            self._tell({"gone": str(error)})
        except RefusedError as error:
            self._tell({"refused": error.key, "value": error.value, "remedy": error.remedy})
        finally:
            self._device.close()

    def _adjust(self, wanted: Message) -> None:
        """Have the device as the agent wants it; frames that are there come before it says so."""
        assert isinstance(self._device, Adjustable), "asked of cameras with features only"
        self._device.pause()
        for _ in range(_MOST_SLOTS):
            if (before := self._device.next(0)) is None:
                break
            self._tell(before)
        told: Message = {"adjusted": wanted["product"]}
        try:
            sign = lambda: self._tell({"doing": "adjust"})  # noqa: E731 - one word
            told["opened"] = self._device.adjust(wanted["features"], sign)
        except RefusedError as error:
            told |= {"refused": error.key, "value": error.value, "remedy": error.remedy}
        self._tell(told)
        with self._waiting:
            if self._wanted is not wanted:
                return
            self._wanted, is_fired = None, self._is_fired
            self._is_fired = False
        if is_fired:
            self._device.fire()

    def _fire(self) -> None:
        with self._waiting:
            if self._wanted is not None:  # it exposes when it is as it is wanted
                self._is_fired = True
                return
        self._device.fire()

    def _obey(self) -> None:
        """Do as the agent says until it goes; in a thread of its own, as `next` waits."""
        with suppress(EOFError, OSError):
            while True:
                request = receive(self._connection)
                try:
                    match request["do"]:
                        case "free":
                            self._device.free(request["slot"])
                        case "fire":
                            self._fire()
                        case "adjust":
                            with self._waiting:
                                self._wanted = request
                except GoneError as error:
                    self._failure = error
        self._is_over.set()

    def _tell(self, message: Message) -> None:
        with self._telling:
            send(self._connection, message)
