"""The acquisition threads: cameras' frames become triggers and wait to be inspected.

atac-camera: camera.read ─▶ usable, new? ─▶ trigger ─▶ handover ─▶ the cameras' parts in turns
atac-acquisition: watches that a read comes back; one that does not is left where it is, and
another thread goes on with a new camera.

Each camera has two threads of its own, so that none waits for another.
"""

import functools
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter, time_ns
from types import TracebackType
from typing import Final, Self

import numpy as np

from agent.part import State
from agent.ports import Camera
from agent.verdict import Trigger
from engine.errors import CameraError, ImageError
from engine.frame import Frame, Pixels
from engine.image import MAX_PIXELS

_LOG: Final = logging.getLogger("atac_agent.camera")
_FIRST_RETRY_S: Final = 0.25
_LAST_RETRY_S: Final = 5.0
_LARGEST_GAP: Final = 10_000
"""A camera whose numbers jump further has restarted its count; nobody lost that many parts."""
_LOOK_S: Final = 0.25
_CONNECT_S: Final = 15.0
"""How long a camera may take to connect or to let go."""
_BAD_S: Final = 2.0
"""A live camera that gives nothing usable for so long is connected anew; half of it is trouble."""
_LEFT_BEHIND: Final = 3
"""Reads that may be stuck at once; with more of them nothing is gained by another."""
_LARGEST_BYTES: Final = 3 * MAX_PIXELS
_LARGEST_NUMBER: Final = 1 << 62
_SAMPLE: Final = 16
"""Of how many rows and columns one is compared first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """A part whose frame has arrived. `received` is `perf_counter()` of that moment."""

    trigger: Trigger
    frame: Frame
    received: float


class Handover:
    """Where each camera's thread leaves its arrivals and others take them, the cameras in turns.

    Never more than two of one camera wait. Of the cameras that have any the one that was served
    longest ago is next: cameras that always have some get equal shares, and nobody's arrival waits
    for more than one of each other camera, and those of its own.
    """

    _ROOM: Final = 2

    def __init__(self, cameras: Iterable[str]) -> None:
        # In the order of their turns, next first.
        self._waiting: dict[str, deque[Arrival]] = {camera: deque() for camera in cameras}
        self._open = set(self._waiting)
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        # One for each, so that a part that is taken does not wake all cameras.
        self._room = {camera: threading.Condition(lock) for camera in self._waiting}

    def put(self, arrival: Arrival) -> Arrival | None:
        """Leave `arrival` when there is room; gives it back if nobody will take it any more."""
        camera = arrival.trigger.camera
        with self._changed:
            self._room[camera].wait_for(
                lambda: camera not in self._open or len(self._waiting[camera]) < self._ROOM
            )
            if camera not in self._open:
                return arrival
            self._waiting[camera].append(arrival)
            self._changed.notify_all()
            return None

    def replace(self, arrival: Arrival) -> Arrival | None:
        """Leave `arrival` at once; gives back the one that it displaces, as the newest wins."""
        camera = arrival.trigger.camera
        with self._changed:
            if camera not in self._open:
                return arrival
            waiting = self._waiting[camera]
            displaced = waiting.pop() if waiting else None
            waiting.append(arrival)
            self._changed.notify_all()
            return displaced

    def end(self, camera: str) -> None:
        """Nothing more will come of `camera`; what waits can still be taken."""
        with self._changed:
            self._open.discard(camera)
            self._room[camera].notify_all()
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come of any camera."""
        for camera in tuple(self._waiting):
            self.end(camera)

    def __iter__(self) -> Iterator[Arrival]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open or any(self._waiting.values()))
                turn = next((camera for camera, some in self._waiting.items() if some), None)
                if turn is None:
                    return
                self._waiting[turn] = waiting = self._waiting.pop(turn)
                arrival = waiting.popleft()
                self._room[turn].notify_all()
            yield arrival


class Acquisition:
    """Threads that read `camera` until it ends or `stop` is set; a context manager.

    Its parts are left in `handover`. Those that do not arrive there have been given to `end`:
    skipped by a free-running camera (DROPPED), lost by the camera (NO_FRAME), or with a picture
    that is unusable or the same as before (ERROR). A camera that is not ready, goes away, hangs or
    freezes is said once and retried with jittered back-off. An error in these threads sets `stop`,
    and is raised when the context is left.

    `begin(name, part_id, captured_ns)` makes a trigger, or `None` when no more are wanted;
    `end(trigger, state, reason)` ends it.
    """

    def __init__(
        self,
        name: str,
        camera: Camera,
        handover: Handover,
        *,
        begin: Callable[[str, str, int], Trigger | None],
        end: Callable[[Trigger, State, str], None],
        stop: threading.Event,
    ) -> None:
        self._name = name
        self._camera = camera
        self._handover = handover
        self._begin = begin
        self._end = end
        self._stop = stop
        self._expected = 0
        self._trouble: str | None = None
        self._retry_s = _FIRST_RETRY_S
        self._before: Pixels | None = None
        self._bad_since: float | None = None

        self._lock = threading.Lock()
        self._reading = _Reading()
        self._left_behind: list[_Reading] = []
        self._patience = 1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atac-acquisition")

    @property
    def trouble(self) -> str | None:
        """Why no frames come, in one line; `None` while they do."""
        reading = self._reading
        if self._trouble is None and reading.busy_s() > reading.limit_s * self._patience / 2:
            return "has not answered for a while"
        return self._trouble

    def __enter__(self) -> Self:
        self._ended = self._thread.submit(self._watch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._handover.close()
        self._thread.shutdown()
        self._ended.result()

    def _say(self, trouble: str) -> None:
        if self._trouble is None:
            _LOG.warning("camera %s: %s; trying again until it is back", self._name, trouble)
        self._trouble = trouble

    # ---- in the thread that watches

    def _watch(self) -> None:
        try:
            self._start(self._reading)
            while not self._has_ended():
                self._replace_if_stuck()
        except BaseException:
            self._stop.set()
            raise
        finally:
            self._handover.end(self._name)

    def _start(self, reading: "_Reading") -> None:
        """Read in a thread of its own: a daemon, as a stuck one must not keep the agent alive."""
        target = functools.partial(self._read, reading, self._camera)
        threading.Thread(target=target, name=f"atac-camera-{self._name}", daemon=True).start()

    def _has_ended(self) -> bool:
        """Wait a moment for the reading to end; raises what ended it."""
        ended = self._reading.ended
        wait([ended], _LOOK_S)
        if ended.done():
            ended.result()
            return True
        # One that hangs while the agent stops is not waited for.
        return self._stop.is_set() and self._reading.busy_s() > _BAD_S

    def _replace_if_stuck(self) -> None:
        """Leave a read that does not come back, and go on with a new camera."""
        self._left_behind = [one for one in self._left_behind if not one.ended.done()]
        with self._lock:
            stuck = self._reading
            limit_s = stuck.limit_s * self._patience
            if stuck.busy_s() <= limit_s:
                return
            self._say(f"has not answered for {limit_s:g} s")
            if len(self._left_behind) == _LEFT_BEHIND:
                return
            self._left_behind.append(stuck)
            self._reading = _Reading()
        # One that is slow rather than stuck must not be replaced for ever.
        self._patience *= 2
        self._camera = self._camera.renewed()
        self._start(self._reading)

    # ---- in the thread that reads

    def _read(self, reading: "_Reading", camera: Camera) -> None:
        try:
            self._acquire(reading, camera)
        except _LeftBehindError:
            reading.ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that watches
            reading.ended.set_exception(error)
        else:
            reading.ended.set_result(None)

    def _acquire(self, reading: "_Reading", camera: Camera) -> None:
        while not self._stop.is_set():
            reading.begin(_CONNECT_S)
            try:
                with camera:
                    self._check_answer(reading)
                    try:
                        self._receive(reading, camera)
                    finally:
                        reading.begin(_CONNECT_S)
                return
            except CameraError as error:
                self._check_answer(reading)
                self._say(str(error))
            self._stop.wait(self._retry_s * random.uniform(0.5, 1.0))
            self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    def _receive(self, reading: "_Reading", camera: Camera) -> None:
        first = True
        while not self._stop.is_set():
            reading.begin(camera.silence_s)
            try:
                frame = camera.read()
                received = perf_counter()
            except ImageError as error:
                self._check_answer(reading)
                self._reject(camera, self._expected, str(error))
                continue
            self._check_answer(reading)
            if frame is None:
                return
            if not (0 <= frame.number < _LARGEST_NUMBER > frame.captured_ns >= 0):
                told = f"frame number {frame.number}, time {frame.captured_ns}"
                self._reject(camera, self._expected, f"the camera gave {told}")
                continue
            if not first:
                self._account_for_gap(camera, frame.number)
            first = False
            if (fault := self._fault(camera, frame)) is not None:
                self._reject(camera, frame.number, fault)
                continue
            self._is_well()
            self._expected = frame.number + 1
            part_id = camera.part_id(frame.number) or ""
            trigger = self._begin(self._name, part_id, frame.captured_ns)
            if trigger is None:
                return
            arrival = Arrival(trigger=trigger, frame=frame, received=received)
            if camera.triggered:
                if (refused := self._handover.put(arrival)) is not None:
                    self._end(refused.trigger, State.DROPPED, "the agent was stopping")
            elif (skipped := self._handover.replace(arrival)) is not None:
                self._end(skipped.trigger, State.DROPPED, "a newer frame came first")

    def _check_answer(self, reading: "_Reading") -> None:
        """The camera has answered; raises `_LeftBehindError` when nobody waits for it any more."""
        with self._lock:
            if reading is not self._reading:
                raise _LeftBehindError
            reading.end()

    def _is_well(self) -> None:
        self._retry_s, self._patience, self._bad_since = _FIRST_RETRY_S, 1, None
        if self._trouble is not None:
            _LOG.warning("camera %s: is back", self._name)
            self._trouble = None

    def _fault(self, camera: Camera, frame: Frame) -> str | None:
        """What is wrong with a frame, if anything is."""
        pixels, before = frame.pixels, self._before
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

    def _reject(self, camera: Camera, number: int, reason: str) -> None:
        """End a part whose picture is of no use; a camera that gives no others is in trouble."""
        self._lose(camera, number, State.ERROR, reason)
        now = monotonic()
        if self._bad_since is None:
            self._bad_since = now
        if now - self._bad_since >= _BAD_S / 2:
            self._say(reason)
        if now - self._bad_since >= _BAD_S and camera.is_live:
            raise CameraError(reason)

    def _account_for_gap(self, camera: Camera, number: int) -> None:
        missing = range(self._expected, number)
        if len(missing) > _LARGEST_GAP:
            jump = self._expected - 1, number
            _LOG.warning("camera %s: frame numbers jump from %d to %d", self._name, *jump)
            return
        for lost in missing:
            self._lose(camera, lost, State.NO_FRAME, f"the camera lost frame {lost}")

    def _lose(self, camera: Camera, number: int, state: State, reason: str) -> None:
        trigger = self._begin(self._name, camera.part_id(number) or "", time_ns())
        if trigger is not None:
            self._end(trigger, state, reason)
        self._expected = number + 1


@contextmanager
def acquiring(acquisitions: Iterable[Acquisition]) -> Iterator[None]:
    """Within this context all of them read."""
    with ExitStack() as stack:
        for each in acquisitions:
            stack.enter_context(each)
        yield


class _LeftBehindError(Exception):
    """This reading has been replaced while the camera did not answer."""


class _Reading:
    """One thread's reading: since when the camera owes it an answer, and how it ended."""

    def __init__(self) -> None:
        self.ended: Future[None] = Future()
        self.limit_s = _CONNECT_S
        self._since: float | None = None

    def begin(self, limit_s: float | None) -> None:
        """The camera is asked; it may take so long, or as long as it likes."""
        if limit_s is not None:
            self.limit_s = limit_s
            self._since = monotonic()

    def end(self) -> None:
        self._since = None

    def busy_s(self) -> float:
        """For how long the camera has owed an answer."""
        since = self._since
        return 0.0 if since is None else monotonic() - since


def _is_same(before: Pixels | None, pixels: Pixels) -> bool:
    """Whether two pictures are equal; quick where they are not, as nearly always."""
    return (
        before is not None
        and np.array_equal(before[::_SAMPLE, ::_SAMPLE], pixels[::_SAMPLE, ::_SAMPLE])
        and np.array_equal(before, pixels)
    )
