"""How the ledger's file is opened in spite of all: damage is moved aside, losses are not forgotten.

A damaged file is moved aside and every row that can still be read is copied into a new one. What
could not be written because the disk was full is noted in a small file beside the ledger, whose
space is taken while there is some: it can be written over when nothing else can.

Every function here runs in the ledger's owner thread.
"""

import json
import logging
import os
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.part import State
from agent.record.rows import Kind, Span, utc
from agent.record.schema import (
    TABLES,
    connected,
    error_code,
    make_tables,
    note_path,
    transaction,
)
from engine.regular_file import read_regular

_LOG: Final = logging.getLogger("atac_agent.ledger")
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_COPIES: Final = 3
"""Damaged files that are kept; the oldest goes."""
_NOTE_BYTES: Final = 64 * 1024
_SPANS: Final = 3000
"""Ranges that a note has room for; older ones are joined."""
_MODE: Final = 0o640


def open_or_rescue(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection to a sound file with tables, and whether it is new because one was damaged.

    Raises as `connected` does.
    """
    try:
        connection = connected(path)
    except sqlite3.DatabaseError as error:
        if error_code(error) not in _DAMAGED:
            raise
        return _rescued(path), True
    try:
        with transaction(connection):
            make_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection, False


def _rescued(path: Path) -> sqlite3.Connection:
    aside = path.with_name(f"{path.name}.damaged-{utc(time.time_ns()).replace(':', '')}")
    for suffix in ("", "-wal"):
        if (part := path.with_name(path.name + suffix)).exists():
            part.rename(aside.with_name(aside.name + suffix))
    connection = connected(path)
    try:
        with transaction(connection):
            make_tables(connection)
            kept = _salvage(aside, connection)
    except BaseException:
        connection.close()
        raise
    _LOG.error("%s was damaged: moved to %s, %d rows kept", path, aside.name, kept)
    copies = sorted(
        one for one in path.parent.glob(f"{path.name}.damaged-*") if not one.name.endswith("-wal")
    )
    for old in copies[:-_COPIES]:
        for one in (old, old.with_name(old.name + "-wal")):
            with suppress(OSError):
                one.unlink(missing_ok=True)
    return connection


def _salvage(damaged: Path, connection: sqlite3.Connection) -> int:
    """Copy every row that can still be read, from both ends of each table; says how many."""
    kept = 0
    source = sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)
    with closing(source):
        for table, key in TABLES.items():
            for order in ("ASC", "DESC"):
                kept += _copy_rows(
                    source, connection, table, ", ".join(f"{column} {order}" for column in key)
                )
    connection.execute(
        "DELETE FROM deliveries WHERE NOT EXISTS (SELECT 1 FROM triggers"
        " WHERE triggers.epoch = deliveries.epoch AND triggers.sequence = deliveries.sequence)"
    )
    return kept


def _copy_rows(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, order: str
) -> int:
    kept = 0
    try:
        rows = source.execute(f"SELECT * FROM {table} ORDER BY {order}")  # noqa: S608 (our own names)
        columns = [column for column, *_ in rows.description]
        marks = ", ".join(f":{column}" for column in columns)
        insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 (our own names)
        for row in rows:
            kept += target.execute(insert, dict(zip(columns, row, strict=True))).rowcount
    except sqlite3.DatabaseError as error:
        if error_code(error) not in _DAMAGED | {sqlite3.SQLITE_ERROR}:
            raise
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What the ledger could not hold when it was last written to the file beside it.

    `counts` are of the parts in `lost`. Sequences up to `reserved` may have left the process.
    """

    epoch: str
    reserved: int
    lost: tuple[Span, ...]
    counts: Counter[Kind] = field(default_factory=Counter)


class NoteFile:
    """The file beside the ledger that can be written when the disk is full.

    It holds a note for each epoch that could not be written, usually none.
    """

    def __init__(self, ledger: Path) -> None:
        self.path: Final = note_path(ledger)
        self._is_there = False

    def prepare(self) -> None:
        """Take the space while there is some; what is noted there stays."""
        if self._is_there:
            return
        with suppress(OSError):
            if not self.path.exists() or self.path.stat().st_size != _NOTE_BYTES:
                self._write(b"")
            self._is_there = True

    def write(self, notes: Sequence[Note]) -> bool:
        """Note what is lost and flush it to the drive; says whether that could be done."""
        content = [
            {
                "epoch": note.epoch,
                "reserved": note.reserved,
                "lost": _joined(note.lost),
                "counts": [[camera, state, n] for (camera, state), n in note.counts.items()],
            }
            for note in notes
        ]
        try:
            self._write(json.dumps(content, separators=(",", ":")).encode() if notes else b"")
        except OSError:
            return False
        return True

    def read(self) -> list[Note]:
        """What earlier runs have noted."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            data = read_regular(self.path, limit=_NOTE_BYTES)
            size, check = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
            body = data[8 : 8 + size]
            if not size or zlib.crc32(body) != check:
                return []
            content: list[dict[str, Any]] = json.loads(body)
            return [
                Note(
                    epoch=str(each["epoch"]),
                    reserved=int(each["reserved"]),
                    lost=tuple((int(first), int(last)) for first, last in each["lost"]),
                    counts=Counter({(str(c), State(s)): int(n) for c, s, n in each["counts"]}),
                )
                for each in content
            ]
        return []

    def _write(self, body: bytes) -> None:
        # In place and always whole, so that no block has to be found for it.
        if len(body) > _NOTE_BYTES - 8:
            raise OSError("the note is too long")
        head = len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big")
        how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self.path, how, _MODE)
        try:
            os.pwrite(file, (head + body).ljust(_NOTE_BYTES, b"\0"), 0)
            os.fsync(file)
        finally:
            os.close(file)


def _joined(spans: tuple[Span, ...]) -> list[Span]:
    """The same ranges, the oldest joined into one where there are too many."""
    if len(spans) <= _SPANS:
        return list(spans)
    old = spans[: len(spans) - _SPANS + 1]
    return [(old[0][0], old[-1][1]), *spans[len(old) :]]


def locked(error: Exception) -> bool:
    """Whether another process has the file open."""
    return error_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
