"""Which frame belongs to which trigger: a pure state machine, without threads or a clock.

    announcements ─┐
    frames ────────┴▶ Reconciler ─▶ Begun, Paired, Ended, Named, Unexpected

It is told what happens and when, and answers with what becomes of it. Every trigger begins once and
ends once: with a frame, without one, or with one that cannot be used. A frame is given to a trigger
only where nothing speaks against it; in doubt it is given to none, and the part ends without one.

A frame fits a trigger when it comes within the `Window` after it. Where the camera counts its
triggers (`Frame.trigger_count`), the count says which of them the frame belongs to, and the window
has to agree. Where it does not, exactly one open trigger must fit: then a window has to be narrower
than the time between two parts, and no frame may be so late that it fits the next one.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from agent.part import State
from agent.ports import Announcement
from engine.frame import Frame

LARGEST_GAP: Final = 10_000
"""A count that jumps further has been restarted; nobody lost that many parts."""
GRACE_S: Final = 0.1
"""How long what was announced or has arrived may take to be told here."""
_WRAP: Final = 65_535
"""The largest count of a 16-bit register; 0 or 1 follows."""
_REMEMBERED: Final = 1000
"""Triggers that late part ids may still belong to."""
LATEST_S: Final = 1.0
"""A frame that is later than this, or than three windows, is lost; so is an id that comes so long
before its trigger, or after the trigger's count was restarted. Where no other trigger waits
within it, a trigger is alone, and the camera's count can be tied to it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When the frame of a trigger comes, in seconds after it."""

    min_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Begun:
    """Trigger `index` is a part; indexes count from 0.

    With `is_unseen` its announcement was missed, and the time is that of the next one.
    """

    index: int
    announcement: Announcement
    is_unseen: bool = False


@dataclass(frozen=True, slots=True)
class Paired:
    """The frame belongs to trigger `index`."""

    index: int
    frame: Frame
    at: float


@dataclass(frozen=True, slots=True)
class Ended:
    """Trigger `index` has no frame (NO_FRAME), or none that can be used (ERROR)."""

    index: int
    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Named:
    """The part of trigger `index` is this one; `None`: two ids came, and neither is believed."""

    index: int
    part_id: str | None


@dataclass(frozen=True, slots=True)
class Unexpected:
    """A frame that is given to no part; `is_spare`: because none waits for one just now."""

    reason: str
    is_spare: bool = False


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A part id that belongs to no trigger that is remembered."""

    part_id: str


Action = Begun | Paired | Ended | Named | Unexpected | Unclaimed


@dataclass(slots=True, eq=False)
class _Trigger:
    index: int
    at: float
    count: int | None
    part_id: str | None
    is_unseen: bool = False
    """Its announcement was missed, so that `at` is too late."""
    is_settled: bool = False
    """No frame of it can still come."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A frame as it arrived; `problem` says why it cannot be used."""

    at: float
    number: int
    trigger_count: int | None
    frame: Frame | None
    problem: str = ""
    gap: int = 1
    """How much its number is above that of the frame before."""


@dataclass(slots=True)
class Reconciler:
    """Pairs the triggers of one camera with its frames.

    Calls come in the order of their times: `announced`, `seen` and `spoilt` with the time of the
    event, `passed` with the time now. Each gives what follows, in order.
    """

    window: Window
    fault: str | None = None
    """What is wrong between trigger source and camera, in one line."""
    uses_counts: bool = True
    """Whether the camera counts the triggers that are announced, where it counts at all."""
    _open: deque[_Trigger] = field(default_factory=deque)
    _recent: deque[_Trigger] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _by_count: dict[int, _Trigger] = field(default_factory=dict)
    _early_ids: dict[int, tuple[float, str]] = field(default_factory=dict)
    _ids_from: float = 0.0
    """Before this an id may still belong to a count from before it was restarted."""
    _next: int = 0
    _count: int | None = None
    _held: deque[_Seen] = field(default_factory=deque)
    _number: int | None = None
    _camera_count: int | None = None
    _base: tuple[int, int] | None = None
    """A trigger count of the camera, and the index of the trigger that it belongs to."""
    _tentative: tuple[int, int] | None = None
    _is_doubtful: bool = False
    """Whether count and window have disagreed since the last frame that was given to a part."""
    _unannounced: int = 0
    """Triggers that the camera has counted since the last announcement, and nobody announced."""

    # ---- what happens

    def announced(self, announcement: Announcement, *, refusal: str = "") -> list[Action]:
        """A trigger, or the id of an earlier part; with a `refusal` it cannot have a frame."""
        actions: list[Action] = [*self._expired(announcement.at)]
        if announcement.is_trigger:
            actions += self._begin(announcement, refusal)
        elif announcement.part_id is not None:
            actions += self._name(announcement, announcement.part_id)
        return [*actions, *self._resolved(announcement.at)]

    def seen(self, frame: Frame, at: float) -> list[Action]:
        """A frame has arrived."""
        return self._arrived(
            _Seen(
                at=at,
                number=frame.number,
                trigger_count=frame.trigger_count if self.uses_counts else None,
                frame=frame,
            )
        )

    def spoilt(
        self, number: int | None, trigger_count: int | None, at: float, why: str
    ) -> list[Action]:
        """A frame has arrived that cannot be used; `None`: the number after the last one."""
        if number is None:
            number = 0 if self._number is None else self._number + 1
        count = trigger_count if self.uses_counts else None
        return self._arrived(
            _Seen(at=at, number=number, trigger_count=count, frame=None, problem=why)
        )

    def restarted(self) -> list[Action]:
        """The camera was connected again: what it owed does not come any more, and counts begin."""
        actions: list[Action] = [Unexpected("the camera was restarted")] * len(self._held)
        self._held.clear()
        self._number = self._camera_count = self._base = self._tentative = None
        self._unannounced = 0
        for trigger in self._recent:
            trigger.is_settled = True
        return actions + [
            self._end(trigger, "the camera was restarted") for trigger in (*self._open,)
        ]

    def passed(self, now: float) -> list[Action]:
        """Time has passed: windows may have ended."""
        return [*self._resolved(now), *self._expired(now)]

    def ended(self) -> list[Action]:
        """Nothing more will come: what is open ends without a frame."""
        return [self._end(trigger, "the agent was stopping") for trigger in (*self._open,)]

    @property
    def due(self) -> float | None:
        """When `passed` has to be called at the latest; `None` while nothing is awaited."""
        times = [self._open[0].at + self.window.max_s] if self._open else []
        if self._held:
            times.append(self._held[0].at - self.window.min_s)
        return min(times) + GRACE_S if times else None

    # ---- triggers

    def _begin(self, announcement: Announcement, refusal: str) -> Iterator[Action]:
        count, before = announcement.count, self._count
        unseen = 0
        if count is not None:
            if before is not None:
                is_wrap = before == _WRAP and count in {0, 1}
                step = 1 if is_wrap else count - before
                if step == 0:  # told twice
                    if announcement.part_id is not None:
                        yield from self._name(announcement, announcement.part_id)
                    return
                if not 0 < step <= LARGEST_GAP:
                    self.fault = f"the trigger's count went from {before} to {count}"
                    self._by_count.clear()
                    self._early_ids.clear()
                    self._ids_from = announcement.at + LATEST_S
                elif step > 1:
                    unseen = step - 1
                    self.fault = f"{unseen} triggers were not seen before count {count}"
            self._count = count
        for missed in range(unseen):
            number = count - unseen + missed if count is not None else None
            trigger = self._new(Announcement(at=announcement.at, count=number))
            trigger.is_unseen = True
            yield Begun(trigger.index, Announcement(at=announcement.at, count=number), True)
            yield self._end(trigger, "its trigger was not seen")
        if self._base is not None and unseen:
            # Frames of triggers that were not seen have been taken for nobody's.
            self._base = (self._base[0], self._base[1] + min(unseen, self._unannounced))
        self._unannounced = 0
        part_id = announcement.part_id
        if count is not None:
            told_at, early = self._early_ids.pop(count, (0.0, None))
            if part_id is None and announcement.at - told_at < LATEST_S:
                part_id = early
        trigger = self._new(announcement, part_id)
        yield Begun(trigger.index, replace(announcement, part_id=part_id))
        if refusal:
            trigger.is_settled = True
            yield self._end(trigger, refusal)

    def _new(self, announcement: Announcement, part_id: str | None = None) -> _Trigger:
        trigger = _Trigger(self._next, announcement.at, announcement.count, part_id)
        self._next += 1
        self._open.append(trigger)
        if len(self._recent) == _REMEMBERED and self._recent[0].count is not None:
            old = self._recent[0]
            if self._by_count.get(old.count or 0) is old:
                del self._by_count[old.count or 0]
        self._recent.append(trigger)
        if trigger.count is not None:
            self._by_count[trigger.count] = trigger
        return trigger

    def _name(self, announcement: Announcement, part_id: str) -> Iterator[Action]:
        count = announcement.count
        if count is not None:
            trigger = self._by_count.get(count)
        else:
            trigger = self._recent[-1] if self._recent else None
        is_early = count is not None and (self._count is None or count > self._count)
        if count is not None and announcement.at < self._ids_from:
            yield Unclaimed(part_id)
        elif trigger is None and is_early and len(self._early_ids) < _REMEMBERED:
            self._early_ids[count or 0] = (announcement.at, part_id)
        elif trigger is None:
            yield Unclaimed(part_id)
        elif trigger.part_id is None:
            trigger.part_id = part_id
            yield Named(trigger.index, part_id)
        elif trigger.part_id != part_id:
            self.fault = f"two part ids came for one part: {trigger.part_id!r} and {part_id!r}"
            yield Named(trigger.index, None)

    def _end(self, trigger: _Trigger, reason: str, state: State = State.NO_FRAME) -> Ended:
        self._open.remove(trigger)
        return Ended(trigger.index, state, reason)

    def _expired(self, now: float) -> Iterator[Action]:
        while self._open and now > self._open[0].at + self.window.max_s + GRACE_S:
            limit_ms = self.window.max_s * 1e3
            yield self._end(self._open[0], f"no frame came within {limit_ms:g} ms of its trigger")

    # ---- frames

    def _arrived(self, seen: _Seen) -> list[Action]:
        actions: list[Action] = []
        before, counted = self._number, self._camera_count
        is_restart = before is not None and not 0 < seen.number - before <= LARGEST_GAP
        if counted is not None and seen.trigger_count is not None:
            is_restart |= not 0 <= seen.trigger_count - counted <= LARGEST_GAP
        if is_restart:
            actions += self.restarted()
            self._number, self._camera_count = seen.number, seen.trigger_count
            return [*actions, Unexpected("the first frame after the camera was restarted")]
        self._held.append(replace(seen, gap=1 if before is None else seen.number - before))
        self._number, self._camera_count = seen.number, seen.trigger_count
        return [*actions, *self._resolved(seen.at)]

    def _resolved(self, now: float) -> Iterator[Action]:
        """Decide the frames that wait, in order, as far as that can be done yet."""
        while self._held:
            seen = self._held[0]
            is_final = now > seen.at - self.window.min_s + GRACE_S or len(self._held) > 1
            found = self._decided(seen, is_final=is_final)
            if found is None:
                return
            self._held.popleft()
            yield from found

    def _decided(self, seen: _Seen, *, is_final: bool) -> list[Action] | None:
        """What becomes of a frame; `None` while what it may belong to may not be told yet."""
        fitting = [
            trigger
            for trigger in self._open
            if self.window.min_s <= seen.at - trigger.at <= self.window.max_s
        ]
        if seen.trigger_count is None:
            return self._by_window(seen, fitting, is_final=is_final)
        if self._base is None:
            return self._anchored(seen, fitting, is_final=is_final)
        counted, index = self._base
        step = seen.trigger_count - counted
        due = index + step
        if step == 0:
            self.fault = "the camera gives frames without a trigger"
            return [Unexpected("the camera was not triggered")]
        if seen.gap > step:
            self.fault = "the camera gives more frames than it has triggers"
            self._base = (seen.trigger_count, min(due, self._next - 1))
            return [Unexpected("there were more frames than triggers")]
        trigger = self._at_index(due)
        if trigger is not None and trigger in fitting:
            if len(fitting) > 1 and (step > 1 or self._is_doubtful):
                # A trigger too many of the camera, and one too few, look the same here.
                self._base = self._tentative = None
                return [Unexpected(f"{len(fitting)} triggers fit, and the counts have a gap")]
            return self._pair(seen, trigger)
        if trigger is not None and (trigger.is_unseen or self._is_announced_for(seen, trigger)):
            # Which of several triggers was not seen, nobody can tell.
            is_uncertain = trigger.is_unseen and step > 1
            return self._late(seen, fitting, due, is_uncertain=is_uncertain)
        if trigger is None and not is_final:
            return None
        # The camera has counted triggers that nobody announced.
        if len(fitting) == 1 and step > 1:
            self.fault = "the camera is triggered more often than parts are announced"
            return self._pair(seen, fitting[0])
        newest = max(
            (each.index for each in self._recent if self._is_announced_for(seen, each)),
            default=index,
        )
        self._base = (seen.trigger_count, newest)
        self._unannounced += due - newest
        return [Unexpected("nobody announced a part")]

    def _at_index(self, index: int) -> _Trigger | None:
        place = index - self._next
        return self._recent[place] if -len(self._recent) <= place < 0 else None

    def _is_announced_for(self, seen: _Seen, trigger: _Trigger) -> bool:
        return trigger.at <= seen.at - self.window.min_s

    def _by_window(
        self, seen: _Seen, fitting: list[_Trigger], *, is_final: bool
    ) -> list[Action] | None:
        """Without a count of the camera only the window can tell."""
        if len(fitting) == 1:
            return self._pair(seen, fitting[0])
        if fitting:
            self.fault = f"{len(fitting)} triggers fit one frame: make the window narrower"
            return [Unexpected(f"{len(fitting)} triggers fit")]
        return [Unexpected("no trigger fits", is_spare=True)] if is_final else None

    def _anchored(
        self, seen: _Seen, fitting: list[_Trigger], *, is_final: bool
    ) -> list[Action] | None:
        """The first frames tell which of the camera's counts belongs to which trigger."""
        assert seen.trigger_count is not None
        if not fitting:
            return [Unexpected("no trigger fits")] if is_final else None
        if len(fitting) > 1:
            return [Unexpected(f"{len(fitting)} triggers fit")]
        trigger, tentative = fitting[0], self._tentative
        self._tentative = (seen.trigger_count, trigger.index)
        if self._is_alone(seen, trigger) or (
            tentative is not None
            and seen.trigger_count - tentative[0] == trigger.index - tentative[1] > 0
        ):
            return self._pair(seen, trigger)
        return [Unexpected("the camera's count is not yet known")]

    def _late(
        self, seen: _Seen, fitting: list[_Trigger], due: int, *, is_uncertain: bool
    ) -> list[Action]:
        """The count names a trigger whose frame should have come earlier."""
        assert seen.trigger_count is not None
        if len(fitting) == 1 and self._is_alone(seen, fitting[0]):
            return self._pair(seen, fitting[0])
        self._base = (seen.trigger_count, due)
        if is_uncertain:
            self._base = self._tentative = None
        if fitting:
            self._is_doubtful = True
            self.fault = (
                "frames come too late, or the camera's count of triggers and the announced parts "
                "have come apart: check window and cable, and let the line pause"
            )
        return [Unexpected("it came too late for its trigger")]

    def _is_alone(self, seen: _Seen, trigger: _Trigger) -> bool:
        earliest = seen.at - max(LATEST_S, 3 * self.window.max_s)
        for other in reversed(self._recent):
            if other.at < earliest:
                return True
            if other is not trigger and not other.is_settled:
                return False
        return True

    def _pair(self, seen: _Seen, trigger: _Trigger) -> list[Action]:
        actions: list[Action] = []
        if seen.trigger_count is not None:
            reason = _skipped(seen.gap, trigger, self._base)
            earlier = [each for each in self._open if each.index < trigger.index]
            actions += [self._end(each, reason) for each in earlier]
            self._base = (seen.trigger_count, trigger.index)
            self._unannounced, self._is_doubtful = 0, False
        trigger.is_settled = True
        if seen.frame is None:
            return [*actions, self._end(trigger, seen.problem, State.ERROR)]
        self._open.remove(trigger)
        return [*actions, Paired(trigger.index, seen.frame, seen.at)]


def _skipped(gap: int, trigger: _Trigger, base: tuple[int, int] | None) -> str:
    """Why the triggers between the last frame and this one have none."""
    if gap == 1:
        return "the camera was not ready"
    if base is not None and gap >= trigger.index - base[1]:
        return "its frame was lost on the way"
    return "the camera was not ready, or its frame was lost on the way"
