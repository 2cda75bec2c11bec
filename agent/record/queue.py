"""What waits for the disk: entries in bounded memory, and the count of every part.

    station ── begin, end ──▶ queue ──▶ owner thread, a group at a time
    sinks ── settle ─────────▲  └── what does not fit is counted by sequence

Everybody may call these functions; none of them waits for the disk.
"""

import bisect
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.part import State
from agent.record.outbox import Mark, Wanted
from agent.record.rescue import Note
from agent.record.rows import Kind, PartRow, Span, with_span
from agent.station.status import CameraStatus

_GROUP: Final = 1000
"""Entries of one transaction: enough to drain quickly, few enough to keep each commit short."""
_GROUP_BYTES: Final = 2_000_000
"""And few enough to fit into the room that the ledger's limit leaves."""
_AHEAD: Final = 50
"""Sequences that are reserved before they are given, while nothing can be written."""
_TRIES: Final = 3
"""So often must writing have failed before nobody waits for it any longer."""
_NO_END: Final = (1 << 63) - 1
_ROW_BYTES: Final = 1000
"""What a queued entry weighs in memory besides its picture, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A part has begun."""

    row: PartRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A part has ended; `wanted` is what sinks want of it.

    `model` are the ids of the bundle and the calibration that decided it; empty for those of the
    run's begin.
    """

    row: PartRow
    model: tuple[str, str] = ("", "")
    wanted: tuple[Wanted, ...]
    thumbnail: bytes | None

    @property
    def kind(self) -> Kind:
        """Its camera and state."""
        return self.row.camera, State(self.row.state or "")


Entry = Begun | Ended | Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What is to be written in one transaction; the parts in `losing` are counted by `kinds`."""

    entries: Sequence[Entry]
    losing: Sequence[Span]
    kinds: Counter[Kind]


class EntryQueue:
    """Entries that wait for the owner thread, at most `memory_bytes` of them.

    `changed` is notified of everything that happens; whoever reads more than one attribute holds
    it.
    """

    def __init__(self, memory_bytes: int) -> None:
        self.changed: Final = threading.Condition()
        self._memory_bytes = memory_bytes
        self._entries: deque[Entry] = deque()
        self._taken: Sequence[Entry] = ()
        self._bytes = 0
        self.added = 0
        self.settled = 0
        self.failures = 0
        """How often the owner thread could not write."""
        self.is_pressing = False
        """Whether anything waits that a sink or a caller wants at once."""
        self.is_closed = False
        self.last_sequence = 0
        self._open: dict[int, str] = {}  # to their cameras
        self._unwritten: set[int] = set()
        self._counts: Counter[Kind] = Counter()
        self._lost: list[Span] = []
        self._lost_before = 0
        self._losing: list[Span] = []
        self._losing_kinds: Counter[Kind] = Counter()
        self._reserved = 0
        self._noted_last = 0

    @property
    def has_entries(self) -> bool:
        """Whether anything waits."""
        return bool(self._entries)

    @property
    def is_losing(self) -> bool:
        """Whether there are losses that are not written down yet."""
        return bool(self._losing)

    @property
    def lost(self) -> tuple[Span, ...]:
        """Sequence ranges of parts that could not be recorded."""
        with self.changed:
            return tuple(self._lost)

    @property
    def lost_in_this_run(self) -> int:
        """How many parts this run could not record."""
        with self.changed:
            return _total(self._lost) - self._lost_before

    def cameras(self) -> dict[str, CameraStatus]:
        """What became of the parts of this epoch, for every camera that had any."""
        with self.changed:
            counts, still_open = self._counts.copy(), Counter(self._open.values())
        names = sorted({*still_open, *(camera for camera, _ in counts)})
        ended = {name: {state: counts[name, state] for state in State} for name in names}
        return {
            name: CameraStatus(
                triggers=still_open[name] + sum(ended[name].values()), counts=ended[name]
            )
            for name in names
        }

    def total(self) -> int:
        """How many parts of this epoch have begun."""
        with self.changed:
            return len(self._open) + self._counts.total()

    def take_up(self, last_sequence: int, counts: Counter[Kind], lost: list[Span]) -> None:
        """Go on where the file is."""
        with self.changed:
            self.last_sequence = last_sequence
            self._counts = counts.copy()
            self._lost = lost
            self._lost_before = _total(lost)

    # ---- what comes

    def next_sequence(self, camera: str) -> int:
        """The number of `camera`'s next part."""
        with self.changed:
            self.last_sequence += 1
            self._open[self.last_sequence] = camera
            self._unwritten.add(self.last_sequence)
            return self.last_sequence

    def begin(self, entry: Begun) -> None:
        """A part has begun; where there is no room this is not noted."""
        with self.changed:
            self._check(entry.row)
            if self._bytes + _ROW_BYTES <= self._memory_bytes:
                self._add(entry)

    def end(self, entry: Ended) -> bool:
        """A part has ended; `False`: it had before."""
        sequence = entry.row.sequence
        with self.changed:
            self._check(entry.row)
            if sequence not in self._open:
                return False
            del self._open[sequence]
            self._counts[entry.kind] += 1
            if self._bytes + _weight(entry) > self._memory_bytes:
                self._lose(entry)
            else:
                self.is_pressing |= bool(entry.wanted)
                self._add(entry)
        return True

    def settle(self, marks: Sequence[Mark]) -> None:
        """Sinks have taken or refused these deliveries."""
        with self.changed:
            for mark in marks:
                self._add(mark)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that has come is written; `False` if that took too long or is in vain."""
        with self.changed:
            target, failures = self.added, self.failures + _TRIES
            self.is_pressing = True
            self.changed.notify_all()
            self.changed.wait_for(
                lambda: self.settled >= target or self.is_closed or self.failures >= failures,
                timeout_s,
            )
            return self.settled >= target

    def may_leave(self, sequence: int, timeout_s: float) -> bool:
        """Wait until a sequence is safe to be known outside; `False`: it is not."""

        def is_safe() -> bool:
            if sequence <= self._reserved:
                return True
            at = bisect.bisect_right(self._losing, (sequence, _NO_END)) - 1
            is_losing = at >= 0 and sequence <= self._losing[at][1]
            return not is_losing and sequence not in self._unwritten

        with self.changed:
            self.changed.wait_for(lambda: is_safe() or self.is_closed, timeout_s)
            return is_safe()

    # ---- for the owner thread

    def take(self) -> Group:
        """What to write next."""
        with self.changed:
            entries: list[Entry] = []
            room = _GROUP_BYTES
            while self._entries and len(entries) < _GROUP and room > 0:
                entries.append(self._entries.popleft())
                room -= _weight(entries[-1])
            group = Group(entries=entries, losing=self._losing, kinds=self._losing_kinds)
            self._taken = entries
            self.is_pressing = False
            self._losing, self._losing_kinds = [], Counter()
            return group

    def put_back(self, group: Group, *, without: Entry | None = None) -> None:
        """A group could not be written; `without` never can, and its part is lost."""
        with self.changed:
            self._taken = ()
            self._entries.extendleft(e for e in reversed(group.entries) if e is not without)
            for first, last in group.losing:
                self._losing = with_span(self._losing, first, last)
            self._losing_kinds += group.kinds
            if without is not None:
                self.settled += 1
                self._bytes -= _weight(without)
                if isinstance(without, Ended):
                    self._lose(without)

    def failed(self) -> None:
        """The disk takes nothing just now."""
        with self.changed:
            self.failures += 1
            self.changed.notify_all()

    def written(self, group: Group) -> None:
        """A group is committed."""
        with self.changed:
            self._taken = ()
            self.settled += len(group.entries)
            self._bytes -= sum(_weight(entry) for entry in group.entries)
            self._unwritten -= {e.row.sequence for e in group.entries if not isinstance(e, Mark)}
            self.changed.notify_all()

    def note(self, epoch: str, *, is_last: bool) -> Note:
        """What would be forgotten if the process ended now, and which sequences are given."""
        with self.changed:
            lost, counts = self._losing, self._losing_kinds.copy()
            for entry in self._entries:
                if isinstance(entry, Ended):
                    lost = with_span(lost, entry.row.sequence, entry.row.sequence)
                    counts[entry.kind] += 1
            last = self.last_sequence
            given = last - self._noted_last if self._reserved else 0
            reserved = last if is_last else last + max(_AHEAD, 2 * given)
        return Note(epoch=epoch, reserved=reserved, lost=tuple(lost), counts=counts)

    def noted(self, note: Note | None) -> bool:
        """A note is kept, or no longer needed; says whether there was one."""
        with self.changed:
            had_one = bool(self._reserved)
            self._reserved = note.reserved if note else 0
            self._noted_last = self.last_sequence if note else 0
            self.changed.notify_all()
            return had_one

    def close(self) -> Sequence[Span]:
        """Nothing more is written: what still waits is lost."""
        with self.changed:
            self.is_closed = True
            while self._entries:
                entry = self._entries.popleft()
                if isinstance(entry, Ended):
                    self._lose(entry)
            self.changed.notify_all()
            return self._losing

    def abandon(self) -> Sequence[Span]:
        """As `close`, where the owner thread does not come back from what it has taken."""
        with self.changed:
            self._entries.extendleft(reversed(self._taken))
            lost = self.close()
            self.settled = self.added
            return lost

    # ---- with the lock held

    def _check(self, row: PartRow) -> None:
        if not 1 <= row.sequence <= self.last_sequence:
            raise ValueError(f"sequence {row.sequence} was not given by next_sequence()")

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._bytes += _weight(entry)
        self.added += 1
        self.changed.notify_all()

    def _lose(self, entry: Ended) -> None:
        sequence = entry.row.sequence
        self._losing = with_span(self._losing, sequence, sequence)
        self._losing_kinds[entry.kind] += 1
        self._lost = with_span(self._lost, sequence, sequence)
        self._unwritten.discard(sequence)


def _weight(entry: Entry) -> int:
    match entry:
        case Begun():
            return _ROW_BYTES
        case Ended():
            return _ROW_BYTES + len(entry.thumbnail or b"")
        case Mark():
            return 0


def _total(spans: Sequence[Span]) -> int:
    return sum(last - first + 1 for first, last in spans)
