"""A run begins in the ledger's file: counts are taken up, and what was left open gets its end.

Every function here works on one connection and runs in the ledger's owner thread.
"""

import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from agent.part import Part, State, Verdict
from agent.record import outbox
from agent.record.outbox import Wanted
from agent.record.rescue import Note
from agent.record.retention import Trusted, read_trusted
from agent.record.rows import (
    COLUMNS,
    KEY,
    Kind,
    PartRow,
    Span,
    ended_row,
    open_part,
    software,
    with_span,
)
from agent.record.schema import number

_LOG: Final = logging.getLogger("atac_agent.ledger")
ABANDONED: Final = "agent stopped before a verdict"
MAY_HAVE_BEGUN: Final = "may have begun before the agent was killed"
_NAMES: Final = ("epoch", "run", *COLUMNS)
_INSERT: Final = (
    f"INSERT INTO triggers ({', '.join(_NAMES)})"  # noqa: S608 (our own names)
    f" VALUES ({', '.join(f':{name}' for name in _NAMES)})"
)
_BEGIN: Final = f"{_INSERT} ON CONFLICT DO NOTHING"
_END: Final = (
    f"{_INSERT} ON CONFLICT (epoch, sequence) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in ("run", *COLUMNS) if name not in KEY)
    + " WHERE state IS NULL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Whose verdicts these are and by which model; empty ids mean none."""

    agent_id: str
    bundle_id: str
    calibration_id: str
    software: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the file holds for an epoch when a run begins; `waiting` and `refused` for each sink."""

    epoch: str
    run: int
    last_sequence: int
    position: int
    counts: Counter[Kind]
    lost: list[Span]
    waiting: Counter[str]
    refused: Counter[str]
    aside: Counter[str]
    newest: int
    latest: dict[Wanted, int]
    trusted: Trusted | None


def latest_epoch(connection: sqlite3.Connection, agent_id: str) -> str:
    """The agent's newest epoch; empty for none."""
    row = connection.execute(
        "SELECT epoch FROM epochs WHERE agent_id = ? ORDER BY rowid DESC", (agent_id,)
    ).fetchone()
    return str(row["epoch"]) if row else ""


def begin(
    connection: sqlite3.Connection,
    run: Run,
    *,
    epoch: str,
    is_live: bool,
    ids_after: int,
    sinks: Sequence[str],
    wanted: Callable[[Part], tuple[Wanted, ...]],
    notes: Sequence[Note],
) -> Standing:
    """Begin a run, in one transaction.

    Args:
        connection: The ledger's.
        run: Who runs.
        epoch: The epoch to go on with, or a new one.
        is_live: This run has begun to count already and only had to open the file again.
        ids_after: The newest delivery of this run: no id comes twice, also in a new file.
        sinks: The names of those that there are.
        wanted: What they want of a part.
        notes: What earlier runs could not write.

    Returns:
        What the file holds for the epoch.
    """
    for name in (*(note.epoch for note in notes), epoch):
        connection.execute(
            "INSERT OR IGNORE INTO epochs (epoch, agent_id, started_ns) VALUES (?, ?, ?)",
            (name, run.agent_id, time.time_ns()),
        )
    at = insert_run(connection, epoch, run)
    if ids_after > _newest_id(connection):
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'deliveries'")
        connection.execute("INSERT INTO sqlite_sequence VALUES ('deliveries', ?)", (ids_after,))
    for note in notes:
        _take_up_note(connection, note)
    _end_abandoned(connection, epoch if is_live else "", wanted)
    lost: list[Span] = []
    for first, last in connection.execute(
        "SELECT first, last FROM losses WHERE epoch = ?", (epoch,)
    ):
        lost = with_span(lost, first, last)
    aside = outbox.keep_to(connection, run.agent_id, sinks)
    tally = connection.execute("SELECT camera, state, ended FROM tally WHERE epoch = ?", (epoch,))
    waiting, refused = outbox.counts(connection)
    return Standing(
        epoch=epoch,
        run=at,
        counts=Counter({(camera, State(state)): count for camera, state, count in tally}),
        lost=lost,
        last_sequence=_last_sequence(connection, epoch),
        position=_position(connection),
        waiting=waiting,
        refused=refused,
        aside=aside,
        newest=_newest_id(connection),
        latest=outbox.read_latest(connection, epoch),
        trusted=read_trusted(connection),
    )


def insert_run(connection: sqlite3.Connection, epoch: str, run: Run) -> int:
    """Note a run, or that it goes on with another bundle; gives its number."""
    at = connection.execute(
        "INSERT INTO runs (epoch, started_ns, bundle_id, calibration_id, software)"
        " VALUES (:epoch, :now_ns, :bundle_id, :calibration_id, :software)",
        {
            "epoch": epoch,
            "now_ns": time.time_ns(),
            "bundle_id": run.bundle_id,
            "calibration_id": run.calibration_id,
            "software": run.software or software(),
        },
    ).lastrowid
    assert at is not None
    return at


def write_begun(connection: sqlite3.Connection, epoch: str, run: int, row: PartRow) -> None:
    """Note that a part has begun."""
    connection.execute(_BEGIN, {"epoch": epoch, "run": run} | values(row))


def write_ended(
    connection: sqlite3.Connection,
    epoch: str,
    run: int,
    row: PartRow,
    thumbnail: bytes | None = None,
) -> None:
    """Note how a part ended, with its picture."""
    connection.execute(_END, {"epoch": epoch, "run": run} | values(row))
    if thumbnail is not None:
        connection.execute(
            "INSERT OR REPLACE INTO thumbnails (epoch, sequence, jpeg)"
            " VALUES (:epoch, :sequence, :jpeg)",
            {"epoch": epoch, "sequence": row.sequence, "jpeg": thumbnail},
        )


def write_loss(connection: sqlite3.Connection, epoch: str, span: Span, reason: str) -> None:
    """Ends of `span` are not here; their begun rows go too, or they would end twice."""
    connection.execute(
        "INSERT INTO losses (epoch, first, last, noticed_ns, reason)"
        " VALUES (:epoch, :first, :last, :now_ns, :reason)"
        " ON CONFLICT (epoch, first) DO UPDATE SET last = max(last, excluded.last)",
        {
            "epoch": epoch,
            "first": span[0],
            "last": span[1],
            "now_ns": time.time_ns(),
            "reason": reason,
        },
    )
    connection.execute(
        "DELETE FROM triggers WHERE epoch = ? AND sequence BETWEEN ? AND ? AND state IS NULL",
        (epoch, *span),
    )


def write_tally(connection: sqlite3.Connection, epoch: str, counts: Counter[Kind]) -> None:
    """How many parts of `epoch` ended in each way, also those whose rows are gone."""
    connection.executemany(
        "INSERT OR REPLACE INTO tally (epoch, camera, state, ended)"
        " VALUES (:epoch, :camera, :state, :ended)",
        [
            {"epoch": epoch, "camera": camera, "state": state.value, "ended": count}
            for (camera, state), count in counts.items()
        ],
    )


def values(row: PartRow) -> dict[str, Any]:
    """The columns of a part by their names."""
    return {name: getattr(row, name) for name in COLUMNS}


def _last_sequence(connection: sqlite3.Connection, epoch: str) -> int:
    return number(
        connection,
        "SELECT max(coalesce((SELECT max(sequence) FROM triggers WHERE epoch = :epoch), 0),"
        " coalesce((SELECT max(last) FROM losses WHERE epoch = :epoch), 0))",
        {"epoch": epoch},
    )


def _position(connection: sqlite3.Connection) -> int:
    return number(connection, "SELECT coalesce(max(position), 0) FROM triggers", {})


def _newest_id(connection: sqlite3.Connection) -> int:
    # Not max(id): the newest may have been removed, and no id comes twice.
    query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'deliveries'"
    return number(connection, query, {})


def _add_to_tally(connection: sqlite3.Connection, epoch: str, counts: Counter[Kind]) -> None:
    connection.executemany(
        "INSERT INTO tally (epoch, camera, state, ended) VALUES (:epoch, :camera, :state, :ended)"
        " ON CONFLICT (epoch, camera, state) DO UPDATE SET ended = ended + excluded.ended",
        [
            {"epoch": epoch, "camera": camera, "state": state.value, "ended": count}
            for (camera, state), count in counts.items()
        ],
    )


def _take_up_note(connection: sqlite3.Connection, note: Note) -> None:
    """What an earlier run could not write is lost, and its sequences do not come again."""
    known = {
        sequence
        for first, last in note.lost
        for (sequence,) in connection.execute(
            "SELECT sequence FROM triggers WHERE epoch = ? AND sequence BETWEEN ? AND ?"
            " AND state IS NOT NULL",
            (note.epoch, first, last),
        )
    }
    if known:
        return  # it was written after all, in the agent's last moment
    for span in note.lost:
        write_loss(connection, note.epoch, span, "the disk was full until the agent stopped")
    _add_to_tally(connection, note.epoch, note.counts)
    first = _last_sequence(connection, note.epoch) + 1
    if note.reserved >= first:
        write_loss(connection, note.epoch, (first, note.reserved), MAY_HAVE_BEGUN)


def _end_abandoned(
    connection: sqlite3.Connection,
    live: str,
    wanted: Callable[[Part], tuple[Wanted, ...]],
) -> None:
    """Close the triggers that an earlier run left open as ERROR and queue their deliveries.

    Those of the epoch `live` belong to this run.
    """
    rows = connection.execute(
        "SELECT * FROM triggers WHERE state IS NULL AND epoch != ?", (live,)
    ).fetchall()
    position = _position(connection)
    latest: dict[str, dict[Wanted, int]] = {}
    for at, row in enumerate(rows, position + 1):
        verdict = Verdict(
            state=State.ERROR,
            decided_ns=max(time.time_ns(), row["triggered_ns"]),
            threshold=math.nan,
            reason=ABANDONED,
        )
        part, epoch = open_part(row, verdict), row["epoch"]
        ended = replace(ended_row(part, has_thumbnail=False), position=at)
        write_ended(connection, epoch, row["run"], ended)
        known = latest.setdefault(epoch, outbox.read_latest(connection, epoch))
        outbox.insert(connection, epoch, part.trigger.sequence, wanted(part), known)
        _add_to_tally(connection, epoch, Counter({(part.camera, State.ERROR): 1}))
    for epoch, known in latest.items():
        outbox.write_latest(connection, epoch, known)
    if rows:
        _LOG.warning("%d parts of an earlier run had no verdict: ERROR", len(rows))
