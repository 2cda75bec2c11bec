"""The owner thread of the ledger's file: commits groups, serves readers, removes what is old.

    queue ──▶ owner thread ══ one transaction ══▶ file
    reads ◀──────┘   └──▶ listeners of sinks, feed

It owns the only connection (WAL, synchronous FULL) and commits whatever has gathered while the
disk was busy: at once what a sink wants, the rest at most twenty times a second, as a flush costs
more than the rows. A disk that is full or read-only stops nothing: rows wait in the queue, and what
does not fit there is counted by sequence, also over a restart. Between commits it removes what is
old or too much, a few parts at a time (`agent/record/retention.py`).
"""

import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from agent.busy import Busy
from agent.part import Part
from agent.record import outbox, runs
from agent.record.feed import Feed, Row
from agent.record.outbox import Mark, Wanted
from agent.record.queue import Begun, Ended, Entry, EntryQueue, Group
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
from agent.record.rows import Kind, PartRow, Span
from agent.record.runs import Run, Standing
from agent.record.schema import error_code, identity, is_read_only, new_epoch, transaction
from engine.errors import ConfigurationError, LedgerError

_LOG: Final = logging.getLogger("atac_agent.ledger")
_GATHER_S: Final = 0.05
"""From one commit to the next, where nothing that waits is wanted by a sink."""
_RETRY_S: Final = 1.0
_LOOK_S: Final = 0.5
"""From one look whether the file is still there to the next."""
_SWEEP_S: Final = 1.0
"""From one look for what may go to the next; there is nothing to be found at most of them."""
_STEP_S: Final = 0.05
"""Between two steps of a sweep that finds something, so that commits are not held up."""
_HELD_UP_S: Final = 3.0
"""After so long without an answer of the disk there is a fault."""
_STOP_S: Final = 20.0
"""How long a stop waits for the disk."""
_CLOCK_S: Final = 60.0
"""How often the time that ages count from is kept."""
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


class _OddEntryError(Exception):
    """One entry of a group cannot be written, whatever the disk does."""

    def __init__(self, entry: Entry, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.entry = entry


class Writer:
    """The thread that owns the file; `start` and `stop` it.

    Args:
        path: The file.
        run: Whose parts these are, by which model.
        queue: What is to be written.
        feed: Is told of every part that was.
        sinks: The names of all sinks.
        wanted: What they want of a part that has no picture.
        limits: What is kept; `None`: everything.
        stop_waiting: Ends the wait for a file that another process has open.
    """

    def __init__(
        self,
        path: Path,
        run: Run,
        queue: EntryQueue,
        feed: Feed,
        *,
        sinks: Sequence[str],
        wanted: Callable[[Part], tuple[Wanted, ...]],
        limits: Limits | None,
        stop_waiting: threading.Event,
    ) -> None:
        self._path = path
        self._run_of = run
        self._queue = queue
        self._busy = Busy(_HELD_UP_S)
        self._feed = feed
        self._sinks = sinks
        self._wanted = wanted
        self._limits = limits
        self._stop_waiting = stop_waiting
        self._changed = queue.changed
        self._reads: deque[Callable[[], None]] = deque()
        self._stopping = False
        self.epoch = ""
        self._fault: str | None = None
        self.waiting: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._newest: dict[str, int] = {}
        self._newest_before = 0
        self._discarded: dict[Discard, list[Span]] = {kind: [] for kind in KINDS}
        self.is_discarding = False
        self.listeners: Final[dict[str, Callable[[], None]]] = {}
        self.ages: Final = AgeClock()
        self.in_hand: Final[set[int]] = set()
        """Deliveries that sinks have read and not settled: they are not discarded."""

        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._run = 0
        self._runs: dict[tuple[str, str], int] = {}
        """The run of each bundle and calibration, as `Ended.model` has them."""
        self._position = 0
        self._latest: dict[Wanted, int] = {}
        self._committed: Counter[Kind] = Counter()
        self._committed_at = 0.0
        self._place = Place()
        self._step_due = self._clock_due = self._look_due = 0.0
        self._is_full = False
        self._is_making_room = False
        self._is_growth_stopped = False
        self._reserve = Reserve(path)
        self._note_file = NoteFile(path)
        self._notes: list[Note] = []  # of earlier runs
        self._thread = threading.Thread(target=self._own, name="atac-ledger", daemon=True)
        self._ready: Future[None] = Future()

    @property
    def fault(self) -> str | None:
        """Why nothing can be written just now, in one line; `None` while all is well."""
        if self._busy.is_late:
            return f"{self._path}: its disk does not answer: nothing is recorded, messages wait"
        return self._fault

    def start(self) -> None:
        """Begin; wait until the file is open or known to have a fault; raises what forbids both."""
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Write what waits, if that can be, and end; a disk that hangs is left behind."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            _say_lost(self._queue.abandon())

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def discarded(self) -> dict[str, tuple[Span, ...]]:
        """Sequence ranges of this epoch whose waiting deliveries had to make room, by kind."""
        with self._changed:
            return {kind: tuple(spans) for kind, spans in self._discarded.items()}

    def newest(self, sink: str) -> int:
        """The id of the newest committed delivery of a sink, or of any before this run."""
        return self._newest.get(sink, self._newest_before)

    def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Have the owner thread read something; `None` where it cannot."""
        return self.ask(work, is_writing=False)

    def ask(
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
            if self._queue.is_closed:
                return None
            self._reads.append(do)
            self._changed.notify_all()
        return answer.result()

    # ---- everything below runs in the owner thread

    def _own(self) -> None:
        try:
            self._notes = self._note_file.read()
            self._open_when_free()
            self.epoch = self.epoch or new_epoch()
        except BaseException as error:  # noqa: BLE001 - raised where the ledger is entered
            self._ready.set_exception(error)
            self._close()
            return
        self._ready.set_result(None)
        try:
            while self._wait():
                with self._busy:
                    self._work()
            with self._busy:
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
        queue = self._queue
        with self._changed:
            if self._fault is None:
                wait_s = max(0.0, min(self._look_due, self._step_due) - time.monotonic())
                self._changed.wait_for(
                    lambda: queue.has_entries or self._reads or queue.is_losing or self._stopping,
                    wait_s,
                )
                if queue.has_entries:
                    self._changed.wait_for(
                        lambda: queue.is_pressing or self._reads or self._stopping,
                        max(0.0, self._committed_at + _GATHER_S - time.monotonic()),
                    )
            else:
                self._changed.wait_for(lambda: self._reads or self._stopping, _RETRY_S)
            return not self._stopping

    def _work(self) -> None:
        """Serve readers and commit what has gathered, until that is done or a fault comes."""
        self._look_for_the_file()
        self._serve_reads()
        queue = self._queue
        gathered = queue.added
        while (
            queue.settled < gathered
            or (self._stopping and queue.has_entries)
            or queue.is_losing
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
        found = identity(self._path)
        if found is None or found != self._identity:
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
            found = self._step(needs_room=True)
            # Before the end of its sweep nobody knows whether there is room to be made.
            self._is_making_room = found is not None and found.place is not None

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
                in_hand=self.in_hand,
                needs_room=needs_room,
            )
        except sqlite3.Error as error:
            self._fail(error)
            return None
        self.waiting -= found.waiting
        self.refused -= found.refused
        if found.discarded and not self.is_discarding:
            _LOG.error("%s is full: what waits for sinks is discarded", self._path)
        if found.discarded:
            self.is_discarding = True
        elif found.place is None:
            self.is_discarding = False
        with self._changed:
            for kind, epoch, sequence in found.discarded:
                if epoch == self.epoch:
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
                    epoch=self.epoch or known or new_epoch(),
                    is_live=bool(self.epoch),
                    ids_after=max([self._newest_before, *self._newest.values()]),
                    sinks=self._sinks,
                    wanted=self._wanted,
                    notes=notes,
                )
            if not self.epoch:
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

    def _write(self, group: Group) -> "_Written":
        """Write one transaction."""
        connection = self._connection
        assert connection is not None
        committed = self._committed + group.kinds
        waiting, refused = self.waiting.copy(), self.refused.copy()
        latest, newest, position = dict(self._latest), dict(self._newest), self._position
        known_runs = dict(self._runs)
        ended: list[tuple[PartRow, tuple[str, str]]] = []
        with transaction(connection):
            for entry in group.entries:
                try:
                    match entry:
                        case Begun(row=row):
                            runs.write_begun(connection, self.epoch, self._run, row)
                        case Ended(row=row, wanted=wanted, thumbnail=thumbnail, model=model):
                            position += 1
                            row = replace(row, position=position)
                            if model not in known_runs:
                                run = runs.insert_run(connection, self.epoch, self._run_by(model))
                                known_runs[model] = run
                            runs.write_ended(
                                connection, self.epoch, known_runs[model], row, thumbnail
                            )
                            last = outbox.insert(
                                connection, self.epoch, row.sequence, wanted, latest
                            )
                            for sink, _ in wanted:
                                newest[sink] = last
                                waiting[sink] += 1
                            committed[entry.kind] += 1
                            ended.append((row, model))
                        case Mark():
                            settled = outbox.write_mark(connection, entry)
                            if settled is not None:
                                waiting[settled] -= 1
                                refused[settled] += entry.refused is not None
                except _ODD as error:
                    raise _OddEntryError(entry, error) from error
            for span in group.losing:
                runs.write_loss(connection, self.epoch, span, self._fault or "")
            if ended or group.losing:
                runs.write_tally(connection, self.epoch, committed)
            if latest != self._latest:
                outbox.write_latest(connection, self.epoch, latest)
            if time.monotonic() >= self._clock_due:
                write_trusted(connection, self.ages.trusted())
                self._clock_due = time.monotonic() + _CLOCK_S
        sinks = [sink for sink in newest if newest[sink] != self._newest.get(sink)]
        self._committed, self._latest, self._position = committed, latest, position
        self._runs = known_runs
        self.waiting, self.refused, self._newest = waiting, refused, newest
        return _Written(sinks=sinks, rows=self._rows(ended) if self._feed.is_heard else [])

    def _run_by(self, model: tuple[str, str]) -> Run:
        """The run of parts that this bundle and this calibration have decided."""
        bundle_id, calibration_id = model
        return replace(self._run_of, bundle_id=bundle_id, calibration_id=calibration_id)

    def _rows(self, ended: Sequence[tuple[PartRow, tuple[str, str]]]) -> list[Row]:
        """What the feed is told: the columns of the parts and of their runs."""
        about = {
            model: asdict(self._run_by(model) if any(model) else self._run_of)
            | {"epoch": self.epoch, "jpeg": None}
            for model in {model for _, model in ended}
        }
        return [about[model] | runs.values(row) for row, model in ended]

    def _fail(self, error: sqlite3.Error | OSError | ConfigurationError | LedgerError) -> None:
        """Log once what stops the writing; unless the disk is full, open the connection again."""
        hint = " (the disk is read-only)" if is_read_only(self._path.parent) else ""
        fault = f"{self._path}: {error}{hint}"
        if fault != self._fault:
            _LOG.error("nothing can be recorded, rows wait in memory: %s", fault)
        self._fault = fault
        self._is_full = error_code(error) == sqlite3.SQLITE_FULL
        if not (self._is_full and self._is_making_room):
            self._queue.failed()
        if self._is_full and self._connection is None and self._limits is not None:
            self._reserve.give_up()  # the file could not even be opened
        if self._connection is not None and not self._is_full:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _take_up(self, standing: Standing) -> None:
        """Take up the counts where the file has them, unless this run has begun to count."""
        self._run = standing.run
        begun_with = (self._run_of.bundle_id, self._run_of.calibration_id)
        self._runs = {begun_with: standing.run, ("", ""): standing.run}
        self.waiting, self.refused = standing.waiting, standing.refused
        self._newest_before = max(self._newest_before, standing.newest)
        self._position = max(self._position, standing.position)
        if self.epoch:
            return
        self.epoch = standing.epoch
        for sink, count in standing.aside.items():
            _LOG.warning(
                "%d messages for the sink %s are set aside, as it is no longer configured:"
                " they are sent if it is again, and go when they are old",
                count,
                sink,
            )
        self._committed = standing.counts
        self._latest = standing.latest
        self._queue.take_up(standing.last_sequence, standing.counts, standing.lost)
        if standing.trusted is not None:
            self.ages.take_up(standing.trusted)

    def _commit_group(self) -> bool:
        group = self._queue.take()
        try:
            written = self._write(group)
        except _OddEntryError as error:
            self._queue.put_back(group, without=error.entry)
            odd = error.entry
            name = f"delivery {odd.id}" if isinstance(odd, Mark) else f"part {odd.row.sequence}"
            _LOG.error("%s cannot be recorded: %s", name, error)
            return True
        except (sqlite3.Error, OSError) as error:
            self._queue.put_back(group)
            self._fail(error)
            return False
        if self._fault is not None:
            _LOG.warning("writing to %s again", self._path)
        self._fault, self._is_full, self._is_making_room = None, False, False
        self._committed_at = time.monotonic()
        self._queue.written(group)
        if self._queue.noted(None):
            self._note_file.write(self._notes)
        self.in_hand.difference_update(e.id for e in group.entries if isinstance(e, Mark))
        for sink in written.sinks:
            if (listener := self.listeners.get(sink)) is not None:
                listener()
        self._feed.offer(written.rows)
        return True

    def _note_losses(self, *, is_last: bool = False) -> None:
        """Note beside the ledger what it could not take, and which sequences are given."""
        note = self._queue.note(self.epoch, is_last=is_last)
        if self.epoch and self._note_file.write([*self._notes, note]):
            self._queue.noted(note)

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error), transaction(self._connection):
                write_trusted(self._connection, self.ages.trusted())
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        if self._queue.has_entries or self._queue.is_losing:
            self._note_losses(is_last=True)
        lost = self._queue.close()
        with self._changed:
            if not self._stopping:
                self._fault = "the thread that writes has died: restart the agent"
            self._serve_reads()
        self._feed.close()
        _say_lost(lost)


def _say_lost(lost: Sequence[Span]) -> None:
    if lost:
        spans = ", ".join(f"{first}-{last}" for first, last in lost)
        _LOG.error("stopped while nothing could be recorded; lost: parts %s", spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What a commit has brought: for which sinks, and for the feed."""

    sinks: Sequence[str]
    rows: Sequence[Row]
