"""The ledger: every part's one end, and what sinks want of it, in one SQLite file.

    station ── expect, record ──▶ queue ──▶ owner thread ══ one transaction ══▶ file
    sinks ◀── waiting_for ── owner thread ◀── settle ── sinks      └──▶ feed ──▶ services

What callers see of it. `agent/record/queue.py` has what waits, `agent/record/writer.py` the thread.
"""

import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from agent.part import Part
from agent.record import annotations, outbox, sources
from agent.record.annotations import Audited, Change, Label, ThresholdChange
from agent.record.feed import Cursor, Feed, Row
from agent.record.outbox import Mark, Requeued, Wanted
from agent.record.queue import Begun, Ended, EntryQueue
from agent.record.retention import AgeClock, Limits
from agent.record.rows import (
    THUMBNAIL,
    Delivery,
    Event,
    Span,
    begun_row,
    clean,
    ended_row,
    software,
)
from agent.record.runs import Run
from agent.record.schema import check_place
from agent.record.writer import Writer
from agent.station.status import CameraStatus, LedgerStatus

_NO_END: Final = (1 << 63) - 1


class Wants(Protocol):
    """What the ledger asks of a sink."""

    @property
    def name(self) -> str:
        """Names the sink in the ledger."""
        ...

    def items(self, part: Part) -> tuple[str, ...]:
        """What the sink wants to deliver of an ended part."""
        ...


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
        self._queue = EntryQueue(memory_bytes)
        self.feed: Final = Feed(rows_after=self._rows_after, thumbnail=self.thumbnail)
        self._writer = Writer(
            path,
            Run(
                agent_id=agent_id,
                bundle_id=bundle_id,
                calibration_id=calibration_id,
                software=software(),
            ),
            self._queue,
            self.feed,
            sinks=[sink.name for sink in self._sinks],
            wanted=lambda part: self._wanted(part, has_thumbnail=False),
            limits=limits,
            stop_waiting=stop or threading.Event(),
        )

    def __enter__(self) -> Self:
        check_place(self._path)
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.stop()

    # ---- how it stands

    @property
    def epoch(self) -> str:
        """Names this count of sequences: a new file, or a new agent id, has a new one."""
        return self._writer.epoch

    @property
    def is_alive(self) -> bool:
        """Whether the thread that writes is running."""
        return self._writer.is_alive

    @property
    def fault(self) -> str | None:
        """Why nothing can be written just now, in one line; `None` while all is well."""
        return self._writer.fault

    @property
    def ages(self) -> AgeClock:
        """The time that ages of parts and of their pictures count from."""
        return self._writer.ages

    @property
    def lost(self) -> tuple[Span, ...]:
        """Sequence ranges, first and last inclusive, of parts that could not be recorded."""
        return self._queue.lost

    @property
    def lost_in_this_run(self) -> int:
        """How many parts this run could not record; complete once the ledger is left."""
        return self._queue.lost_in_this_run

    @property
    def discarded(self) -> dict[str, tuple[Span, ...]]:
        """Sequence ranges of this epoch whose waiting deliveries had to make room, by kind."""
        return self._writer.discarded

    @property
    def is_discarding(self) -> bool:
        """Whether the file is so full of what waits for sinks that the oldest is going."""
        return self._writer.is_discarding

    @property
    def last_sequence(self) -> int:
        """The newest sequence that was given."""
        return self._queue.last_sequence

    def status(self) -> LedgerStatus:
        """All that is to be said of it."""
        return LedgerStatus(
            fault=self.fault,
            lost=self.lost,
            discarded=self.discarded,
            is_discarding=self.is_discarding,
        )

    def waiting(self, sink: str) -> int:
        """Committed deliveries of a sink that it has neither taken nor refused."""
        return self._writer.waiting[sink]

    def refused(self, sink: str) -> int:
        """Deliveries that a sink has refused and the ledger still has."""
        return self._writer.refused[sink]

    def newest(self, sink: str) -> int:
        """The id of the newest committed delivery of a sink, or of any before this run."""
        return self._writer.newest(sink)

    def cameras(self) -> dict[str, CameraStatus]:
        """What became of the parts of this epoch, for every camera that had any."""
        return self._queue.cameras()

    def total(self) -> int:
        """How many parts of this epoch have begun: the sum of all cameras."""
        return self._queue.total()

    # ---- for the station

    def next_sequence(self, camera: str) -> int:
        """The number of `camera`'s next part.

        They count 1, 2, 3, … without gaps over all cameras, also after a restart.
        """
        return self._queue.next_sequence(camera)

    def expect(self, part: Part) -> None:
        """Note that `part` has begun; after a crash it ends as ERROR, not in silence."""
        self._queue.begin(Begun(row=begun_row(part)))

    def record(self, part: Part, thumbnail: bytes | None = None) -> bool:
        """Record the end of a part and what sinks want of it, all or nothing.

        The first end of a part counts; `False` says that this one was not the first.
        """
        has_thumbnail = thumbnail is not None
        return self._queue.end(
            Ended(
                row=ended_row(part, has_thumbnail=has_thumbnail),
                model=(part.ended.bundle_id, part.ended.calibration_id),
                wanted=self._wanted(part, has_thumbnail=has_thumbnail),
                thumbnail=thumbnail,
            )
        )

    def may_leave(self, sequence: int, timeout_s: float = 0.0) -> bool:
        """Wait until a sequence is safe to be known outside this process; `False`: it is not.

        Before that a crash could have it given to another part.
        """
        return self._queue.may_leave(sequence, timeout_s)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was recorded is committed; `False` if that took too long.

        While nothing can be written, that is given up after a few attempts.
        """
        return self._queue.flush(timeout_s)

    def recorded(self, asked: Collection[str]) -> Collection[str]:
        """Which of these sources have had a part that ended; none while it cannot be read."""
        clean_asked = [clean(source) for source in asked]
        return (
            self._writer.read(lambda file: sources.known(file, clean_asked, self.ages.now_ns()))
            or ()
        )

    # ---- for sinks

    def listen(self, sink: str, listener: Callable[[], None]) -> None:
        """Call `listener` in the owner thread after each commit that brought deliveries."""
        self._writer.listeners[sink] = listener

    def waiting_for(
        self, sink: str, *, after: int, limit: int, upto: int = _NO_END
    ) -> list[tuple[Delivery, Event]]:
        """Up to `limit` waiting deliveries of a sink, oldest first, with their events.

        Those with ids above `after` and up to `upto`. Waits for the owner thread; empty while the
        file cannot be read.
        """

        def read(file: sqlite3.Connection) -> list[sqlite3.Row]:
            rows = outbox.read_waiting(file, sink, after=after, upto=upto, limit=limit)
            self._writer.in_hand.update(row["id"] for row in rows)
            return rows

        return [outbox.delivery_of(row) for row in self._writer.read(read) or ()]

    def settle(self, marks: Sequence[Mark]) -> None:
        """Sinks have taken or refused these deliveries; refused ones are kept."""
        self._queue.settle(marks)

    def requeue(self, sink: str, epoch: str, span: Span, *, parts: int) -> Requeued | None:
        """Have the settled deliveries of the first `parts` parts of `span` wait again.

        `None` while the file cannot be written.
        """

        def count(found: Requeued) -> None:
            self._writer.waiting[sink] += len(found.ids)
            self._writer.refused[sink] -= found.refused

        return self._writer.ask(
            lambda file: outbox.requeue(file, sink, epoch, span, parts=parts), then=count
        )

    def deliveries_of(self, sink: str, epoch: str, span: Span) -> int | None:
        """How many deliveries of these parts the ledger still has; `None` where it cannot tell."""
        return self._writer.read(lambda file: outbox.count_of(file, sink, epoch, span))

    # ---- for requests

    def label(self, label: Label) -> bool:
        """Keep somebody's word on a part; `False` if there is no such part or no disk."""
        return bool(self._writer.ask(lambda file: annotations.insert_label(file, label)))

    def labels_after(self, known: int, limit: int) -> list[dict[str, object]] | None:
        """The next labels after the one with the id `known`; `None`: they cannot be read now."""
        return self._writer.read(lambda file: annotations.labels_after(file, known, limit))

    def change_threshold(self, change: ThresholdChange) -> bool:
        """Keep a change of the threshold; `False` where the disk cannot."""
        epoch, after = self.epoch, self.last_sequence
        return bool(
            self._writer.ask(lambda file: annotations.insert_threshold(file, epoch, after, change))
        )

    def changed_threshold(self, calibration_id: str) -> float | None:
        """What the threshold of this calibration was changed to, if it was."""
        return self._writer.read(lambda file: annotations.read_threshold(file, calibration_id))

    def product(self) -> str | None:
        """The product that somebody switched to last, also in an earlier run."""
        return self._writer.read(annotations.read_product)

    def audited(self, calibration_id: str, threshold: float) -> tuple[int, int] | None:
        """Audited good parts of a calibration, and how many of them are above its threshold."""
        return self._writer.read(lambda file: annotations.audited(file, calibration_id, threshold))

    def note_change(self, change: Change) -> bool:
        """Keep that somebody changed something; `False` where the disk cannot."""
        epoch, after = self.epoch, self.last_sequence
        return bool(
            self._writer.ask(lambda file: annotations.insert_change(file, epoch, after, change))
        )

    def changes(self, since_ns: int = 0) -> list[Audited] | None:
        """The audit log from a time on, the oldest first; `None` where it cannot be read."""
        return self._writer.read(lambda file: annotations.read_changes(file, since_ns))

    def use_nonce(self, nonce: str, *, until_ns: int, now_ns: int) -> bool | None:
        """Note that a request is obeyed; `False`: it was before, `None`: it cannot be noted."""
        return self._writer.ask(lambda file: annotations.use_nonce(file, nonce, until_ns, now_ns))

    # ---- for services

    def thumbnail(self, epoch: str, sequence: int) -> bytes | None:
        """The picture of a part, if there is one."""
        row = self._writer.read(
            lambda file: file.execute(
                "SELECT jpeg FROM thumbnails WHERE epoch = ? AND sequence = ?", (epoch, sequence)
            ).fetchone()
        )
        return None if row is None else bytes(row["jpeg"])

    def _rows_after(self, cursor: Cursor, limit: int) -> list[Row] | None:
        """The next rows recorded after a part; from the oldest where it is not known."""
        epoch, sequence = cursor

        rows = self._writer.read(
            lambda file: outbox.read_recorded_after(file, epoch, sequence, limit)
        )
        return None if rows is None else [dict(row) for row in rows]

    def _wanted(self, part: Part, *, has_thumbnail: bool) -> tuple[Wanted, ...]:
        return tuple(
            (sink.name, item)
            for sink in self._sinks
            for item in sink.items(part)
            if has_thumbnail or item != THUMBNAIL
        )
