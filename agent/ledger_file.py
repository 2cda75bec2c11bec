"""The ledger's file: its tables, how it is opened or rescued, and what is written into it.

Every function here works on one connection and runs in the ledger's owner thread.
"""

import json
import logging
import math
import os
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agent.messages import Message, chained, utc
from agent.part import State
from agent.verdict import Trigger, Verdict
from engine.errors import ConfigurationError, LedgerError
from engine.frame import Inspection

ABANDONED: Final = "agent stopped before a verdict"
_LOG: Final = logging.getLogger("atac_agent.ledger")
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

Value = str | int | float | None
Span = tuple[int, int]
"""A range of sequences, first and last inclusive."""
Kind = tuple[str, State]
"""A camera and how parts of it ended."""
Announce = Callable[[Verdict, str], Sequence[Message]]
"""The messages for a verdict of an epoch."""

_SCHEMA: Final = """
CREATE TABLE epochs (
    epoch TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    started_ns INTEGER NOT NULL
);
CREATE TABLE runs (
    run INTEGER PRIMARY KEY,
    epoch TEXT NOT NULL,
    started_ns INTEGER NOT NULL,
    bundle_id TEXT NOT NULL,
    calibration_id TEXT NOT NULL
);
CREATE TABLE triggers (
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    run INTEGER NOT NULL,
    part_id TEXT NOT NULL,
    triggered_ns INTEGER NOT NULL,
    deadline_ns INTEGER,
    state TEXT,             -- NULL while the trigger is open
    decided_ns INTEGER,
    reason TEXT,
    threshold REAL,
    frame_number INTEGER,
    captured_ns INTEGER,
    frame_width INTEGER,
    frame_height INTEGER,
    score REAL,
    score_1 REAL,
    score_2 REAL,
    deviation REAL,
    box_left INTEGER,
    box_top INTEGER,
    box_right INTEGER,
    box_bottom INTEGER,
    zoomed INTEGER,
    view_1_s REAL,
    pass_1_s REAL,
    attention_s REAL,
    view_2_s REAL,
    pass_2_s REAL,
    PRIMARY KEY (epoch, sequence)
) WITHOUT ROWID;
CREATE INDEX open_triggers ON triggers (epoch, sequence) WHERE state IS NULL;
CREATE TABLE tally (
    epoch TEXT NOT NULL,
    state TEXT NOT NULL,
    ended INTEGER NOT NULL,
    PRIMARY KEY (epoch, state)
) WITHOUT ROWID;
CREATE TABLE losses (
    epoch TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    noticed_ns INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (epoch, first)
) WITHOUT ROWID;
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    properties TEXT NOT NULL,
    delivered_ns INTEGER,
    refused INTEGER         -- the reason code of the broker's refusal
);
CREATE INDEX pending ON outbox (id) WHERE delivered_ns IS NULL AND refused IS NULL;
"""
_WITH_RETENTION: Final = """
CREATE TABLE let_go (   -- messages that were removed before the broker had them
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    kind TEXT NOT NULL,
    noticed_ns INTEGER NOT NULL,
    PRIMARY KEY (epoch, sequence, kind)
) WITHOUT ROWID;
CREATE INDEX parts ON outbox (epoch, sequence);
CREATE INDEX pending_parts ON outbox (epoch, sequence)
    WHERE delivered_ns IS NULL AND refused IS NULL;
CREATE INDEX pending_pictures ON outbox (id)
    WHERE delivered_ns IS NULL AND refused IS NULL AND content_type = 'image/jpeg';
"""
_WITH_LATE_STATE: Final = """
ALTER TABLE triggers ADD COLUMN late_state TEXT;  -- what a TIMEOUT would have been
"""
_WITH_LABELS: Final = """
CREATE TABLE labels (   -- an operator's word on a part; the latest counts
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    label TEXT NOT NULL,
    labelled_ns INTEGER NOT NULL,
    PRIMARY KEY (epoch, sequence, labelled_ns)
) WITHOUT ROWID;
"""
_WITH_NARROW_OUTBOX: Final = """
CREATE TABLE payloads (id INTEGER PRIMARY KEY, payload BLOB NOT NULL);
INSERT INTO payloads SELECT id, payload FROM outbox;
ALTER TABLE outbox DROP COLUMN payload;
CREATE TABLE latest (    -- whose message was the newest on each topic
    epoch TEXT NOT NULL,
    topic TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (epoch, topic)
) WITHOUT ROWID;
INSERT INTO latest SELECT epoch, topic, sequence FROM outbox
    WHERE id IN (SELECT max(id) FROM outbox GROUP BY epoch, topic);
"""
_WITH_THRESHOLDS: Final = """
CREATE TABLE thresholds (   -- changes by request; the latest of a calibration counts
    id INTEGER PRIMARY KEY,
    changed_ns INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    after INTEGER NOT NULL,         -- the newest part that had begun
    calibration_id TEXT NOT NULL,
    who TEXT NOT NULL,
    nonce TEXT NOT NULL,
    old REAL NOT NULL,
    new REAL NOT NULL,
    is_calibrated INTEGER NOT NULL  -- whether it was taken back
);
"""
_WITH_CAMERAS: Final = """
-- Until now there was only one.
ALTER TABLE triggers ADD COLUMN camera TEXT NOT NULL DEFAULT 'main';
ALTER TABLE tally RENAME TO tally_of_all;
CREATE TABLE tally (
    epoch TEXT NOT NULL,
    camera TEXT NOT NULL,
    state TEXT NOT NULL,
    ended INTEGER NOT NULL,
    PRIMARY KEY (epoch, camera, state)
) WITHOUT ROWID;
INSERT INTO tally SELECT epoch, 'main', state, ended FROM tally_of_all;
DROP TABLE tally_of_all;
"""
_SCHEMAS: Final = (
    _SCHEMA,
    _WITH_RETENTION,
    _WITH_LATE_STATE,
    _WITH_LABELS,
    # A mark would otherwise write the payload once more, up to 64 KB. This rewrites the file once.
    _WITH_NARROW_OUTBOX,
    _WITH_THRESHOLDS,
    _WITH_CAMERAS,
)
"""What each version of the file adds to the one before."""
SCHEMA_VERSION: Final = len(_SCHEMAS)
_TABLES: Final = {
    "epochs": ("rowid",),
    "runs": ("run",),
    "triggers": ("epoch", "sequence"),
    "tally": ("epoch", "camera", "state"),
    "losses": ("epoch", "first"),
    "let_go": ("epoch", "sequence", "kind"),
    "labels": ("epoch", "sequence", "labelled_ns"),
    "latest": ("epoch", "topic"),
    "outbox": ("id",),
    "payloads": ("id",),
    "thresholds": ("id",),
}
"""Every table and the key along which a damaged one is read."""
_NOTHING_FOUND: Final[tuple[Value, ...]] = (None,) * 14
_INSERT_BEGUN: Final = """
INSERT INTO triggers (epoch, run, sequence, camera, part_id, triggered_ns, deadline_ns)
VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_INSERT_ENDED: Final = """
INSERT INTO triggers (
    epoch, run, sequence, camera, part_id, triggered_ns, deadline_ns,
    state, decided_ns, reason, threshold, frame_number, captured_ns, frame_width, frame_height,
    score, score_1, score_2, deviation, box_left, box_top, box_right, box_bottom, zoomed,
    view_1_s, pass_1_s, attention_s, view_2_s, pass_2_s, late_state
) VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
)
ON CONFLICT (epoch, sequence) DO UPDATE SET
    state = excluded.state, decided_ns = excluded.decided_ns, reason = excluded.reason,
    threshold = excluded.threshold, frame_number = excluded.frame_number,
    captured_ns = excluded.captured_ns, frame_width = excluded.frame_width,
    frame_height = excluded.frame_height, score = excluded.score, score_1 = excluded.score_1,
    score_2 = excluded.score_2, deviation = excluded.deviation, box_left = excluded.box_left,
    box_top = excluded.box_top, box_right = excluded.box_right, box_bottom = excluded.box_bottom,
    zoomed = excluded.zoomed, view_1_s = excluded.view_1_s, pass_1_s = excluded.pass_1_s,
    attention_s = excluded.attention_s, view_2_s = excluded.view_2_s, pass_2_s = excluded.pass_2_s,
    late_state = excluded.late_state
WHERE state IS NULL
"""
_INSERT_MESSAGE: Final = """
INSERT INTO outbox (epoch, sequence, topic, qos, retain, content_type, properties)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """A message that waits in the outbox; ids grow in the order of recording."""

    id: int
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    trigger: Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A verdict as its row, so that frames and maps are not kept alive by the queue."""

    trigger: Trigger
    state: State
    row: tuple[Value, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdChange:
    """Somebody changes the threshold of a calibration, or takes that back (`is_calibrated`)."""

    calibration_id: str
    by: str
    nonce: str
    old: float
    new: float
    is_calibrated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """`refused` is the broker's reason code, `None` for delivered."""

    ids: tuple[int, ...]
    time_ns: int
    refused: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Whose verdicts these are and by which model; empty ids mean none."""

    agent_id: str
    bundle_id: str
    calibration_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the file holds for an epoch when a run begins."""

    epoch: str
    run: int
    last_sequence: int
    counts: Counter[Kind]
    lost: list[Span]
    pending: int
    refused: int
    newest: int


def check_place(path: Path) -> None:
    """Raise `ConfigurationError` where no ledger can ever be; a sick disk is not meant."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        remedy = f"its folder cannot be made ({error.strerror}); choose another"
        raise ConfigurationError("ledger.path", str(path), remedy) from None
    except OSError:
        return
    if path.is_dir():
        raise ConfigurationError("ledger.path", str(path), "is a folder; name a file")
    place = path if path.exists() else path.parent
    if not is_read_only(path.parent) and not os.access(place, os.R_OK | os.W_OK):
        raise ConfigurationError("ledger.path", str(path), f"{place} may not be written")


def is_read_only(folder: Path) -> bool:
    """Whether the disk of `folder` is mounted so; `False` when it cannot be told."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def open_file(
    path: Path, run: Run, *, epoch: str, announce: Announce
) -> tuple[sqlite3.Connection, Standing]:
    """Open, make or rescue the file and begin a run in it, in one transaction.

    An empty `epoch` continues the agent's latest one, or begins one in a new or rescued file.
    Open triggers of other runs end as ERROR and are announced. Raises `ConfigurationError`,
    `sqlite3.Error` or `OSError`.
    """
    connection, aside = _connect_or_move_aside(path)
    try:
        with transaction(connection):
            live = epoch
            if aside is not None:
                kept = _salvage(aside, connection)
                _LOG.error("%s was damaged: moved to %s, %d rows kept", path, aside.name, kept)
            else:
                _bring_up_to_date(connection)
                epoch = epoch or _latest_epoch(connection, run.agent_id)
            standing = _begin(connection, run, epoch or new_epoch(), live, announce)
    except BaseException:
        connection.close()
        raise
    return connection, standing


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """`BEGIN IMMEDIATE` … `COMMIT`, or a rollback."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def new_epoch() -> str:
    """A name for a new count of sequences."""
    return secrets.token_hex(6)


def error_code(error: Exception) -> int:
    """SQLite's primary result code; 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def ended(verdict: Verdict, messages: Sequence[Message]) -> Ended:
    """A verdict and its messages as they will be written."""
    frame = verdict.frame
    about_frame: tuple[Value, ...] = (None,) * 4
    if frame is not None:
        height, width = frame.pixels.shape[:2]
        about_frame = (frame.number, frame.captured_ns, width, height)
    return Ended(
        trigger=verdict.trigger,
        state=verdict.state,
        row=(
            verdict.state.value,
            verdict.decided_ns,
            _text(verdict.reason),
            verdict.threshold if math.isfinite(verdict.threshold) else None,
            *about_frame,
            *(_NOTHING_FOUND if verdict.inspection is None else _found(verdict.inspection)),
            None if verdict.late_state is None else verdict.late_state.value,
        ),
        messages=tuple(messages),
    )


def insert_begun(connection: sqlite3.Connection, epoch: str, run: int, trigger: Trigger) -> None:
    connection.execute(_INSERT_BEGUN, (epoch, run, *_begun_row(trigger)))


def insert_ended(connection: sqlite3.Connection, epoch: str, run: int, entry: Ended) -> int:
    """The verdict and its messages; returns the id of the last message, 0 when there is none.

    Each message is chained to the one before on its topic.
    """
    connection.execute(_INSERT_ENDED, (epoch, run, *_begun_row(entry.trigger), *entry.row))
    sequence, newest = entry.trigger.sequence, 0
    for message in entry.messages:
        previous = connection.execute(
            "SELECT sequence FROM latest WHERE epoch = ? AND topic = ?", (epoch, message.topic)
        ).fetchone()
        properties = chained(message, previous[0] if previous else 0).properties
        values = (
            epoch,
            sequence,
            message.topic,
            message.qos,
            message.retain,
            message.content_type,
            json.dumps(properties),
        )
        newest = connection.execute(_INSERT_MESSAGE, values).lastrowid or 0
        connection.execute("INSERT INTO payloads VALUES (?, ?)", (newest, message.payload))
        connection.execute(
            "INSERT OR REPLACE INTO latest VALUES (?, ?, ?)", (epoch, message.topic, sequence)
        )
    return newest


def remove_messages(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Remove messages with their payloads."""
    for table in ("outbox", "payloads"):
        connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(one,) for one in ids])  # noqa: S608 (our own words)


def insert_loss(connection: sqlite3.Connection, epoch: str, span: Span, reason: str) -> None:
    """Verdicts of `span` are not here; their begun rows go too, or they would end twice."""
    connection.execute(
        "INSERT INTO losses VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (epoch, first) DO UPDATE SET last = max(last, excluded.last)",
        (epoch, *span, time.time_ns(), reason),
    )
    connection.execute(
        "DELETE FROM triggers WHERE epoch = ? AND sequence BETWEEN ? AND ? AND state IS NULL",
        (epoch, *span),
    )


def write_tally(connection: sqlite3.Connection, epoch: str, counts: Counter[Kind]) -> None:
    """How many triggers of `epoch` ended in each way, also those whose rows are gone."""
    connection.executemany(
        "INSERT OR REPLACE INTO tally VALUES (?, ?, ?, ?)",
        [(epoch, camera, state.value, count) for (camera, state), count in counts.items()],
    )


def write_mark(connection: sqlite3.Connection, mark: Mark) -> int:
    """Returns how many of the messages were pending until now."""
    delivered_ns = mark.time_ns if mark.refused is None else None
    return connection.executemany(
        "UPDATE outbox SET delivered_ns = ?, refused = ?"
        " WHERE id = ? AND delivered_ns IS NULL AND refused IS NULL",
        [(delivered_ns, mark.refused, message) for message in mark.ids],
    ).rowcount


def read_pending(
    connection: sqlite3.Connection, after: int, upto: int, limit: int
) -> list[OutboxMessage]:
    """Pending messages with ids above `after` and up to `upto`, oldest first."""
    rows = connection.execute(
        "SELECT id, topic, payload, qos, retain, content_type, properties"
        " FROM outbox JOIN payloads USING (id)"
        " WHERE delivered_ns IS NULL AND refused IS NULL AND id > ? AND id <= ?"
        " ORDER BY id LIMIT ?",
        (after, upto, limit),
    )
    return [_outbox_message(*row) for row in rows]


def requeue(connection: sqlite3.Connection, epoch: str, span: Span) -> tuple[list[int], int]:
    """Have the settled messages of these parts wait again: their ids, and how many were refused."""
    rows = connection.execute(
        "SELECT id, refused FROM outbox WHERE epoch = ? AND sequence BETWEEN ? AND ?"
        " AND (delivered_ns IS NOT NULL OR refused IS NOT NULL) ORDER BY id",
        (epoch, *span),
    ).fetchall()
    connection.executemany(
        "UPDATE outbox SET delivered_ns = NULL, refused = NULL WHERE id = ?",
        [row[:1] for row in rows],
    )
    return [number for number, _ in rows], sum(code is not None for _, code in rows)


def requeue_in_file(path: Path, agent_id: str, span: Span, epoch: str | None) -> int | None:
    """Have parts sent again by an agent that is stopped; `None` where one has the file open.

    The epoch is the latest one unless it is named. Raises `ConfigurationError` without a ledger.
    """
    if not path.is_file():
        raise ConfigurationError("ledger.path", str(path), "there is no ledger yet")
    try:
        connection = _connected(path)
    except sqlite3.Error as error:
        if error_code(error) == sqlite3.SQLITE_BUSY:
            return None
        raise LedgerError(f"{path}: {error}") from error
    try:
        with transaction(connection):
            _bring_up_to_date(connection)
            ids, _ = requeue(connection, epoch or _latest_epoch(connection, agent_id), span)
        return len(ids)
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: {error}") from error
    finally:
        connection.close()


def parts_upto(
    connection: sqlite3.Connection, epoch: str, span: Span, limit: int
) -> tuple[int, int]:
    """How many messages of these parts there are, and the last of the first `limit` parts."""
    (count,) = connection.execute(
        "SELECT count(*) FROM outbox WHERE epoch = ? AND sequence BETWEEN ? AND ?", (epoch, *span)
    ).fetchone()
    (last,) = connection.execute(
        "SELECT max(sequence) FROM (SELECT DISTINCT sequence FROM outbox"
        " WHERE epoch = ? AND sequence BETWEEN ? AND ? ORDER BY sequence LIMIT ?)",
        (epoch, *span, limit),
    ).fetchone()
    return int(count), int(last or span[1])


def insert_label(connection: sqlite3.Connection, epoch: str, sequence: int, label: str) -> bool:
    """Note what an operator says about a part; `False` when there is no such part."""
    return bool(
        connection.execute(
            "INSERT INTO labels SELECT epoch, sequence, ?3, ?4 FROM triggers"
            " WHERE epoch = ?1 AND sequence = ?2",
            (epoch, sequence, label, time.time_ns()),
        ).rowcount
    )


def insert_threshold(
    connection: sqlite3.Connection, epoch: str, after: int, change: ThresholdChange
) -> bool:
    """Note a change of the threshold, made when part `after` was the newest."""
    connection.execute(
        "INSERT INTO thresholds (changed_ns, epoch, after, calibration_id, who, nonce, old, new,"
        " is_calibrated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            time.time_ns(),
            epoch,
            after,
            change.calibration_id,
            _text(change.by),
            change.nonce,
            change.old,
            change.new,
            change.is_calibrated,
        ),
    )
    return True


def read_threshold(connection: sqlite3.Connection, calibration_id: str) -> float | None:
    """What the threshold of a calibration was changed to; `None` for not, or taken back."""
    row = connection.execute(
        "SELECT new, is_calibrated FROM thresholds WHERE calibration_id = ?"
        " ORDER BY id DESC LIMIT 1",
        (calibration_id,),
    ).fetchone()
    return None if row is None or row[1] else float(row[0])


def _begun_row(trigger: Trigger) -> tuple[Value, ...]:
    part_id = _text(trigger.part_id)
    return trigger.sequence, trigger.camera, part_id, trigger.triggered_ns, trigger.deadline_ns


def with_span(ranges: list[Span], first: int, last: int) -> list[Span]:
    """Sorted, disjoint inclusive ranges with `first … last` added and neighbours joined."""
    before = [span for span in ranges if span[1] < first - 1]
    after = [span for span in ranges if span[0] > last + 1]
    touched = ranges[len(before) : len(ranges) - len(after)]
    joined = (min([first, *(a for a, _ in touched)]), max([last, *(b for _, b in touched)]))
    return [*before, joined, *after]


class _DamagedError(sqlite3.DatabaseError):
    """The file opens, but its check finds it damaged."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def _connect_or_move_aside(path: Path) -> tuple[sqlite3.Connection, Path | None]:
    """A connection to a sound file, and where a damaged one was moved, if there was one."""
    try:
        return _connected(path), None
    except sqlite3.DatabaseError as error:
        if error_code(error) not in _DAMAGED:
            raise
    aside = path.with_name(f"{path.name}.damaged-{utc(time.time_ns()).replace(':', '')}")
    for suffix in ("", "-wal"):
        if (part := path.with_name(path.name + suffix)).exists():
            part.rename(aside.with_name(aside.name + suffix))
    return _connected(path), aside


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        # Exclusive, before WAL begins: no second process can open the file and there is no
        # shared-memory file to lose.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16000000")
        _check_sound(connection)
        _check_version(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_sound(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _DamagedError(verdict)


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            "ledger.path", str(path), "was written by a newer atac-agent; update, or name another"
        )
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == 0 and tables:
        raise ConfigurationError("ledger.path", str(path), "belongs to another program")


def _bring_up_to_date(connection: sqlite3.Connection, version: int = SCHEMA_VERSION) -> None:
    """Make the tables of a new file, or add what has come since the file was written."""
    (written,) = connection.execute("PRAGMA user_version").fetchone()
    for schema in _SCHEMAS[written:version]:
        for statement in schema.split(";\n"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {version}")


def _salvage(damaged: Path, connection: sqlite3.Connection) -> int:
    """Copy every row that can still be read, from both ends of each table; says how many.

    The new file, which has no tables yet, is made as old as the damaged one.
    """
    kept = 0
    source = sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)
    try:
        _bring_up_to_date(connection, _version_of(source))
        for table, key in _TABLES.items():
            for order in ("ASC", "DESC"):
                kept += _copy_rows(
                    source, connection, table, ", ".join(f"{column} {order}" for column in key)
                )
    finally:
        source.close()
    _bring_up_to_date(connection)
    for table, other in (("outbox", "payloads"), ("payloads", "outbox")):
        connection.execute(f"DELETE FROM {table} WHERE id NOT IN (SELECT id FROM {other})")  # noqa: S608 (our own names)
    return kept


def _version_of(damaged: sqlite3.Connection) -> int:
    """Which version wrote a damaged file; the newest where that can no longer be read."""
    with suppress(sqlite3.DatabaseError):
        (version,) = damaged.execute("PRAGMA user_version").fetchone()
        if 0 < version < SCHEMA_VERSION:
            return int(version)
    return SCHEMA_VERSION


def _copy_rows(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, order: str
) -> int:
    kept = 0
    try:
        rows = source.execute(f"SELECT * FROM {table} ORDER BY {order}")  # noqa: S608 (our own names)
        # By name, as an older file lacks the columns that were added at the end.
        columns = ", ".join(column for column, *_ in rows.description)
        marks = ", ".join("?" * len(rows.description))
        insert = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 (our own names)
        for row in rows:
            kept += target.execute(insert, row).rowcount
    except sqlite3.DatabaseError as error:
        if error_code(error) not in _DAMAGED | {sqlite3.SQLITE_ERROR}:
            raise
    return kept


def _latest_epoch(connection: sqlite3.Connection, agent_id: str) -> str:
    row = connection.execute(
        "SELECT epoch FROM epochs WHERE agent_id = ? ORDER BY rowid DESC", (agent_id,)
    ).fetchone()
    return str(row[0]) if row else ""


def _begin(
    connection: sqlite3.Connection, run: Run, epoch: str, live: str, announce: Announce
) -> Standing:
    now_ns = time.time_ns()
    connection.execute(
        "INSERT OR IGNORE INTO epochs VALUES (?, ?, ?)", (epoch, run.agent_id, now_ns)
    )
    number = connection.execute(
        "INSERT INTO runs (epoch, started_ns, bundle_id, calibration_id) VALUES (?, ?, ?, ?)",
        (epoch, now_ns, run.bundle_id, run.calibration_id),
    ).lastrowid
    assert number is not None
    _end_abandoned(connection, live, number, announce)
    lost: list[Span] = []
    for first, last in connection.execute(
        "SELECT first, last FROM losses WHERE epoch = ?", (epoch,)
    ):
        lost = with_span(lost, first, last)
    tally = connection.execute("SELECT camera, state, ended FROM tally WHERE epoch = ?", (epoch,))
    return Standing(
        epoch=epoch,
        run=number,
        counts=Counter({(camera, State(state)): count for camera, state, count in tally}),
        lost=lost,
        last_sequence=_number(
            connection,
            "SELECT max(coalesce((SELECT max(sequence) FROM triggers WHERE epoch = ?1), 0),"
            " coalesce((SELECT max(last) FROM losses WHERE epoch = ?1), 0))",
            epoch,
        ),
        pending=_number(
            connection,
            "SELECT count(*) FROM outbox WHERE delivered_ns IS NULL AND refused IS NULL",
        ),
        refused=_number(connection, "SELECT count(*) FROM outbox WHERE refused IS NOT NULL"),
        # Not max(id): the newest may have been removed, and no id comes twice.
        newest=_number(
            connection, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'"
        ),
    )


def _number(connection: sqlite3.Connection, query: str, *values: Value) -> int:
    return int(connection.execute(query, values).fetchone()[0])


def _end_abandoned(connection: sqlite3.Connection, live: str, run: int, announce: Announce) -> None:
    """An earlier run began these triggers and was stopped: they end as ERROR, aloud.

    Those of the epoch `live` belong to this run, which has merely had to open the file anew.
    """
    open_triggers = connection.execute(
        "SELECT epoch, sequence, camera, part_id, triggered_ns, deadline_ns FROM triggers"
        " WHERE state IS NULL AND epoch != ?",
        (live,),
    ).fetchall()
    for epoch, sequence, camera, part_id, triggered_ns, deadline_ns in open_triggers:
        trigger = Trigger(
            sequence=sequence,
            camera=camera,
            part_id=part_id,
            triggered_ns=triggered_ns,
            deadline_ns=deadline_ns,
        )
        verdict = Verdict(
            trigger=trigger,
            state=State.ERROR,
            decided_ns=time.time_ns(),
            threshold=math.nan,
            reason=ABANDONED,
        )
        entry = ended(verdict, announce(verdict, epoch))
        insert_ended(connection, epoch, run, entry)
        connection.execute(
            "INSERT INTO tally VALUES (?, ?, ?, 1)"
            " ON CONFLICT (epoch, camera, state) DO UPDATE SET ended = ended + 1",
            (epoch, camera, State.ERROR.value),
        )
    if open_triggers:
        _LOG.warning("%d triggers of an earlier run had no verdict: ERROR", len(open_triggers))


def _outbox_message(
    number: int,
    topic: str,
    payload: bytes,
    qos: Literal[0, 1],
    retain: int,
    content_type: str,
    properties: str,
) -> OutboxMessage:
    return OutboxMessage(
        id=number,
        message=Message(
            topic=topic,
            payload=payload,
            qos=qos,
            retain=bool(retain),
            content_type=content_type,
            properties=tuple((key, value) for key, value in json.loads(properties)),
        ),
    )


def _found(found: Inspection) -> tuple[Value, ...]:
    box, stages = found.box, found.stages
    return (
        float(found.score),
        float(found.passes[0].score),
        float(found.passes[-1].score),
        float(found.deviation),
        int(box.left),
        int(box.top),
        int(box.right),
        int(box.bottom),
        int(found.zoomed),
        stages["view_1"],
        stages["pass_1"],
        found.attention_s,
        stages.get("view_2", 0.0),
        stages.get("pass_2", 0.0),
    )


def _text(text: str) -> str:
    """File names may hold what UTF-8 cannot; SQLite and JSON must not choke on a part id."""
    return text.encode(errors="replace").decode()
