"""Parts that are announced before their frames: the threads of a trigger source.

    atac-trigger     source.read ─▶ announcement ─┐
    atac-camera      camera.read ─▶ frame ────────┴▶ Reconciler ─▶ part, its frame, its id
    atac-reconciler  ends the parts whose window has passed

A part begins with its announcement, and its deadline counts from there.
"""

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Self

from agent.part import Part, State
from agent.ports import Announcement, Clock, TriggerSource
from agent.station.acquisition import Begin, End, Names
from agent.station.queue import PartQueue
from agent.station.retry import Backoff
from agent.triggers.reconcile import (
    Action,
    Begun,
    Ended,
    Named,
    Paired,
    Reconciler,
    Unclaimed,
    Unexpected,
    Window,
)
from agent.triggers.settings import WindowSettings
from engine.errors import TriggerError
from engine.frame import Frame

_LOG: Final = logging.getLogger("atac_agent.trigger")
_REMEMBERED: Final = 1000
_FAULT_S: Final = 60.0
"""How long what went wrong once is shown."""
_IDLE_S: Final = 3600.0
_JOIN_S: Final = 5.0
_STEADY_S: Final = 2.0
"""A source that has been connected for this long is well, even if no part comes."""


class TriggerIntake:
    """Gives each announced part its frame and its id; called by several threads.

    `unexpected` counts the frames that were given to no part; `gives_ids` says whether the source
    has ever named a part. `fire` is called for each part that is announced, so that a camera that
    waits for the agent exposes; it must not wait.
    """

    def __init__(
        self,
        name: str,
        queue: PartQueue,
        settings: WindowSettings,
        *,
        begin: Begin,
        end: End,
        clock: Clock,
    ) -> None:
        self._name = name
        self._queue = queue
        self._begin = begin
        self._end = end
        self._clock = clock
        self._lock = threading.Lock()
        self._reconciler = Reconciler(
            Window(min_s=settings.min_ms / 1e3, max_s=settings.max_ms / 1e3)
        )
        self._parts: OrderedDict[int, Part] = OrderedDict()
        self._names: Names | None = None
        self._is_connected = False
        self._is_over = False
        self._fault: tuple[float, str] | None = None
        self.changed: Final = threading.Event()
        self.fire: Callable[[], None] = lambda: None
        self.unexpected = 0
        self.gives_ids = False

    @property
    def fault(self) -> str | None:
        """What went wrong between trigger and camera in the last minute."""
        fault = self._fault
        is_recent = fault is not None and self._clock.now() - fault[0] < _FAULT_S
        return fault[1] if fault is not None and is_recent else None

    def due(self) -> float | None:
        """When `passed` has to be called next."""
        with self._lock:
            return self._reconciler.due

    # ---- by the trigger's threads

    def announced(self, announcement: Announcement) -> None:
        """The source has announced a part, or named one."""
        self.gives_ids |= announcement.part_id is not None
        with self._lock:
            if self._is_over:
                return
            actions = self._reconciler.announced(announcement)
            if _begins(actions):
                self.fire()
            self._do(actions)

    def passed(self) -> None:
        """Time has passed."""
        with self._lock:
            self._do(self._reconciler.passed(self._clock.now()))

    def finish(self) -> None:
        """No more parts are wanted; what is open ends."""
        with self._lock:
            self._is_over = True
            self._do(self._reconciler.ended())

    # ---- by the camera's thread

    def connected(self) -> None:
        """The camera is connected, perhaps once more: what it owed does not come any more."""
        with self._lock:
            if self._is_connected:
                self._do(self._reconciler.restarted())
            self._is_connected = True

    def seen(self, frame: Frame, names: Names, received: float) -> bool:
        """A frame has arrived; the trigger source alone knows part ids."""
        with self._lock:
            self._names = names
            self._do(self._reconciler.seen(frame, received))
        return True

    def lost(self, names: Names, why: str) -> None:
        """A frame was lost: its part ends with its window, and the next frame's number tells."""

    def spoilt(self, frame: Frame | None, names: Names, why: str) -> None:
        """A frame has arrived that cannot be used."""
        del names
        number = None if frame is None else frame.number
        count = None if frame is None else frame.trigger_count
        with self._lock:
            self._do(self._reconciler.spoilt(number, count, self._clock.now(), why))

    # ---- with the lock

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Begun():
                    self._begun(action.index, action.announcement)
                case Paired():
                    self._paired(action.index, action.frame)
                case Ended():
                    if (part := self._parts.get(action.index)) is not None:
                        self._end(part, action.state, action.reason)
                case Named():
                    self._named(action.index, action.part_id)
                case Unexpected():
                    self.unexpected += 1
                    self._say(f"a frame was given to no part: {action.reason}")
                case Unclaimed():
                    self._say(f"a part id belongs to no part: {action.part_id!r}")
        if self._reconciler.fault is not None:
            self._say(self._reconciler.fault)
            self._reconciler.fault = None
        self.changed.set()

    def _begun(self, index: int, announcement: Announcement) -> None:
        ago_s = self._clock.now() - announcement.at
        part = self._begin(
            self._name,
            received=announcement.at,
            triggered_ns=self._clock.utc_ns() - round(ago_s * 1e9),
            part_id=announcement.part_id,
            count=announcement.count,
        )
        if part is None:
            self._is_over = True
            return
        self._parts[index] = part
        if len(self._parts) > _REMEMBERED:
            self._parts.popitem(last=False)

    def _paired(self, index: int, frame: Frame) -> None:
        part = self._parts.get(index)
        if part is None:
            return
        part.frame = frame
        part.source = None if self._names is None else self._names.source(frame.number)
        if self._queue.offer(part) is not None:
            self._end(part, State.DROPPED, "too many parts wait for their inspection")

    def _named(self, index: int, part_id: str | None) -> None:
        part = self._parts.get(index)
        if part is None:
            return
        if part.verdict is not None:
            self._say("part ids come after the verdicts, too late to be recorded")
        part.part_id = part_id

    def _say(self, fault: str) -> None:
        if self.fault is None:
            _LOG.warning("camera %s: %s", self._name, fault)
        self._fault = (self._clock.now(), fault)


def _begins(actions: list[Action]) -> bool:
    """Whether a part begins that waits for a frame: one whose trigger was not seen has ended."""
    ended = {action.index for action in actions if isinstance(action, Ended)}
    return any(isinstance(action, Begun) and action.index not in ended for action in actions)


class Triggering:
    """The threads of one trigger source; a context manager.

    A source that is not ready or goes away is said once and retried with exponential back-off. An
    error in these threads sets `stop`, and is raised when the context is left.

    Args:
        name: The camera's name.
        source: Made, not entered; its waits end with `stop`.
        intake: Is told of every announcement, and of time.
        stop: Ends the reading; set on leaving.
        clock: Times windows and retries.
    """

    def __init__(
        self,
        name: str,
        source: TriggerSource,
        intake: TriggerIntake,
        *,
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        self._name = name
        self._source = source
        self._intake = intake
        self._stop = stop
        self._clock = clock
        self._backoff = Backoff(clock, stop)
        self._fault: str | None = None
        self._connected_at = math.inf
        self._error: BaseException | None = None
        self._leaving = threading.Event()
        # Daemons, as a source that hangs must not keep the agent alive.
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=title, daemon=True)
            for work, title in (
                (self._read, f"atac-trigger-{name}"),
                (self._reconcile, f"atac-reconciler-{name}"),
            )
        ]

    @property
    def fault(self) -> str | None:
        """Why no parts are announced, or what is wrong with their frames; `None`: all is well."""
        is_steady = self._clock.now() - self._connected_at > _STEADY_S
        return (None if is_steady else self._fault) or self._intake.fault

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._leaving.set()
        self._intake.changed.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                _LOG.error("camera %s: %s does not end and is left", self._name, thread.name)
        self._intake.finish()
        if self._error is not None:
            raise self._error

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again on leaving
            self._error = error
            self._stop.set()

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                with self._source:
                    self._connected_at = self._clock.now()
                    while (announcement := self._source.read()) is not None:
                        self._is_well()
                        self._intake.announced(announcement)
                    return
            except TriggerError as error:
                if self._fault is None:
                    _LOG.warning(
                        "trigger of camera %s: %s; trying again until it is back",
                        self._name,
                        error,
                    )
                self._fault = f"trigger: {error}"
            self._connected_at = math.inf
            self._backoff.wait()

    def _is_well(self) -> None:
        self._backoff.reset()
        if self._fault is not None:
            _LOG.warning("trigger of camera %s: is back", self._name)
            self._fault = None

    def _reconcile(self) -> None:
        while not self._leaving.is_set():
            self._intake.changed.clear()
            due = self._intake.due()
            wait_s = _IDLE_S if due is None else max(0.0, due - self._clock.now()) + 1e-3
            if not self._clock.wait(self._intake.changed, wait_s):
                self._intake.passed()
