"""The acquisition thread: a camera's frames become triggers and wait to be inspected."""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter, time_ns
from types import TracebackType
from typing import Final

from agent.cameras import Camera
from agent.verdict import State, Trigger
from engine.errors import CameraError, ImageError
from engine.frame import Frame

_LOG: Final = logging.getLogger("atac_agent.camera")
_FIRST_RETRY_S: Final = 0.25
_LAST_RETRY_S: Final = 5.0
_LARGEST_GAP: Final = 10_000
"""A camera whose numbers jump further has restarted its count; nobody lost that many parts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """A part whose frame has arrived. `received` is `perf_counter()` of that moment."""

    trigger: Trigger
    frame: Frame
    received: float


class Handover:
    """Where one thread leaves arrivals and another takes them; never more than two wait."""

    _ROOM: Final = 2

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Arrival] = deque()
        self._closed = False

    def put(self, arrival: Arrival) -> Arrival | None:
        """Leave `arrival` when there is room; gives it back if nobody will take it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._ROOM)
            if self._closed:
                return arrival
            self._waiting.append(arrival)
            self._changed.notify_all()
            return None

    def replace(self, arrival: Arrival) -> Arrival | None:
        """Leave `arrival` at once; gives back the one that it displaces, as the newest wins."""
        with self._changed:
            if self._closed:
                return arrival
            displaced = self._waiting.pop() if self._waiting else None
            self._waiting.append(arrival)
            self._changed.notify_all()
            return displaced

    def close(self) -> None:
        """Nothing more will come; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Arrival]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if not self._waiting:
                    return
                arrival = self._waiting.popleft()
                self._changed.notify_all()
            yield arrival


class Acquisition:
    """A thread that reads `camera` until it ends, `parts` have begun or `stop` is set.

    A context manager; entering gives the arrivals, to be iterated by one thread. Parts that do not
    arrive there have been given to `end`: skipped by a free-running camera (DROPPED), lost by the
    camera (NO_FRAME) or with an unusable picture (ERROR). A camera that is not ready or goes away
    is said once and retried with jittered back-off.

    `begin(part_id, captured_ns)` makes a trigger; `end(trigger, state, reason)` ends it.
    """

    def __init__(
        self,
        camera: Camera,
        *,
        begin: Callable[[str, int], Trigger],
        end: Callable[[Trigger, State, str], None],
        stop: threading.Event,
        parts: int | None = None,
    ) -> None:
        self._camera = camera
        self._begin = begin
        self._end = end
        self._stop = stop
        self._parts = parts
        self._begun = 0
        self._expected = 0
        self._handover = Handover()
        self._trouble: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atac-acquisition")

    @property
    def trouble(self) -> str | None:
        """Why no frames come, in one line; `None` while they do."""
        return self._trouble

    def __enter__(self) -> Handover:
        self._ended = self._thread.submit(self._run)
        return self._handover

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

    def _run(self) -> None:
        try:
            self._acquire()
        finally:
            self._handover.close()

    def _acquire(self) -> None:
        retry_s = _FIRST_RETRY_S
        while not self._stop.is_set():
            begun = self._begun
            try:
                with self._camera as camera:
                    self._receive(camera)
                    return
            except CameraError as error:
                if self._trouble is None:
                    _LOG.warning("%s; trying again until it is back", error)
                self._trouble = str(error)
            retry_s = _FIRST_RETRY_S if self._begun > begun else min(2 * retry_s, _LAST_RETRY_S)
            self._stop.wait(retry_s * random.uniform(0.5, 1.0))

    def _receive(self, camera: Camera) -> None:
        first = True
        while not self._stop.is_set() and self._begun != self._parts:
            try:
                frame = camera.read()
                received = perf_counter()
            except ImageError as error:
                self._lose(camera, self._expected, State.ERROR, str(error))
                continue
            if frame is None:
                return
            if self._trouble is not None:
                _LOG.warning("the camera is back")
                self._trouble = None
            if not first:
                self._account_for_gap(camera, frame.number)
            first = False
            if self._begun == self._parts:
                return
            self._expected = frame.number + 1
            trigger = self._begin(camera.part_id(frame.number), frame.captured_ns)
            self._begun += 1
            arrival = Arrival(trigger=trigger, frame=frame, received=received)
            if camera.triggered:
                if (refused := self._handover.put(arrival)) is not None:
                    self._end(refused.trigger, State.DROPPED, "the agent was stopping")
            elif (skipped := self._handover.replace(arrival)) is not None:
                self._end(skipped.trigger, State.DROPPED, "a newer frame came first")

    def _account_for_gap(self, camera: Camera, number: int) -> None:
        missing = range(self._expected, number)
        if len(missing) > _LARGEST_GAP:
            _LOG.warning("frame numbers jump from %d to %d", self._expected - 1, number)
            return
        for lost in missing:
            if self._begun == self._parts:
                return
            self._lose(camera, lost, State.NO_FRAME, f"the camera lost frame {lost}")

    def _lose(self, camera: Camera, number: int, state: State, reason: str) -> None:
        self._end(self._begin(camera.part_id(number), time_ns()), state, reason)
        self._begun += 1
        self._expected = number + 1
