"""The ledger: every part's one end, and what sinks want of it, in one SQLite file.

    station ── expect, record ──▶ queue ──▶ owner thread ══ one transaction ══▶ file
    sinks ◀── waiting_for ── owner thread ◀── settle ── sinks      └──▶ feed ──▶ services

One thread owns the only connection (WAL, synchronous FULL) and commits whatever has gathered
while the disk was busy: at once what a sink wants, the rest at most twenty times a second, as a
flush costs more than the rows. Callers never wait for the disk. A disk that is full or read-only
stops nothing: rows wait in bounded memory, and what does not fit there is counted by sequence,
also over a restart. Between commits the thread removes what is old or too much, a few parts at a
time (`agent/record/retention.py`).
"""

import bisect
import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar

from agent.part import Part, State, Trigger
from agent.record import annotations, outbox, runs, sources
from agent.record.annotations import ThresholdChange
from agent.record.feed import Cursor, Feed
from agent.record.outbox import Mark, Requeued, Wanted
from agent.record.rescue import Note, NoteFile, locked, open_or_rescue
from agent.record.retention import (
    KINDS,
    AgeClock,
    Discard,
    Limits,
    Place,
    Reserve,
    Step,
    add_discarded,
    limit_pages,
    read_discarded,
    step,
    stop_growth,
    write_trusted,
)
from agent.record.rows import (
    THUMBNAIL,
    Delivery,
    Event,
    Kind,
    PartRow,
    Span,
    begun_row,
    clean,
    ended_row,
    event_of,
    software,
    with_span,
)
from agent.record.runs import Run, Standing
from agent.record.schema import (
    check_place,
    error_code,
    identity,
    is_read_only,
    new_epoch,
    transaction,
)
from agent.station.status import CameraStatus, LedgerStatus
from engine.errors import ConfigurationError, LedgerError

_LOG: Final = logging.getLogger("atac_agent.ledger")
_GROUP: Final = 1000
"""Entries of one transaction: enough to drain quickly, few enough to keep each commit short."""
_GROUP_BYTES: Final = 2_000_000
"""And few enough to fit into the room that the ledger's limit leaves."""
_GATHER_S: Final = 0.05
"""From one commit to the next, where nothing that waits is wanted by a sink."""
_RETRY_S: Final = 1.0
_LOOK_S: Final = 0.5
"""From one look whether the file is still there to the next."""
_SWEEP_S: Final = 1.0
"""From one look for what may go to the next; there is nothing to be found at most of them."""
_STEP_S: Final = 0.05
"""Between two steps of a sweep that finds something, so that commits are not held up."""
_CLOCK_S: Final = 60.0
"""How often the time that ages count from is kept."""
_AHEAD: Final = 50
"""Sequences that are reserved before they are given, while nothing can be written."""
_NO_END: Final = (1 << 63) - 1
_ROW_BYTES: Final = 1000
"""What a queued entry weighs in memory besides its picture, roughly."""
_ODD: Final = (
    OverflowError,
    TypeError,
    ValueError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
)
"""What one entry does wrong, not the disk."""

_T = TypeVar("_T")


class Wants(Protocol):
    """What the ledger asks of a sink."""

    @property
    def name(self) -> str:
        """Names the sink in the ledger."""
        ...

    def items(self, part: Part) -> tuple[str, ...]:
        """What the sink wants to deliver of an ended part."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    row: PartRow


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    row: PartRow
    wanted: tuple[Wanted, ...]
    thumbnail: bytes | None

    @property
    def kind(self) -> Kind:
        return self.row.camera, State(self.row.state or "")


_Entry = _Begun | _Ended | Mark


class _OddEntryError(Exception):
    """One entry of a group cannot be written, whatever the disk does."""

    def __init__(self, entry: _Entry, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.entry = entry


class Ledger:
    """The ledger in file `path`; a context manager.

    A file that is newer than this software or that may not be written raises `ConfigurationError`
    on entry; one that another process has open is waited for, until `stop` is set (`LedgerError`);
    a damaged one is moved aside and its readable rows are kept. A full or read-only disk is a
    `fault`, said once and retried.

    Args:
        path: The file.
        agent_id: Whose parts these are; each agent counts for itself.
        sinks: Asked what they want of each part.
        bundle_id: The model of this run; empty for none.
        calibration_id: Its threshold; empty for none.
        memory_bytes: Bounds what waits for the disk.
        limits: What is kept on it; without them everything is.
        stop: Ends the wait for a file that is locked.
    """

    def __init__(
        self,
        path: Path,
        *,
        agent_id: str,
        sinks: Sequence[Wants] = (),
        bundle_id: str = "",
        calibration_id: str = "",
        memory_bytes: int = 64_000_000,
        limits: Limits | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._path = path
        self._sinks = tuple(sinks)
        self._limits = limits
        self._stop_waiting = stop or threading.Event()
        self._run_of = Run(
            agent_id=agent_id,
            bundle_id=bundle_id,
            calibration_id=calibration_id,
            software=software(),
        )
        self._memory_bytes = memory_bytes

        self._changed = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._added = 0
        self._settled = 0
        self._is_pressing = False
        self._reads: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._is_closed = False
        self._epoch = ""
        self._last_sequence = 0
        self._open: dict[int, str] = {}  # to their cameras
        self._unwritten: set[int] = set()
        self._counts: Counter[Kind] = Counter()
        self._lost: list[Span] = []
        self._lost_before = 0
        self._losing: list[Span] = []
        self._losing_kinds: Counter[Kind] = Counter()
        self._fault: str | None = None
        self._waiting: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._newest: dict[str, int] = {}
        self._newest_before = 0
        self._discarded: dict[Discard, list[Span]] = {kind: [] for kind in KINDS}
        self._is_discarding = False
        self._listeners: dict[str, Callable[[], None]] = {}
        self.feed: Final = Feed(rows_after=self._rows_after, thumbnail=self.thumbnail)
        self.ages: Final = AgeClock()
        """The time that ages of parts and of their pictures count from."""

        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._run = 0
        self._position = 0
        self._latest: dict[Wanted, int] = {}
        self._committed: Counter[Kind] = Counter()
        self._committed_at = 0.0
        self._in_hand: set[int] = set()
        self._place = Place()
        self._step_due = self._clock_due = self._look_due = 0.0
        self._is_full = False
        self._is_growth_stopped = False
        self._reserve = Reserve(path)
        self._note_file = NoteFile(path)
        self._notes: list[Note] = []  # of earlier runs
        self._noted = 0
        self._noted_last = 0
        self._thread = threading.Thread(target=self._own, name="atac-ledger")
        self._ready: Future[None] = Future()

    def __enter__(self) -> Self:
        check_place(self._path)
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    # ---- how it stands

    @property
    def epoch(self) -> str:
        """Names this count of sequences: a new file, or a new agent id, has a new one."""
        return self._epoch

    @property
    def is_alive(self) -> bool:
        """Whether the thread that writes is running."""
        return self._thread.is_alive()

    @property
    def fault(self) -> str | None:
        """Why nothing can be written just now, in one line; `None` while all is well."""
        return self._fault

    @property
    def lost(self) -> tuple[Span, ...]:
        """Sequence ranges, first and last inclusive, of parts that could not be recorded."""
        with self._changed:
            return tuple(self._lost)

    @property
    def lost_in_this_run(self) -> int:
        """How many parts this run could not record; complete once the ledger is left."""
        with self._changed:
            return _total(self._lost) - self._lost_before

    @property
    def discarded(self) -> dict[str, tuple[Span, ...]]:
        """Sequence ranges of this epoch whose waiting deliveries had to make room, by kind."""
        with self._changed:
            return {kind: tuple(spans) for kind, spans in self._discarded.items()}

    @property
    def is_discarding(self) -> bool:
        """Whether the file is so full of what waits for sinks that the oldest is going."""
        return self._is_discarding

    def status(self) -> LedgerStatus:
        """All that is to be said of it."""
        return LedgerStatus(
            fault=self._fault,
            lost=self.lost,
            discarded=self.discarded,
            is_discarding=self._is_discarding,
        )

    def waiting(self, sink: str) -> int:
        """Committed deliveries of a sink that it has neither taken nor refused."""
        return self._waiting[sink]

    def refused(self, sink: str) -> int:
        """Deliveries that a sink has refused and the ledger still has."""
        return self._refused[sink]

    def newest(self, sink: str) -> int:
        """The id of the newest committed delivery of a sink, or of any before this run."""
        return self._newest.get(sink, self._newest_before)

    def cameras(self) -> dict[str, CameraStatus]:
        """What became of the parts of this epoch, for every camera that had any."""
        with self._changed:
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
        """How many parts of this epoch have begun: of all cameras."""
        with self._changed:
            return len(self._open) + self._counts.total()

    # ---- for the station

    def next_sequence(self, camera: str) -> int:
        """The number of `camera`'s next part.

        They count 1, 2, 3, … without gaps over all cameras, also after a restart.
        """
        with self._changed:
            self._last_sequence += 1
            self._open[self._last_sequence] = camera
            self._unwritten.add(self._last_sequence)
            return self._last_sequence

    def expect(self, part: Part) -> None:
        """Note that `part` has begun; after a crash it ends as ERROR, not in silence."""
        row = begun_row(part)
        with self._changed:
            self._check_begun(part.trigger)
            if self._queued_bytes + _ROW_BYTES <= self._memory_bytes:
                self._add(_Begun(row=row), _ROW_BYTES)

    def record(self, part: Part, thumbnail: bytes | None = None) -> bool:
        """Record the end of a part and what sinks want of it, all or nothing.

        The first end of a part counts; `False` says that this one was not the first.
        """
        entry = _Ended(
            row=ended_row(part, has_thumbnail=thumbnail is not None),
            wanted=self._wanted(part, has_thumbnail=thumbnail is not None),
            thumbnail=thumbnail,
        )
        weight, sequence = _weight(entry), entry.row.sequence
        with self._changed:
            self._check_begun(part.trigger)
            if sequence not in self._open:
                return False
            del self._open[sequence]
            self._counts[entry.kind] += 1
            if self._queued_bytes + weight > self._memory_bytes:
                self._lose(sequence, entry.kind)
            else:
                self._is_pressing |= bool(entry.wanted)
                self._add(entry, weight)
        return True

    def may_leave(self, sequence: int, timeout_s: float = 0.0) -> bool:
        """Wait until a sequence is safe to be known outside this process; `False`: it is not.

        Before that a crash could have it given to another part.
        """

        def is_safe() -> bool:
            if sequence <= self._noted:
                return True
            at = bisect.bisect_right(self._losing, (sequence, _NO_END)) - 1
            is_losing = at >= 0 and sequence <= self._losing[at][1]
            return not is_losing and sequence not in self._unwritten

        with self._changed:
            return self._changed.wait_for(lambda: is_safe() or self._is_closed, timeout_s) and (
                is_safe()
            )

    def recorded(self, asked: Collection[str]) -> Collection[str]:
        """Which of these sources have had a part that ended; none while it cannot be read."""
        clean_asked = [clean(source) for source in asked]
        return self._read(lambda file: sources.known(file, clean_asked, self.ages.now_ns())) or ()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was recorded is committed; `False` if that took too long."""
        with self._changed:
            target = self._added
            self._is_pressing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._settled >= target or self._is_closed, timeout_s)
            return self._settled >= target

    # ---- for sinks

    def listen(self, sink: str, listener: Callable[[], None]) -> None:
        """Call `listener` in the owner thread after each commit that brought deliveries."""
        self._listeners[sink] = listener

    def waiting_for(
        self, sink: str, *, after: int, limit: int, upto: int = _NO_END
    ) -> list[tuple[Delivery, Event]]:
        """Up to `limit` waiting deliveries of a sink, oldest first, with their events.

        Those with ids above `after` and up to `upto`. Waits for the owner thread; empty while the
        file cannot be read.
        """

        def read(file: sqlite3.Connection) -> list[sqlite3.Row]:
            rows = outbox.read_waiting(file, sink, after=after, upto=upto, limit=limit)
            self._in_hand.update(row["id"] for row in rows)
            return rows

        return [outbox.delivery_of(row) for row in self._read(read) or ()]

    def settle(self, marks: Sequence[Mark]) -> None:
        """Sinks have taken or refused these deliveries; refused ones are kept."""
        with self._changed:
            for mark in marks:
                self._add(mark, 0)

    def requeue(self, sink: str, epoch: str, span: Span, *, parts: int) -> Requeued | None:
        """Have the settled deliveries of the first `parts` parts of `span` wait again.

        `None` while the file cannot be written.
        """

        def count(found: Requeued) -> None:
            self._waiting[sink] += len(found.ids)
            self._refused[sink] -= found.refused

        return self._ask(
            lambda file: outbox.requeue(file, sink, epoch, span, parts=parts), then=count
        )

    def deliveries_of(self, sink: str, epoch: str, span: Span) -> int | None:
        """How many deliveries of these parts the ledger still has; `None` where it cannot tell."""
        return self._read(lambda file: outbox.count_of(file, sink, epoch, span))

    @property
    def last_sequence(self) -> int:
        """The newest sequence that was given."""
        return self._last_sequence

    # ---- for requests

    def label(self, epoch: str, sequence: int, label: str) -> bool:
        """Keep an operator's word on a part; `False` if there is no such part or no disk."""
        return bool(self._ask(lambda file: annotations.insert_label(file, epoch, sequence, label)))

    def change_threshold(self, change: ThresholdChange) -> bool:
        """Keep a change of the threshold; `False` where the disk cannot."""
        epoch, after = self._epoch, self._last_sequence
        return bool(
            self._ask(lambda file: annotations.insert_threshold(file, epoch, after, change))
        )

    def changed_threshold(self, calibration_id: str) -> float | None:
        """What the threshold of this calibration was changed to, if it was."""
        return self._read(lambda file: annotations.read_threshold(file, calibration_id))

    def use_nonce(self, nonce: str, *, until_ns: int, now_ns: int) -> bool | None:
        """Note that a request is obeyed; `False`: it was before, `None`: it cannot be noted."""
        return self._ask(lambda file: annotations.use_nonce(file, nonce, until_ns, now_ns))

    # ---- for services

    def thumbnail(self, epoch: str, sequence: int) -> bytes | None:
        """The picture of a part, if there is one."""
        row = self._read(
            lambda file: file.execute(
                "SELECT jpeg FROM thumbnails WHERE epoch = ? AND sequence = ?", (epoch, sequence)
            ).fetchone()
        )
        return None if row is None else bytes(row["jpeg"])

    def _rows_after(self, cursor: Cursor, limit: int) -> list[Event] | None:
        """The next events recorded after a part; from the oldest where it is not known."""
        epoch, sequence = cursor

        rows = self._read(lambda file: outbox.read_recorded_after(file, epoch, sequence, limit))
        return None if rows is None else [event_of(dict(row)) for row in rows]

    # ---- the queue

    def _wanted(self, part: Part, *, has_thumbnail: bool) -> tuple[Wanted, ...]:
        return tuple(
            (sink.name, item)
            for sink in self._sinks
            for item in sink.items(part)
            if has_thumbnail or item != THUMBNAIL
        )

    def _read(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Have the owner thread read something; `None` where it cannot."""
        return self._ask(work, is_writing=False)

    def _ask(
        self,
        work: Callable[[sqlite3.Connection], _T],
        *,
        then: Callable[[_T], None] = lambda _found: None,
        is_writing: bool = True,
    ) -> _T | None:
        """Have `work` done by the owner thread, in a transaction; `None` where it cannot be.

        `then` is called there with what came of it, once that is committed.
        """
        answer: Future[_T | None] = Future()

        def do() -> None:
            found = None
            try:
                if self._connection is not None:
                    if is_writing:
                        with transaction(self._connection):
                            done = work(self._connection)
                    else:
                        done = work(self._connection)
                    then(done)
                    found = done
            except sqlite3.Error as error:
                if isinstance(error, _ODD):
                    _LOG.warning("the ledger does not take what was asked: %s", error)
                else:
                    self._fail(error)
            except Exception:  # noqa: BLE001 - the thread goes on
                _LOG.exception("the ledger could not do what was asked")
            finally:
                answer.set_result(found)

        with self._changed:
            if self._is_closed:
                return None
            self._reads.append(do)
            self._changed.notify_all()
        return answer.result()

    def _check_begun(self, trigger: Trigger) -> None:
        if not 1 <= trigger.sequence <= self._last_sequence:
            raise ValueError(f"sequence {trigger.sequence} was not given by next_sequence()")

    def _add(self, entry: _Entry, weight: int) -> None:
        self._queue.append(entry)
        self._queued_bytes += weight
        self._added += 1
        self._changed.notify_all()

    def _lose(self, sequence: int, kind: Kind) -> None:
        self._losing = with_span(self._losing, sequence, sequence)
        self._losing_kinds[kind] += 1
        self._lost = with_span(self._lost, sequence, sequence)
        self._unwritten.discard(sequence)

    # ---- everything below runs in the owner thread

    def _own(self) -> None:
        try:
            self._notes = self._note_file.read()
            self._open_when_free()
            self._epoch = self._epoch or new_epoch()
        except BaseException as error:  # noqa: BLE001 - raised where the ledger is entered
            self._ready.set_exception(error)
            self._close()
            return
        self._ready.set_result(None)
        try:
            while self._wait():
                self._work()
            self._work()
        except Exception:  # noqa: BLE001 - a fault in health, and the stop does not hang
            _LOG.exception("the thread that writes the ledger has died")
        finally:
            self._close()

    def _open_when_free(self) -> None:
        """Open the file; one that another process has open is waited for, and that said once."""
        is_said = False
        while True:
            try:
                self._try_to_open()
                return
            except sqlite3.Error as error:
                if not locked(error):
                    raise
            if not is_said:
                _LOG.warning(
                    "%s is open in another program: waiting for it, no part is inspected;"
                    " if that is another agent, give each its own ledger.path",
                    self._path,
                )
                is_said = True
            if self._stop_waiting.wait(_RETRY_S) or self._stopping:
                raise LedgerError(f"{self._path} was open in another program until the stop")

    def _wait(self) -> bool:
        """Wait for work, or in a fault for the next attempt; `False` when it is time to stop."""
        with self._changed:
            if self._fault is None:
                wait_s = max(0.0, min(self._look_due, self._step_due) - time.monotonic())
                self._changed.wait_for(
                    lambda: self._queue or self._reads or self._losing or self._stopping, wait_s
                )
                if self._queue:
                    self._changed.wait_for(
                        lambda: self._is_pressing or self._reads or self._stopping,
                        max(0.0, self._committed_at + _GATHER_S - time.monotonic()),
                    )
            else:
                self._changed.wait_for(lambda: self._reads or self._stopping, _RETRY_S)
            return not self._stopping

    def _work(self) -> None:
        """Serve readers and commit what has gathered, until that is done or a fault comes."""
        self._look_for_the_file()
        self._serve_reads()
        gathered = self._added
        while (
            self._settled < gathered
            or (self._stopping and self._queue)
            or self._losing
            or self._fault is not None
        ):
            if not self._is_open() or not self._commit_group():
                self._note_losses()
                return
            self._serve_reads()
            self._sweep()
        self._sweep()

    def _is_open(self) -> bool:
        """Whether the file is open, or could be opened now, with room made where it was full."""
        if self._connection is None:
            try:
                self._try_to_open()
            except (sqlite3.Error, ConfigurationError) as error:
                self._fail(error)
        if self._connection is not None and self._is_full:
            self._make_room()
        return self._connection is not None

    def _look_for_the_file(self) -> None:
        """What is written into a file that somebody has removed is lost."""
        now = time.monotonic()
        if now < self._look_due or self._connection is None:
            return
        self._look_due = now + _LOOK_S
        if identity(self._path) != self._identity:
            self._fail(
                LedgerError("was removed or replaced while the agent runs; a new one is begun")
            )

    def _sweep(self) -> None:
        """Take the next step of the sweep over what is kept, when it is due."""
        if time.monotonic() < self._step_due or self._stopping:
            return
        self._note_file.prepare()
        if self._limits is None:
            self._step_due = time.monotonic() + _SWEEP_S
            return
        if self._reserve.take() and self._is_growth_stopped and self._connection is not None:
            limit_pages(self._connection, self._limits)
            self._is_growth_stopped = False
        found = self._step(needs_room=self._is_growth_stopped)
        is_over = found is None or found.place is None
        self._step_due = time.monotonic() + (_SWEEP_S if is_over else _STEP_S)

    def _make_room(self) -> None:
        """The disk or the file is full: give up the reserve and some of what was delivered."""
        if self._limits is not None and self._connection is not None:
            self._reserve.give_up()
            with suppress(sqlite3.Error):
                # The journal's own space serves again, once what it holds is in the file.
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            self._is_growth_stopped = self._reserve.is_space_short()
            if self._is_growth_stopped:
                stop_growth(self._connection)
            else:
                limit_pages(self._connection, self._limits)
            self._step(needs_room=True)

    def _step(self, *, needs_room: bool) -> Step | None:
        """One step of the sweep; `None` when the file could not be written."""
        if self._limits is None or self._connection is None:
            return None
        try:
            found = step(
                self._connection,
                self._limits,
                now_ns=self.ages.now_ns(),
                place=self._place,
                in_hand=self._in_hand,
                needs_room=needs_room,
            )
        except sqlite3.Error as error:
            self._fail(error)
            return None
        self._waiting -= found.waiting
        self._refused -= found.refused
        if found.discarded and not self._is_discarding:
            _LOG.error("%s is full: what waits for sinks is discarded", self._path)
        if found.discarded:
            self._is_discarding = True
        elif found.place is None:
            self._is_discarding = False
        with self._changed:
            for kind, epoch, sequence in found.discarded:
                if epoch == self._epoch:
                    add_discarded(self._discarded, kind, sequence)
        self._place = found.place or Place()
        return found

    def _serve_reads(self) -> None:
        while self._reads:
            self._reads.popleft()()

    def _try_to_open(self) -> None:
        """Open the file and begin a run in it; raises where another process has it open.

        At the start also `ConfigurationError`; everything else is a fault.
        """
        is_first = not self._ready.done()
        try:
            connection, is_new = open_or_rescue(self._path)
        except (sqlite3.Error, OSError) as error:
            if is_first and locked(error):
                raise
            self._fail(error)
            return
        notes = self._notes
        try:
            with transaction(connection):
                known = "" if is_new else runs.latest_epoch(connection, self._run_of.agent_id)
                standing = runs.begin(
                    connection,
                    self._run_of,
                    epoch=self._epoch or known or new_epoch(),
                    is_live=bool(self._epoch),
                    ids_after=max([self._newest_before, *self._newest.values()]),
                    wanted=lambda part: self._wanted(part, has_thumbnail=False),
                    notes=notes,
                )
            if not self._epoch:
                self._discarded = read_discarded(connection, standing.epoch)
            if self._limits is not None:
                limit_pages(connection, self._limits)
        except (sqlite3.Error, OSError) as error:
            connection.close()
            if is_first and locked(error):
                raise
            self._fail(error)
            return
        self._connection = connection
        self._identity = identity(self._path)
        self._take_up(standing)
        self._note_file.prepare()
        if notes:
            self._notes = []
            self._note_file.write([])

    def _take_up(self, standing: Standing) -> None:
        """Take up the counts where the file has them, unless this run has begun to count."""
        self._run = standing.run
        self._waiting, self._refused = standing.waiting, standing.refused
        self._newest_before = max(self._newest_before, standing.newest)
        self._position = max(self._position, standing.position)
        if standing.trusted is not None and not self._epoch:
            self.ages.take_up(standing.trusted)
        if not self._epoch:
            self._epoch = standing.epoch
            self._last_sequence = standing.last_sequence
            self._counts = standing.counts.copy()
            self._committed = standing.counts
            self._lost = standing.lost
            self._lost_before = _total(standing.lost)
            self._latest = standing.latest

    def _commit_group(self) -> bool:
        with self._changed:
            group = self._next_group()
            self._is_pressing = False
            losing, losing_kinds = self._losing, self._losing_kinds
            self._losing, self._losing_kinds = [], Counter()
        try:
            written = self._write(group, losing, losing_kinds)
        except _OddEntryError as error:
            self._put_back([e for e in group if e is not error.entry], losing, losing_kinds)
            self._pass_over(error.entry, str(error))
            return True
        except (sqlite3.Error, OSError) as error:
            self._put_back(group, losing, losing_kinds)
            self._fail(error)
            return False
        with self._changed:
            self._settled += len(group)
            self._queued_bytes -= sum(_weight(entry) for entry in group)
            if self._fault is not None:
                _LOG.warning("writing to %s again", self._path)
            self._fault, self._is_full = None, False
            self._committed_at = time.monotonic()
            self._unwritten -= {e.row.sequence for e in group if not isinstance(e, Mark)}
            self._changed.notify_all()
        if self._noted:
            self._noted = self._noted_last = 0
            self._note_file.write(self._notes)
        self._in_hand.difference_update(entry.id for entry in group if isinstance(entry, Mark))
        for sink in written.sinks:
            if (listener := self._listeners.get(sink)) is not None:
                listener()
        self.feed.offer(written.events)
        return True

    def _put_back(
        self, group: list[_Entry], losing: list[Span], losing_kinds: Counter[Kind]
    ) -> None:
        with self._changed:
            self._queue.extendleft(reversed(group))
            for first, last in losing:
                self._losing = with_span(self._losing, first, last)
            self._losing_kinds += losing_kinds

    def _pass_over(self, entry: _Entry, reason: str) -> None:
        """One entry can never be written: name it, and go on with those behind it."""
        with self._changed:
            self._settled += 1
            self._queued_bytes -= _weight(entry)
            if isinstance(entry, _Ended):
                self._lose(entry.row.sequence, entry.kind)
        name = f"delivery {entry.id}" if isinstance(entry, Mark) else f"part {entry.row.sequence}"
        _LOG.error("%s cannot be recorded: %s", name, reason)

    def _next_group(self) -> list[_Entry]:
        group: list[_Entry] = []
        room = _GROUP_BYTES
        while self._queue and len(group) < _GROUP and room > 0:
            group.append(self._queue.popleft())
            room -= _weight(group[-1])
        return group

    def _write(
        self, group: list[_Entry], losing: list[Span], losing_kinds: Counter[Kind]
    ) -> "_Written":
        """Write one transaction."""
        connection = self._connection
        assert connection is not None
        committed = self._committed + losing_kinds
        waiting, refused = self._waiting.copy(), self._refused.copy()
        latest, newest, position = dict(self._latest), dict(self._newest), self._position
        ended: list[PartRow] = []
        with transaction(connection):
            for entry in group:
                try:
                    match entry:
                        case _Begun(row=row):
                            runs.write_begun(connection, self._epoch, self._run, row)
                        case _Ended(row=row, wanted=wanted, thumbnail=thumbnail):
                            position += 1
                            row = replace(row, position=position)
                            runs.write_ended(connection, self._epoch, self._run, row, thumbnail)
                            last = outbox.insert(
                                connection, self._epoch, row.sequence, wanted, latest
                            )
                            for sink, _ in wanted:
                                newest[sink] = last
                                waiting[sink] += 1
                            committed[entry.kind] += 1
                            ended.append(row)
                        case Mark():
                            settled = outbox.write_mark(connection, entry)
                            if settled is not None:
                                waiting[settled] -= 1
                                refused[settled] += entry.refused is not None
                except _ODD as error:
                    raise _OddEntryError(entry, error) from error
            for span in losing:
                runs.write_loss(connection, self._epoch, span, self._fault or "")
            if ended or losing:
                runs.write_tally(connection, self._epoch, committed)
            if latest != self._latest:
                outbox.write_latest(connection, self._epoch, latest)
            if time.monotonic() >= self._clock_due:
                write_trusted(connection, self.ages.trusted())
                self._clock_due = time.monotonic() + _CLOCK_S
        sinks = [sink for sink in newest if newest[sink] != self._newest.get(sink)]
        self._committed, self._latest, self._position = committed, latest, position
        self._waiting, self._refused, self._newest = waiting, refused, newest
        return _Written(sinks=sinks, events=self._events(ended) if self.feed.is_heard else [])

    def _events(self, ended: Sequence[PartRow]) -> list[Event]:
        about = {
            "agent_id": self._run_of.agent_id,
            "epoch": self._epoch,
            "bundle_id": self._run_of.bundle_id,
            "calibration_id": self._run_of.calibration_id,
            "software": self._run_of.software,
            "jpeg": None,
        }
        return [event_of(about | runs.values(row)) for row in ended]

    def _fail(self, error: sqlite3.Error | OSError | ConfigurationError | LedgerError) -> None:
        """Log once what stops the writing; unless the disk is full, open the connection again."""
        hint = " (the disk is read-only)" if is_read_only(self._path.parent) else ""
        fault = f"{self._path}: {error}{hint}"
        if fault != self._fault:
            _LOG.error("nothing can be recorded, rows wait in memory: %s", fault)
        self._fault = fault
        self._is_full = error_code(error) == sqlite3.SQLITE_FULL
        if self._is_full and self._connection is None and self._limits is not None:
            self._reserve.give_up()  # the file could not even be opened
        if self._connection is not None and not self._is_full:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _note_losses(self, *, is_last: bool = False) -> None:
        """Note beside the ledger what it could not take, and which sequences are given."""
        with self._changed:
            lost, counts = self._losing, self._losing_kinds.copy()
            for entry in self._queue:
                if isinstance(entry, _Ended):
                    lost = with_span(lost, entry.row.sequence, entry.row.sequence)
                    counts[entry.kind] += 1
            last = self._last_sequence
            given = last - self._noted_last if self._noted else 0
            reserved = last if is_last else last + max(_AHEAD, 2 * given)
        note = Note(epoch=self._epoch, reserved=reserved, lost=tuple(lost), counts=counts)
        if not self._epoch or not self._note_file.write([*self._notes, note]):
            return
        with self._changed:
            self._noted, self._noted_last = reserved, last
            self._changed.notify_all()

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error), transaction(self._connection):
                write_trusted(self._connection, self.ages.trusted())
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        with self._changed:
            self._is_closed = True
            if not self._stopping:
                self._fault = "the thread that writes has died: restart the agent"
            self._serve_reads()
            self._changed.notify_all()
        self.feed.close()
        if self._queue or self._losing:
            self._note_losses(is_last=True)
            for entry in self._queue:
                if isinstance(entry, _Ended):
                    self._lose(entry.row.sequence, entry.kind)
            spans = ", ".join(f"{first}-{last}" for first, last in self._losing)
            _LOG.error("stopped while nothing could be recorded; lost: parts %s", spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What a commit has brought: for which sinks, and for the feed."""

    sinks: Sequence[str]
    events: Sequence[Event]


def _weight(entry: _Entry) -> int:
    match entry:
        case _Begun():
            return _ROW_BYTES
        case _Ended():
            return _ROW_BYTES + len(entry.thumbnail or b"")
        case Mark():
            return 0


def _total(spans: Sequence[Span]) -> int:
    return sum(last - first + 1 for first, last in spans)
