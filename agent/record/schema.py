"""The ledger's file: its tables, and how it is opened.

This is version 1. The policy for later versions: a new version that only adds tables, columns or
indexes brings older files up to date when it opens them, in one transaction, with a test that
starts from a file of each older version; any other change gets a new file, and `agent` says in one
line what to do with the old one. A file of a newer version is never opened.

The columns of a key come first in every WITHOUT ROWID table: `quick_check` of SQLite 3.40.0 to
3.41.0 reports a NULL that is not there for a NOT NULL column before the last column of the key.

Every function here works on one connection and runs in the ledger's owner thread.
"""

import errno
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from engine.errors import ConfigurationError
from engine.regular_file import open_regular

VERSION: Final = 1
_APPLICATION: Final = 0x41544143
"""`ATAC`: which program a file belongs to."""
_MODE: Final = 0o640
_HEADER: Final = b"SQLite format 3\0"
_NULL_FOUND: Final = re.compile(r"NULL value in (\w+)\.(\w+)")
_FINDINGS: Final = 100

SCHEMA: Final = """
CREATE TABLE epochs (           -- one count of sequences each
    epoch TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    started_ns INTEGER NOT NULL
);
CREATE TABLE runs (
    run INTEGER PRIMARY KEY,
    epoch TEXT NOT NULL,
    started_ns INTEGER NOT NULL,
    bundle_id TEXT NOT NULL,
    calibration_id TEXT NOT NULL,
    software TEXT NOT NULL
);
CREATE TABLE triggers (         -- every part and how it ended
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    run INTEGER NOT NULL,       -- in which it began
    position INTEGER,           -- counts the ends as they were recorded
    camera TEXT NOT NULL,
    part_id TEXT,
    source TEXT,                -- the content of the frame, where its camera knows that
    count INTEGER,              -- the trigger source's own
    triggered_ns INTEGER NOT NULL,
    deadline_ns INTEGER,
    state TEXT,                 -- NULL while the part is open
    decided_ns INTEGER,
    reason TEXT,
    late_state TEXT,            -- what a TIMEOUT would have been
    late_s REAL,                -- by how much it was decided after the deadline
    threshold REAL,
    frame_number INTEGER,
    captured_ns INTEGER,
    frame_width INTEGER,
    frame_height INTEGER,
    device_id TEXT,             -- of the camera itself, where it says so: its serial number
    block_id INTEGER,           -- its own number of the frame, unwrapped
    device_ns INTEGER,          -- the time on its clock
    exposure_us REAL,
    trigger_count INTEGER,      -- how many triggers it has seen
    score REAL,
    deviation REAL,
    attention_s REAL,
    audit REAL,                 -- the chance with which it was drawn, where it was
    product TEXT,               -- what it is, on a line that makes several
    evidence TEXT,              -- JSON: {"passes": [{"box": [l, t, r, b], "score", "view_s", …}]},
                                -- and "regions": [{"name", "box", "score"}] where there are some
    has_thumbnail INTEGER NOT NULL,
    PRIMARY KEY (epoch, sequence)
) WITHOUT ROWID;
CREATE INDEX open_triggers ON triggers (epoch, sequence) WHERE state IS NULL;
CREATE INDEX triggers_of_sources ON triggers (source) WHERE source IS NOT NULL;
CREATE UNIQUE INDEX positions ON triggers (position) WHERE position IS NOT NULL;
CREATE TABLE sources (          -- of parts that are gone, while their files may still be there
    source TEXT PRIMARY KEY,
    asked_ns INTEGER NOT NULL   -- when a camera last saw it
) WITHOUT ROWID;
CREATE INDEX ages_of_sources ON sources (asked_ns);
CREATE TABLE thumbnails (
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    jpeg BLOB NOT NULL,
    PRIMARY KEY (epoch, sequence)
) WITHOUT ROWID;
CREATE TABLE tally (            -- of all that have ended, also of those whose rows are gone
    epoch TEXT NOT NULL,
    camera TEXT NOT NULL,
    state TEXT NOT NULL,
    ended INTEGER NOT NULL,
    PRIMARY KEY (epoch, camera, state)
) WITHOUT ROWID;
CREATE TABLE losses (           -- parts that could not be recorded
    epoch TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    noticed_ns INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (epoch, first)
) WITHOUT ROWID;
CREATE TABLE deliveries (       -- one for each item that a sink wants of a part
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    sink TEXT NOT NULL,
    item TEXT NOT NULL,
    previous INTEGER NOT NULL,  -- the part of the one before, of the same sink and item
    state TEXT,                 -- NULL while it waits, then taken or refused; aside: no such sink
    settled_ns INTEGER,
    code INTEGER,               -- the receiver's own, of a refusal
    reason TEXT
);
CREATE INDEX waiting ON deliveries (sink, id) WHERE state IS NULL;
CREATE INDEX set_aside ON deliveries (sink, id) WHERE state = 'aside';
CREATE INDEX of_parts ON deliveries (epoch, sequence);
CREATE INDEX waiting_parts ON deliveries (epoch, sequence) WHERE state IS NULL;
CREATE INDEX waiting_pictures ON deliveries (id) WHERE state IS NULL AND item = 'thumbnail';
CREATE TABLE latest (           -- which part had the newest delivery
    epoch TEXT NOT NULL,
    sink TEXT NOT NULL,
    item TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (epoch, sink, item)
) WITHOUT ROWID;
CREATE TABLE discarded (        -- deliveries that were removed before their sink had them
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    kind TEXT NOT NULL,
    noticed_ns INTEGER NOT NULL,
    PRIMARY KEY (epoch, sequence, kind)
) WITHOUT ROWID;
CREATE TABLE labels (           -- people's words on a part; the latest counts
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    labelled_ns INTEGER NOT NULL,
    label TEXT NOT NULL,        -- withdrawn: as if it had none
    who TEXT NOT NULL,
    role TEXT NOT NULL,
    queue TEXT NOT NULL         -- why the part was looked at
);
CREATE INDEX labels_of_parts ON labels (epoch, sequence);
CREATE TABLE thresholds (       -- changes by request; the latest of a calibration counts
    id INTEGER PRIMARY KEY,
    changed_ns INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    after INTEGER NOT NULL,     -- the newest part that had begun
    calibration_id TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    nonce TEXT NOT NULL,
    old REAL NOT NULL,
    new REAL NOT NULL,
    is_calibrated INTEGER NOT NULL  -- whether it was taken back
);
CREATE TABLE changes (          -- what people did to the agent besides its threshold
    id INTEGER PRIMARY KEY,
    changed_ns INTEGER NOT NULL,
    epoch TEXT NOT NULL,
    after INTEGER NOT NULL,     -- the newest part that had begun
    kind TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    nonce TEXT NOT NULL,
    old TEXT NOT NULL,
    new TEXT NOT NULL
);
CREATE TABLE nonces (           -- of requests that may not be obeyed again
    nonce TEXT PRIMARY KEY,
    until_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE clock (            -- the time that ages count from, and for how long UTC has differed
    id INTEGER PRIMARY KEY CHECK (id = 1),
    trusted_ns INTEGER NOT NULL,
    differed_ns INTEGER NOT NULL
);
"""
TABLES: Final = {
    "epochs": ("rowid",),
    "runs": ("run",),
    "triggers": ("epoch", "sequence"),
    "sources": ("source",),
    "thumbnails": ("epoch", "sequence"),
    "tally": ("epoch", "camera", "state"),
    "losses": ("epoch", "first"),
    "deliveries": ("id",),
    "latest": ("epoch", "sink", "item"),
    "discarded": ("epoch", "sequence", "kind"),
    "labels": ("id",),
    "thresholds": ("id",),
    "changes": ("id",),
    "nonces": ("nonce",),
    "clock": ("id",),
}
"""Every table and the key along which a damaged one is read."""


class DamagedError(sqlite3.DatabaseError):
    """The file opens, but its check finds it damaged."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


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
    _check_kind(path)
    place = path if path.exists() else path.parent
    if not is_read_only(path.parent) and not os.access(place, os.R_OK | os.W_OK):
        raise ConfigurationError("ledger.path", str(path), f"{place} may not be written")


def note_path(path: Path) -> Path:
    """The small file beside every ledger (`agent/record/rescue.py`)."""
    return path.with_name(f"{path.name}.lost")


def _check_kind(path: Path) -> None:
    """Refuse a device, a pipe, and a file that was never a ledger: none shall be moved aside."""
    try:
        with open_regular(path) as file:
            head = file.read(len(_HEADER))
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ELOOP, errno.ENXIO}:
            remedy = "is no regular file; name one"
            raise ConfigurationError("ledger.path", str(path), remedy) from None
        return
    if head and head != _HEADER and not note_path(path).exists():
        remedy = "is a file of another kind; name another, or move it away"
        raise ConfigurationError("ledger.path", str(path), remedy)


def is_read_only(folder: Path) -> bool:
    """Whether the disk of `folder` is mounted so; `False` when it cannot be told."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def connected(path: Path) -> sqlite3.Connection:
    """The only connection to a sound file of ours, or to a new one.

    Raises `ConfigurationError` for a file that is not ours to write, `sqlite3.Error` or `OSError`
    otherwise: `error_code` says whether it is locked or damaged.
    """
    _make_private(path)
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        # Exclusive, before WAL begins: no second process can open the file and there is no
        # shared-memory file to lose.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check_version(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16000000")
        _check_sound(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def damage(path: Path) -> str | None:
    """What is wrong with the ledger's file, by the check of `connected`; changes nothing.

    `None` where it is sound, not there, or open in an agent. Raises `ConfigurationError` for a
    file that is not ours.
    """
    if not path.exists():
        return None
    try:
        with read_only(path) as connection:
            _check_version(connection, path)
            _check_sound(connection)
    except sqlite3.Error as error:
        is_busy = error_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
        return None if is_busy else str(error)
    return None


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing to a file that is there, open in no agent."""
    # Without a journal nobody has it open, and nothing need be made beside it.
    has_journal = path.with_name(f"{path.name}-wal").exists()
    how = "mode=ro" if has_journal else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=1.0)
    connection.row_factory = sqlite3.Row
    try:
        yield connection
    finally:
        connection.close()


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of a new file; part of a transaction."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        for statement in SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")


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


def number(connection: sqlite3.Connection, query: str, values: dict[str, object]) -> int:
    """The one number that a query gives."""
    return int(connection.execute(query, values).fetchone()[0])


def new_epoch() -> str:
    """A name for a new count of sequences."""
    return secrets.token_hex(6)


def error_code(error: Exception) -> int:
    """SQLite's primary result code; 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at `path`; `None` for none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _make_private(path: Path) -> None:
    """Nobody but owner and group may read the ledger; SQLite gives its journal the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE))
    mode = path.stat().st_mode & 0o777
    if mode & ~_MODE:
        with suppress(OSError):  # the file of another user, whose group we are in
            path.chmod(mode & _MODE)


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if application not in {0, _APPLICATION} or (tables and version == 0):
        raise ConfigurationError("ledger.path", str(path), "belongs to another program")
    if tables and application == 0:
        remedy = "is a ledger from before version 0.1.0; move it away, and a new one is begun"
        raise ConfigurationError("ledger.path", str(path), remedy)
    if version > VERSION:
        remedy = "was written by a newer atac-agent; update, or name another"
        raise ConfigurationError("ledger.path", str(path), remedy)


def _check_sound(connection: sqlite3.Connection) -> None:
    """Raise `DamagedError` for what SQLite's check finds, unless the table itself denies it."""
    for (finding,) in connection.execute(f"PRAGMA quick_check({_FINDINGS})").fetchall():
        null = _NULL_FOUND.fullmatch(finding)
        if finding != "ok" and (null is None or _has_null(connection, *null.groups())):
            raise DamagedError(finding)


def _has_null(connection: sqlite3.Connection, table: str, column: str) -> bool:
    query = f"SELECT 1 FROM {table} WHERE typeof({column}) = 'null' LIMIT 1"  # noqa: S608 (SQLite's names)
    return connection.execute(query).fetchone() is not None
