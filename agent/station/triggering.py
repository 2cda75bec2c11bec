"""Parts that are announced before their frames, or named by another source: their threads.

    atac-trigger     source.read ─▶ announcement ─┐
    atac-camera      camera.read ─▶ frame ────────┴▶ Reconciler ─▶ part, its frame, its id
    atac-reconciler  ends the parts whose window has passed

    atac-part-ids    source.read ─▶ reading ──────┬▶ Naming ─▶ the id of a part
    whoever begins a part ────────────────────────┘

An announced part begins with its announcement, and its deadline counts from there.
"""

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal, Protocol, Self

from agent.part import Part, State
from agent.ports import Announcement, Clock, TriggerSource
from agent.station.acquisition import Begin, End, Names
from agent.station.queue import PartQueue
from agent.station.retry import Backoff
from agent.triggers.naming import Naming
from agent.triggers.reconcile import (
    LATEST_S,
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
_TOO_LATE: Final = "part ids come after the verdicts, too late to be recorded"
_JOIN_S: Final = 5.0
_STEADY_S: Final = 2.0
"""A source that has been connected for this long is well, even if no part comes."""


class _Recent:
    """What went wrong between the sources of one camera, for the minute after it did."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._said: tuple[float, str] | None = None

    @property
    def fault(self) -> str | None:
        said = self._said
        is_recent = said is not None and self._clock.now() - said[0] < _FAULT_S
        return said[1] if said is not None and is_recent else None

    def say(self, fault: str) -> None:
        if self.fault is None:
            _LOG.warning("camera %s: %s", self._name, fault)
        self._said = (self._clock.now(), fault)


class Told(Protocol):
    """What a source's announcements are told to."""

    @property
    def changed(self) -> threading.Event: ...
    @property
    def fault(self) -> str | None: ...
    def announced(self, announcement: Announcement) -> None: ...
    def due(self) -> float | None: ...
    def passed(self) -> None: ...
    def finish(self) -> None: ...


class NameIntake:
    """Gives the parts of one camera the ids that a source of their own reads."""

    def __init__(self, name: str, settings: WindowSettings, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._naming: Naming[Part] = Naming(_window(settings))
        self._recent = _Recent(name, clock)
        self.changed: Final = threading.Event()

    @property
    def fault(self) -> str | None:
        """What went wrong between ids and parts in the last minute."""
        return self._recent.fault

    def due(self) -> float | None:
        """When `passed` has to be called next."""
        with self._lock:
            return self._naming.due

    def began(self, part: Part) -> None:
        """A part without an id has begun: it gets the one that was read for it."""
        with self._lock:
            reading = self._naming.began(part, part.received)
            if reading is not None:
                part.part_id = reading.part_id
                part.trigger = replace(part.trigger, count=reading.count)
            self._report()

    def announced(self, announcement: Announcement) -> None:
        """The source has read an id."""
        with self._lock:
            part = self._naming.read(announcement)
            if part is not None:
                if part.verdict is not None:
                    self._recent.say(_TOO_LATE)
                part.part_id = announcement.part_id
            self._report()

    def passed(self) -> None:
        """Time has passed."""
        with self._lock:
            self._naming.passed(self._clock.now())
            self._report()

    def finish(self) -> None:
        """No more parts are wanted."""

    def _report(self) -> None:
        if self._naming.fault is not None:
            self._recent.say(self._naming.fault)
            self._naming.fault = None
        self.changed.set()


class TriggerIntake:
    """Gives each announced part its frame and its id; called by several threads.

    `unexpected` counts the frames that were given to no part; `gives_ids` says whether the source
    has ever named a part. Of a camera that `runs_freely` the first frame in a part's window is the
    part's, and nobody expects the others.
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
        runs_freely: bool = False,
    ) -> None:
        self._name = name
        self._queue = queue
        self._runs_freely = runs_freely
        self._begin = begin
        self._end = end
        self._clock = clock
        self._lock = threading.Lock()
        self._reconciler = Reconciler(_window(settings))
        self._latest_s = max(LATEST_S, 3 * settings.max_ms / 1e3)
        self._parts: OrderedDict[int, Part] = OrderedDict()
        self._names: Names | None = None
        self._is_connected = False
        self._is_over = False
        self._recent = _Recent(name, clock)
        self.changed: Final = threading.Event()
        self._fire: Callable[[], bool] | None = None
        self._comes: Callable[[Announcement], object] = lambda _: None
        self._owed_since: float | None = None
        self._answered = -float("inf")
        self.unexpected = 0
        self.gives_ids = False

    @property
    def fault(self) -> str | None:
        """What went wrong between trigger and camera in the last minute."""
        return self._recent.fault

    def fire_by(self, fire: Callable[[], bool]) -> None:
        """The camera exposes when `fire` is called, once for each part; it says whether it will.

        Only one frame is owed at a time. While the frame of an earlier part may still come, a part
        ends without one, since a late frame would be taken for its own.
        """
        self._fire = fire
        self._reconciler.uses_counts = False

    def tell_of(self, comes: Callable[[Announcement], None]) -> None:
        """Each part that is announced is told to `comes`, before the camera may expose."""
        self._comes = comes

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
            if announcement.is_trigger:
                self._comes(announcement)
            is_owed = announcement.is_trigger and self._was_owed(announcement.at)
            refusal = "the camera still owes the frame of an earlier part" if is_owed else ""
            actions = self._reconciler.announced(announcement, refusal=refusal)
            if self._fire is not None and _begins(actions) and self._fire():
                self._owed_since = self._clock.now()
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
            self._answer(self._clock.now())
            if self._is_connected:
                self._do(self._reconciler.restarted())
            self._is_connected = True

    def seen(self, frame: Frame, names: Names, received: float) -> bool:
        """A frame has arrived; the trigger source alone knows part ids."""
        with self._lock:
            self._names = names
            if self._fire is not None and self._owed_since is None:
                self._do([Unexpected("the camera was not told to expose")])
                return True
            self._answer(received)
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
            now = self._clock.now()
            self._answer(now)
            self._do(self._reconciler.spoilt(number, count, now, why))

    # ---- with the lock

    def _was_owed(self, at: float) -> bool:
        """Whether the camera owed a frame at that time, or still does: its frame could be taken."""
        since = self._owed_since
        return at <= self._answered or (
            since is not None and self._clock.now() - since < self._latest_s
        )

    def _answer(self, at: float) -> None:
        """The camera has given what it owed."""
        self._owed_since = None
        if self._fire is not None:
            self._answered = at

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Begun():
                    self._begun(action)
                case Paired():
                    self._paired(action.index, action.frame)
                case Ended():
                    if (part := self._parts.get(action.index)) is not None:
                        self._end(part, action.state, action.reason)
                case Named():
                    self._named(action.index, action.part_id)
                case Unexpected(is_spare=True) if self._runs_freely:
                    pass
                case Unexpected():
                    self.unexpected += 1
                    self._recent.say(f"a frame was given to no part: {action.reason}")
                case Unclaimed():
                    self._recent.say(f"a part id belongs to no part: {action.part_id!r}")
        if self._reconciler.fault is not None:
            self._recent.say(self._reconciler.fault)
            self._reconciler.fault = None
        self.changed.set()

    def _begun(self, action: Begun) -> None:
        announcement = action.announcement
        ago_s = self._clock.now() - announcement.at
        part = self._begin(
            self._name,
            received=announcement.at,
            triggered_ns=self._clock.utc_ns() - round(ago_s * 1e9),
            part_id=announcement.part_id,
            count=announcement.count,
            product=announcement.product,
            is_dated=not action.is_unseen,
        )
        if part is None:
            self._is_over = True
            return
        self._parts[action.index] = part
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
            self._recent.say(_TOO_LATE)
        part.part_id = part_id


def _window(settings: WindowSettings) -> Window:
    return Window(min_s=settings.min_ms / 1e3, max_s=settings.max_ms / 1e3)


def _begins(actions: list[Action]) -> bool:
    """Whether a part begins that waits for a frame: one whose trigger was not seen has ended."""
    ended = {action.index for action in actions if isinstance(action, Ended)}
    return any(isinstance(action, Begun) and action.index not in ended for action in actions)


class Triggering:
    """The threads of one source of triggers or part ids; a context manager.

    A source that is not ready or goes away is said once and retried with exponential back-off. An
    error in these threads sets `stop`, and is raised when the context is left.

    Args:
        name: The camera's name.
        source: Made, not entered; its waits end with `stop`.
        intake: Is told of every announcement, and of time.
        stop: Ends the reading; set on leaving.
        clock: Times windows and retries.
        noun: What the source gives, for threads and messages; a product is the line's.
    """

    def __init__(
        self,
        name: str,
        source: TriggerSource,
        intake: Told,
        *,
        stop: threading.Event,
        clock: Clock,
        noun: Literal["trigger", "part ids", "product"] = "trigger",
    ) -> None:
        self._what = noun if noun == "product" else f"{noun} of camera {name}"
        self._noun = noun
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
                (self._read, f"atac-{noun.replace(' ', '-')}-{name}"),
                (self._reconcile, f"atac-reconciler-{name}"),
            )
        ]

    @property
    def fault(self) -> str | None:
        """Why no parts are announced, or what is wrong with their frames; `None`: all is well."""
        is_steady = self._clock.now() - self._connected_at > _STEADY_S
        return (None if is_steady else self._fault) or self._intake.fault

    @property
    def is_heard(self) -> bool:
        """Whether what the source has said last still holds: nothing has come in between."""
        return self._fault is None

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
                _LOG.error("%s: %s does not end and is left", self._what, thread.name)
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
                        self._intake.announced(announcement)
                        self._is_well()
                    return
            except TriggerError as error:
                if self._fault is None:
                    _LOG.warning("%s: %s; trying again until it is back", self._what, error)
                self._fault = f"{self._noun}: {error}"
            self._connected_at = math.inf
            self._backoff.wait()

    def _is_well(self) -> None:
        self._backoff.reset()
        if self._fault is not None:
            _LOG.warning("%s: back again", self._what)
            self._fault = None

    def _reconcile(self) -> None:
        while not self._leaving.is_set():
            self._intake.changed.clear()
            due = self._intake.due()
            wait_s = _IDLE_S if due is None else max(0.0, due - self._clock.now()) + 1e-3
            if not self._clock.wait(self._intake.changed, wait_s):
                self._intake.passed()
