"""The camera threads: they read, and see to it that cameras answer and give usable frames.

    atac-camera       camera.read ─▶ usable, new? ─▶ intake ─▶ part ─▶ queue
    atac-acquisition  watches that a read comes back; one that does not is left where it is, and
                      another thread continues with a new camera

Each camera has two threads of its own, so that none waits for another. What a frame becomes is the
`Intake`'s: a part of its own, or the frame of a part that was announced before.
"""

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol, Self

import numpy as np

from agent.part import Part, State
from agent.ports import Adjusted, Camera, Clock, Fired
from agent.station.queue import PartQueue
from agent.station.retry import Backoff
from engine.errors import CameraError, FrameLostError, ImageError
from engine.frame import Frame, Pixels
from engine.image import MAX_PIXELS

_LOG: Final = logging.getLogger("atac_agent.camera")
_LARGEST_GAP: Final = 10_000
"""If frame numbers jump further, the camera restarted its count; no parts were lost."""
_LOOK_S: Final = 0.25
_CONNECT_S: Final = 15.0
"""How long a camera may take to connect or to disconnect."""
_BAD_S: Final = 2.0
"""A live camera without a usable frame for this long is reopened; half of it is a fault."""
_CALM_S: Final = 3.0
"""A camera that waits for parts is back when it has been connected for so long."""
_ABANDONED: Final = 3
"""How many reads may hang at once; another thread would not help."""
_LARGEST_BYTES: Final = 3 * MAX_PIXELS
_LARGEST_NUMBER: Final = 1 << 62
_SAMPLE: Final = 16
"""One in this many rows and columns is compared first."""


class Names(Protocol):
    """What a camera knows of the parts in its recent frames."""

    def part_id(self, number: int) -> str | None: ...
    def source(self, number: int) -> str | None: ...


class Intake(Protocol):
    """Turns what one camera gives into parts; called by the thread that reads."""

    def connected(self) -> None:
        """The camera is connected, perhaps once more: its numbers may start again."""
        ...

    def seen(self, frame: Frame, names: Names, received: float) -> bool:
        """Take a frame that arrived at `received`; `False` when no more are wanted."""
        ...

    def spoilt(self, frame: Frame | None, names: Names, why: str) -> None:
        """Take note of a frame that cannot be used; `None`: it has the number after the last."""
        ...

    def lost(self, names: Names, why: str) -> None:
        """Take note of a frame that the camera knows it has lost, the one after the last."""
        ...


class Begin(Protocol):
    """Makes the part of a trigger; `None` when no more are wanted.

    With `is_dated` False it was missed, and `received` is when that was noticed.
    """

    def __call__(
        self,
        camera: str,
        *,
        received: float,
        triggered_ns: int,
        part_id: str | None = None,
        source: str | None = None,
        count: int | None = None,
        product: str | None = None,
        is_dated: bool = True,
    ) -> Part | None: ...


End = Callable[[Part, State, str], None]
"""Ends a part that is not inspected, for a reason."""


class FrameIntake:
    """Every frame is a part: the trigger source `frames`.

    A part that the camera skipped (DROPPED), lost (NO_FRAME) or gave a frame for that is unusable
    (ERROR) is ended here; the others are left in the queue, and wait there or, of a camera that
    runs freely, give way to the newest.
    """

    def __init__(
        self, name: str, queue: PartQueue, *, begin: Begin, end: End, clock: Clock, waits: bool
    ) -> None:
        self._name = name
        self._queue = queue
        self._begin = begin
        self._end = end
        self._clock = clock
        self._waits = waits
        self._expected = 0
        self._is_first = True

    def connected(self) -> None:
        self._is_first = True

    def seen(self, frame: Frame, names: Names, received: float) -> bool:
        self._account_for_gap(frame.number, names)
        self._expected = frame.number + 1
        part = self._begin(
            self._name,
            received=received,
            triggered_ns=frame.captured_ns,
            part_id=names.part_id(frame.number),
            source=names.source(frame.number),
        )
        if part is None:
            return False
        part.frame = frame
        if self._waits:
            if (refused := self._queue.put(part)) is not None:
                self._end(refused, State.DROPPED, "the agent was stopping")
        elif (skipped := self._queue.replace(part)) is not None:
            self._end(skipped, State.DROPPED, "a newer frame came first")
        return True

    def spoilt(self, frame: Frame | None, names: Names, why: str) -> None:
        number = self._expected if frame is None else frame.number
        if frame is not None:
            self._account_for_gap(number, names)
        self._lose(number, names, State.ERROR, why)

    def lost(self, names: Names, why: str) -> None:
        self._lose(self._expected, names, State.NO_FRAME, why)

    def _account_for_gap(self, number: int, names: Names) -> None:
        missing = range(0) if self._is_first else range(self._expected, number)
        self._is_first = False
        if len(missing) > _LARGEST_GAP:
            jump = self._expected - 1, number
            _LOG.warning("camera %s: frame numbers jump from %d to %d", self._name, *jump)
            return
        for lost in missing:
            self._lose(lost, names, State.NO_FRAME, f"the camera lost frame {lost}")

    def _lose(self, number: int, names: Names, state: State, reason: str) -> None:
        part = self._begin(
            self._name,
            received=self._clock.now(),
            triggered_ns=self._clock.utc_ns(),
            part_id=names.part_id(number),
            source=names.source(number),
            is_dated=state is not State.NO_FRAME,
        )
        if part is not None:
            self._end(part, state, reason)
        self._expected = number + 1


class Acquisition:
    """Threads that read `camera` until it ends or `stop` is set; a context manager.

    A camera that is not ready, goes away, hangs or freezes is said once and retried with
    exponential back-off. An error in these threads sets `stop`, and is raised when the context is
    left.

    Args:
        name: The camera's name.
        camera: Made, not entered.
        intake: Gets every frame, and note of those that cannot be used.
        queue: Is told when the camera has ended.
        stop: Ends the reading; set on leaving.
        clock: Times the camera's answers.
    """

    def __init__(
        self,
        name: str,
        camera: Camera,
        intake: Intake,
        queue: PartQueue,
        *,
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        self._name = name
        self._camera = camera
        self._intake = intake
        self._queue = queue
        self._stop = stop
        self._clock = clock
        self._fault: str | None = None
        self._backoff = Backoff(clock, stop)
        self._before: Pixels | None = None
        self._bad_since: float | None = None
        self._is_receiving = False
        self._receiving_since: float | None = None

        self._lock = threading.Lock()
        self._reading = _Reading(clock)
        self._abandoned: list[_Reading] = []
        self._patience = 1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atac-acquisition")

    @property
    def fault(self) -> str | None:
        """Why no frames come, in one line; `None` while they do."""
        reading = self._reading
        if self._fault is None and reading.busy_s() > reading.limit_s * self._patience / 2:
            return "has not answered for a while"
        return self._fault or self._camera.fault

    def fire(self) -> bool:
        """Have a camera that waits for the agent expose now; `False` where it is away."""
        camera = self._camera
        if not self._is_receiving or not isinstance(camera, Fired):
            return False
        camera.fire()
        return True

    def adjust(self, product: str) -> Future[str | None] | None:
        """Have a camera set up for a product; `None` where it is alike for all of them."""
        camera = self._camera
        return camera.adjust(product) if isinstance(camera, Adjusted) else None

    def __enter__(self) -> Self:
        self._ended = self._thread.submit(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._queue.close()
        self._thread.shutdown()
        self._ended.result()

    def _say(self, fault: str) -> None:
        if self._fault is None:
            _LOG.warning("camera %s: %s; trying again until it is back", self._name, fault)
        self._fault = fault

    # ---- in the thread that watches

    def _watch(self) -> None:
        try:
            self._start(self._reading)
            while not self._has_ended():
                self._replace_if_stuck()
                self._notice_calm()
        except BaseException:
            self._stop.set()
            raise
        finally:
            self._queue.end(self._name)

    def _start(self, reading: "_Reading") -> None:
        """Read in a thread of its own: a daemon, as a stuck one must not keep the agent alive."""
        target = functools.partial(self._read, reading, self._camera)
        threading.Thread(target=target, name=f"atac-camera-{self._name}", daemon=True).start()

    def _has_ended(self) -> bool:
        """Wait a moment for the reading to end; raises what ended it."""
        reading = self._reading
        if self._clock.wait(reading.ended, _LOOK_S):
            if reading.error is not None:
                raise reading.error
            return True
        # One that hangs while the agent stops is not waited for.
        return self._stop.is_set() and self._reading.busy_s() > _BAD_S

    def _replace_if_stuck(self) -> None:
        """Abandon a read that does not come back, and continue with a new camera."""
        self._abandoned = [one for one in self._abandoned if not one.ended.is_set()]
        with self._lock:
            stuck = self._reading
            limit_s = stuck.limit_s * self._patience
            if stuck.busy_s() <= limit_s:
                return
            self._say(f"has not answered for {limit_s:g} s")
            if len(self._abandoned) == _ABANDONED:
                return
            self._abandoned.append(stuck)
            self._reading = _Reading(self._clock)
        # One that is slow rather than stuck must not be replaced for ever.
        self._patience *= 2
        self._camera = self._camera.renewed()
        self._start(self._reading)

    def _notice_calm(self) -> None:
        """A camera whose frames come when they come is back although none has come yet."""
        since = self._receiving_since
        if (
            self._fault is not None
            and since is not None
            and self._clock.now() - since >= _CALM_S
            and self._camera.silence_s is None
            and self._bad_since is None
        ):
            self._is_well()

    # ---- in the thread that reads

    def _read(self, reading: "_Reading", camera: Camera) -> None:
        try:
            self._acquire(reading, camera)
        except _AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that watches
            reading.error = error
        reading.ended.set()

    def _acquire(self, reading: "_Reading", camera: Camera) -> None:
        while not self._stop.is_set():
            reading.begin(_CONNECT_S)
            try:
                with camera:
                    self._check_answer(reading)
                    try:
                        self._receive(reading, camera)
                    finally:
                        self._is_receiving, self._receiving_since = False, None
                        reading.begin(_CONNECT_S)
                return
            except CameraError as error:
                self._check_answer(reading)
                self._say(str(error))
            self._backoff.wait()

    def _receive(self, reading: "_Reading", camera: Camera) -> None:
        self._intake.connected()
        # Only now: what was fired before would count as owed by a camera that has lost it.
        self._is_receiving = True
        self._receiving_since = self._clock.now()
        while not self._stop.is_set():
            reading.begin(camera.silence_s)
            try:
                frame = camera.read()
                received = self._clock.now()
            except FrameLostError as error:
                self._check_answer(reading)
                self._intake.lost(camera, str(error))
                continue
            except ImageError as error:
                self._check_answer(reading)
                self._reject(camera, None, str(error))
                continue
            self._check_answer(reading)
            if frame is None:
                return
            if not (0 <= frame.number < _LARGEST_NUMBER > frame.captured_ns >= 0):
                told = f"frame number {frame.number}, time {frame.captured_ns}"
                self._reject(camera, None, f"the camera gave {told}")
            elif (problem := self._problem(camera, frame)) is not None:
                self._reject(camera, frame, problem)
            else:
                self._is_well()
                if not self._intake.seen(frame, camera, received):
                    return

    def _check_answer(self, reading: "_Reading") -> None:
        """The camera has answered; raises `_AbandonedError` when nobody waits for it any more."""
        with self._lock:
            if reading is not self._reading:
                raise _AbandonedError
            reading.end()

    def _is_well(self) -> None:
        self._backoff.reset()
        self._patience, self._bad_since = 1, None
        if self._fault is not None:
            _LOG.warning("camera %s: is back", self._name)
            self._fault = None

    def _problem(self, camera: Camera, frame: Frame) -> str | None:
        """What is wrong with a frame, if anything is."""
        pixels, before = frame.pixels, self._before
        if frame.problem is not None:
            return frame.problem
        if pixels.dtype != np.uint8 or not (
            pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
        ):
            return f"the camera gave {pixels.dtype} {pixels.shape} for a picture"
        if not 0 < pixels.size <= _LARGEST_BYTES:
            return f"the camera gave a picture of {pixels.shape[1]}×{pixels.shape[0]} pixels"
        if not camera.is_live:
            return None
        self._before = pixels
        return "the camera shows the same picture again" if _is_same(before, pixels) else None

    def _reject(self, camera: Camera, frame: Frame | None, reason: str) -> None:
        """A frame is of no use; a camera that gives no others has a fault."""
        self._intake.spoilt(frame, camera, reason)
        now = self._clock.now()
        if self._bad_since is None:
            self._bad_since = now
        if now - self._bad_since >= _BAD_S / 2:
            self._say(reason)
        if now - self._bad_since >= _BAD_S and camera.is_live:
            raise CameraError(reason)


class _AbandonedError(Exception):
    """This reading has been replaced while the camera did not answer."""


class _Reading:
    """One thread's reading: since when the camera owes it an answer, and how it ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.limit_s = _CONNECT_S
        self._since: float | None = None

    def begin(self, limit_s: float | None) -> None:
        """The camera is asked; it may take so long, or as long as it likes."""
        if limit_s is not None:
            self.limit_s = limit_s
            self._since = self._clock.now()

    def end(self) -> None:
        self._since = None

    def busy_s(self) -> float:
        """For how long the camera has owed an answer."""
        since = self._since
        return 0.0 if since is None else self._clock.now() - since


def _is_same(before: Pixels | None, pixels: Pixels) -> bool:
    """Whether two pictures are equal; quick where they are not, as nearly always."""
    return (
        before is not None
        and np.array_equal(before[::_SAMPLE, ::_SAMPLE], pixels[::_SAMPLE, ::_SAMPLE])
        and np.array_equal(before, pixels)
    )
