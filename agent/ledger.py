"""The ledger: every trigger's one end, and the messages still to be sent, in one SQLite file.

    line ── expect, record ──▶ queue ──▶ owner thread ══ one transaction ══▶ file
    sender ◀── pending_messages ── owner thread ◀── mark_delivered, mark_refused ── sender

One thread owns the only connection (WAL, synchronous FULL) and commits whatever has gathered
while the disk was busy: at once what has messages, the rest at most twenty times a second, as a
flush costs more than the rows. Callers never wait for the disk. A disk that is full or read-only
stops nothing: rows wait in bounded memory, and what does not fit there is counted by sequence.
Between commits the thread removes what is old or too much, a few parts at a time
(`agent/retention.py`).
"""

import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from agent.ledger_file import (
    Announce,
    Begun,
    Ended,
    Kind,
    Mark,
    OutboxMessage,
    Run,
    Span,
    Standing,
    ThresholdChange,
    check_place,
    ended,
    error_code,
    insert_begun,
    insert_ended,
    insert_label,
    insert_loss,
    insert_threshold,
    is_read_only,
    new_epoch,
    open_file,
    parts_upto,
    read_pending,
    read_threshold,
    requeue,
    transaction,
    with_span,
    write_mark,
    write_tally,
)
from agent.messages import LetGo, Message
from agent.part import State
from agent.retention import (
    KINDS,
    AgeClock,
    Limits,
    Place,
    Reserve,
    Step,
    add_let_go,
    limit_pages,
    read_let_go,
    step,
    stop_growth,
)
from agent.verdict import Trigger, Verdict
from engine.errors import ConfigurationError

_LOG: Final = logging.getLogger("atac_agent.ledger")
_GROUP: Final = 1000
"""Entries of one transaction: enough to drain quickly, few enough to keep each commit short."""
_GROUP_BYTES: Final = 2_000_000
"""And few enough to fit into the room that the ledger's limit leaves."""
_GATHER_S: Final = 0.05
"""From one commit to the next, where nothing that waits has messages."""
_RETRY_S: Final = 1.0
_SWEEP_S: Final = 1.0
"""From one look for what may go to the next; there is nothing to be found at most of them."""
_STEP_S: Final = 0.05
"""Between two steps of a sweep that finds something, so that commits are not held up."""
_NO_END: Final = (1 << 63) - 1
_ROW_BYTES: Final = 1000
"""What a queued entry weighs in memory besides its messages, roughly."""

_Entry = Begun | Ended | Mark
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Of one camera's triggers those that are `open`, and how many ended in each state."""

    open: int = 0
    counts: Mapping[State, int] = field(default_factory=dict)

    @property
    def triggers(self) -> int:
        """All that have begun."""
        return self.open + sum(self.counts.values())


class Ledger:
    """The ledger in file `path`; a context manager.

    A file that another agent holds, that is newer than this software or that may not be written
    raises `ConfigurationError` on entry; a damaged one is moved aside and its readable rows are
    kept. A full or read-only disk is `trouble`, said once and retried.

    `announce(verdict, epoch)` gives the messages for triggers that an earlier run left open and
    that become ERROR on entry. `memory_bytes` bounds what waits for the disk, `limits` what is
    kept on it; without them everything is.
    """

    def __init__(
        self,
        path: Path,
        *,
        agent_id: str,
        bundle_id: str = "",
        calibration_id: str = "",
        announce: Announce = lambda _verdict, _epoch: (),
        memory_bytes: int = 64_000_000,
        limits: Limits | None = None,
    ) -> None:
        self._path = path
        self._limits = limits
        self._run_of = Run(agent_id=agent_id, bundle_id=bundle_id, calibration_id=calibration_id)
        self._announce = announce
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
        self._counts: Counter[Kind] = Counter()
        self._lost: list[Span] = []
        self._losing: list[Span] = []
        self._losing_kinds: Counter[Kind] = Counter()
        self._trouble: str | None = None
        self._pending = 0
        self._refused = 0
        self._newest = 0
        self._let_go: dict[LetGo, list[Span]] = {kind: [] for kind in KINDS}
        self._is_letting_go = False
        self._listener: Callable[[], None] = lambda: None

        self._connection: sqlite3.Connection | None = None
        self._run = 0
        self._committed: Counter[Kind] = Counter()
        self._committed_at = 0.0
        self._in_hand: set[int] = set()
        self._place = Place()
        self._ages = AgeClock()
        self._step_due = 0.0
        self._is_full = False
        self._is_growth_stopped = False
        self._reserve = Reserve(path)
        self._thread = threading.Thread(target=self._own, name="atac-ledger")
        self._ready: Future[None] = Future()

    def __enter__(self) -> Self:
        check_place(self._path)
        self._thread.start()
        try:
            self._ready.result()
        except ConfigurationError:
            self._thread.join()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def epoch(self) -> str:
        """Names this count of sequences: a new file, or a new agent id, has a new one."""
        return self._epoch

    @property
    def is_alive(self) -> bool:
        """Whether the thread that writes is running."""
        return self._thread.is_alive()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written just now, in one line; `None` while all is well."""
        return self._trouble

    @property
    def lost(self) -> tuple[Span, ...]:
        """Sequence ranges, first and last inclusive, whose verdicts could not be kept."""
        with self._changed:
            return tuple(self._lost)

    @property
    def let_go(self) -> dict[LetGo, tuple[Span, ...]]:
        """Sequence ranges of this epoch whose undelivered messages had to make room."""
        with self._changed:
            return {kind: tuple(spans) for kind, spans in self._let_go.items()}

    @property
    def is_letting_go(self) -> bool:
        """Whether the file is so full of undelivered messages that the oldest are going."""
        return self._is_letting_go

    @property
    def pending(self) -> int:
        """Committed messages that are neither delivered nor refused."""
        return self._pending

    @property
    def refused(self) -> int:
        """Messages that the broker has refused."""
        return self._refused

    @property
    def newest_message(self) -> int:
        """The id of the newest committed message; 0 before the first."""
        return self._newest

    def next_sequence(self, camera: str) -> int:
        """The number of `camera`'s next trigger.

        They count 1, 2, 3, … without gaps over all cameras, also after a restart.
        """
        with self._changed:
            self._last_sequence += 1
            self._open[self._last_sequence] = camera
            return self._last_sequence

    def expect(self, trigger: Trigger) -> None:
        """Note that `trigger` has begun; after a crash it ends as ERROR, not in silence."""
        with self._changed:
            self._check_begun(trigger)
            if self._queued_bytes + _ROW_BYTES <= self._memory_bytes:
                self._add(Begun(trigger=trigger), _ROW_BYTES)

    def record(self, verdict: Verdict, messages: Sequence[Message]) -> bool:
        """Record the end of a trigger and its messages, all or none of them.

        The first verdict of a trigger counts; `False` says that this one was not the first.
        """
        entry = ended(verdict, messages)
        weight = _weight(entry)
        sequence = verdict.trigger.sequence
        with self._changed:
            self._check_begun(verdict.trigger)
            if sequence not in self._open:
                return False
            del self._open[sequence]
            kind = verdict.trigger.camera, verdict.state
            self._counts[kind] += 1
            if self._queued_bytes + weight > self._memory_bytes:
                self._lose(sequence, kind)
            else:
                self._is_pressing |= bool(messages)
                self._add(entry, weight)
        return True

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was recorded is committed; `False` if that took too long."""
        with self._changed:
            target = self._added
            self._is_pressing = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._settled >= target, timeout_s)

    def accounts(self) -> dict[str, Account]:
        """What became of the triggers of this epoch, for every camera that had any."""
        with self._changed:
            counts, still_open = self._counts.copy(), Counter(self._open.values())
        cameras = sorted({*still_open, *(camera for camera, _ in counts)})
        return {
            camera: Account(
                open=still_open[camera], counts={state: counts[camera, state] for state in State}
            )
            for camera in cameras
        }

    def total(self) -> int:
        """How many triggers of this epoch have begun: the sum of all `accounts`."""
        return self._last_sequence

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` in the owner thread after each commit that brought new messages."""
        self._listener = listener

    def pending_messages(
        self, *, after: int, limit: int, upto: int = _NO_END
    ) -> list[OutboxMessage]:
        """Up to `limit` pending messages with ids above `after` and up to `upto`, oldest first.

        Waits for the owner thread; empty while the file cannot be read.
        """
        answer: Future[list[OutboxMessage]] = Future()

        def read() -> None:
            answer.set_result(self._read_pending(after, upto, limit))

        with self._changed:
            if self._is_closed:
                return []
            self._reads.append(read)
            self._changed.notify_all()
        return answer.result()

    def mark_delivered(self, ids: Iterable[int]) -> None:
        """The broker has acknowledged these messages."""
        self._mark(Mark(ids=tuple(ids), time_ns=time.time_ns()))

    def mark_refused(self, message: int, code: int) -> None:
        """The broker has refused this message; it is kept and counts as not delivered."""
        self._mark(Mark(ids=(message,), time_ns=time.time_ns(), refused=code))

    def label(self, epoch: str, sequence: int, label: str) -> bool:
        """Keep an operator's word on a part; `False` if there is no such part or no disk."""
        return bool(self._ask(lambda file: insert_label(file, epoch, sequence, label)))

    def change_threshold(self, change: ThresholdChange) -> bool:
        """Keep a change of the threshold; `False` where the disk cannot."""
        after = self.total()
        return bool(self._ask(lambda file: insert_threshold(file, self._epoch, after, change)))

    def changed_threshold(self, calibration_id: str) -> float | None:
        """What the threshold of this calibration was changed to, if it was."""
        return self._ask(lambda file: read_threshold(file, calibration_id))

    def requeue(self, epoch: str, span: Span, *, parts: int) -> tuple[tuple[int, int], int] | None:
        """Have the messages of the first `parts` parts of `span` that have any wait again.

        Gives the lowest and highest message id (0, 0 for none) and the last sequence done;
        `None` while the file cannot be written.
        """

        def again(file: sqlite3.Connection) -> tuple[list[int], int, int]:
            _, last = parts_upto(file, epoch, span, parts)
            return *requeue(file, epoch, (span[0], last)), last

        def count(found: tuple[list[int], int, int]) -> None:
            self._pending += len(found[0])
            self._refused -= found[1]

        found = self._ask(again, then=count)
        if found is None:
            return None
        ids, _, last = found
        return (ids[0], ids[-1]) if ids else (0, 0), last

    def messages_of(self, epoch: str, span: Span) -> int | None:
        """How many messages of these parts the ledger still has; `None` where it cannot tell."""
        return self._ask(lambda file: parts_upto(file, epoch, span, 1)[0])

    def _ask(
        self,
        work: Callable[[sqlite3.Connection], _T],
        *,
        then: Callable[[_T], None] = lambda _found: None,
    ) -> _T | None:
        """Have `work` done by the owner thread, in a transaction; `None` where it cannot be.

        `then` is called there with what came of it, once that is committed.
        """
        answer: Future[_T | None] = Future()

        def do() -> None:
            found = None
            try:
                if self._connection is not None:
                    with transaction(self._connection):
                        done = work(self._connection)
                    found = done
                    then(done)
            except sqlite3.Error as error:
                self._fail(error)
            answer.set_result(found)

        with self._changed:
            if self._is_closed:
                return None
            self._reads.append(do)
            self._changed.notify_all()
        return answer.result()

    def _mark(self, mark: Mark) -> None:
        with self._changed:
            self._add(mark, 0)

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

    # ---- everything below runs in the owner thread

    def _own(self) -> None:
        try:
            self._try_to_open()
        except ConfigurationError as error:
            self._ready.set_exception(error)
            return
        self._epoch = self._epoch or new_epoch()
        self._ready.set_result(None)
        try:
            while self._wait():
                self._work()
            self._work()
        finally:
            self._close()

    def _wait(self) -> bool:
        """Wait for work, or in trouble for the next attempt; `False` when it is time to stop."""
        with self._changed:
            if self._trouble is None:
                wait_s = None
                if self._limits is not None:
                    wait_s = max(0.0, self._step_due - time.monotonic())
                self._changed.wait_for(lambda: self._queue or self._reads or self._stopping, wait_s)
                self._changed.wait_for(
                    lambda: self._is_pressing or self._reads or self._stopping,
                    max(0.0, self._committed_at + _GATHER_S - time.monotonic()),
                )
            else:
                self._changed.wait_for(lambda: self._reads or self._stopping, _RETRY_S)
            return not self._stopping

    def _work(self) -> None:
        """Serve readers and commit what has gathered, until that is done or trouble comes."""
        self._serve_reads()
        gathered = self._added
        while (
            self._settled < gathered
            or (self._stopping and self._queue)
            or self._losing
            or self._trouble is not None
        ):
            if self._connection is None and not self._try_to_open():
                return
            if self._is_full:
                self._make_room()
            if not self._commit_group():
                return
            self._serve_reads()
            self._sweep()
        self._sweep()

    def _sweep(self) -> None:
        """Take the next step of the sweep over what is kept, when it is due."""
        if self._limits is None or self._stopping or time.monotonic() < self._step_due:
            return
        if self._reserve.take() and self._is_growth_stopped and self._connection is not None:
            limit_pages(self._connection, self._limits)
            self._is_growth_stopped = False
        found = self._step(needs_room=self._is_growth_stopped)
        if found is not None:
            self._step_due = time.monotonic() + (_SWEEP_S if found.place is None else _STEP_S)

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
                now_ns=self._ages.now_ns(),
                place=self._place,
                in_hand=self._in_hand,
                needs_room=needs_room,
            )
        except sqlite3.Error as error:
            self._fail(error)
            return None
        self._pending -= found.pending
        self._refused -= found.refused
        if found.let_go and not self._is_letting_go:
            _LOG.error("%s is full: undelivered messages make room", self._path)
        if found.let_go:
            self._is_letting_go = True
        elif found.place is None:
            self._is_letting_go = False
        with self._changed:
            for kind, epoch, sequence in found.let_go:
                if epoch == self._epoch:
                    add_let_go(self._let_go, kind, sequence)
        self._place = found.place or Place()
        return found

    def _serve_reads(self) -> None:
        while self._reads:
            self._reads.popleft()()

    def _try_to_open(self) -> bool:
        try:
            connection, standing = open_file(
                self._path, self._run_of, epoch=self._epoch, announce=self._announce
            )
        except (sqlite3.Error, OSError) as error:
            if error_code(error) == sqlite3.SQLITE_BUSY and not self._ready.done():
                remedy = "another agent is writing to this file; give each agent its own"
                raise ConfigurationError("ledger.path", str(self._path), remedy) from None
            self._fail(error)
            return False
        except ConfigurationError as error:
            if not self._ready.done():
                raise
            self._fail(error)
            return False
        self._connection = connection
        if not self._epoch:
            self._let_go = read_let_go(connection, standing.epoch)
        self._take_up(standing)
        if self._limits is not None:
            limit_pages(connection, self._limits)
        return True

    def _take_up(self, standing: Standing) -> None:
        """Take up the counts where the file has them, unless this run has begun to count."""
        self._run = standing.run
        self._pending, self._refused = standing.pending, standing.refused
        self._newest = max(self._newest, standing.newest)
        if not self._epoch:
            self._epoch = standing.epoch
            self._last_sequence = standing.last_sequence
            self._counts = standing.counts.copy()
            self._committed = standing.counts
            self._lost = standing.lost

    def _commit_group(self) -> bool:
        with self._changed:
            group = self._next_group()
            self._is_pressing = False
            losing, losing_kinds = self._losing, self._losing_kinds
            self._losing, self._losing_kinds = [], Counter()
        try:
            added = self._write(group, losing, losing_kinds)
        except (sqlite3.Error, OSError) as error:
            with self._changed:
                self._queue.extendleft(reversed(group))
                for first, last in losing:
                    self._losing = with_span(self._losing, first, last)
                self._losing_kinds += losing_kinds
            self._fail(error)
            return False
        with self._changed:
            self._settled += len(group)
            self._queued_bytes -= sum(_weight(entry) for entry in group)
            if self._trouble is not None:
                _LOG.warning("writing to %s again", self._path)
            self._trouble, self._is_full = None, False
            self._committed_at = time.monotonic()
            self._changed.notify_all()
        for entry in group:
            if isinstance(entry, Mark):
                self._in_hand.difference_update(entry.ids)
        if added:
            self._listener()
        return True

    def _next_group(self) -> list[_Entry]:
        group: list[_Entry] = []
        room = _GROUP_BYTES
        while self._queue and len(group) < _GROUP and room > 0:
            group.append(self._queue.popleft())
            room -= _weight(group[-1])
        return group

    def _write(self, group: list[_Entry], losing: list[Span], losing_kinds: Counter[Kind]) -> int:
        """Write one transaction; returns how many messages it added to the outbox."""
        connection = self._connection
        assert connection is not None
        committed = self._committed + losing_kinds
        pending, refused, newest = self._pending, self._refused, self._newest
        with transaction(connection):
            for entry in group:
                match entry:
                    case Begun():
                        insert_begun(connection, self._epoch, self._run, entry.trigger)
                    case Ended():
                        last = insert_ended(connection, self._epoch, self._run, entry)
                        newest = max(newest, last)
                        pending += len(entry.messages)
                        committed[entry.trigger.camera, entry.state] += 1
                    case Mark():
                        marked = write_mark(connection, entry)
                        pending -= marked
                        refused += marked if entry.refused is not None else 0
            for first, last in losing:
                insert_loss(connection, self._epoch, (first, last), self._trouble or "")
            write_tally(connection, self._epoch, committed)
        added = newest - self._newest
        self._committed = committed
        self._pending, self._refused, self._newest = pending, refused, newest
        return added

    def _read_pending(self, after: int, upto: int, limit: int) -> list[OutboxMessage]:
        if self._connection is None:
            return []
        try:
            found = read_pending(self._connection, after, upto, limit)
        except sqlite3.Error as error:
            self._fail(error)
            return []
        self._in_hand.update(one.id for one in found)
        return found

    def _fail(self, error: sqlite3.Error | OSError | ConfigurationError) -> None:
        """Say once what stops the writing; a connection that is not merely full is made anew."""
        hint = " (the disk is read-only)" if is_read_only(self._path.parent) else ""
        trouble = f"{self._path}: {error}{hint}"
        if trouble != self._trouble:
            _LOG.error("nothing can be recorded, rows wait in memory: %s", trouble)
        self._trouble = trouble
        self._is_full = error_code(error) == sqlite3.SQLITE_FULL
        if self._connection is not None and not self._is_full:
            self._connection.close()
            self._connection = None

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with self._changed:
            self._is_closed = True
            if not self._stopping:
                self._trouble = "the thread that writes has died: restart the agent"
            self._serve_reads()
            self._changed.notify_all()
        unwritten = [entry.trigger.sequence for entry in self._queue if isinstance(entry, Ended)]
        ranges = self._losing
        for sequence in unwritten:
            ranges = with_span(ranges, sequence, sequence)
        if ranges:
            spans = ", ".join(f"{first}-{last}" for first, last in ranges)
            _LOG.error("stopped in trouble; verdicts lost: sequences %s", spans)


def _weight(entry: _Entry) -> int:
    match entry:
        case Begun():
            return _ROW_BYTES
        case Ended():
            return _ROW_BYTES + sum(len(message.payload) for message in entry.messages)
        case Mark():
            return 0
