"""What the ledger lets go of, by age and by size, in steps small enough to pass unnoticed.

First go the oldest parts of which nothing waits for the broker. Only where those are not enough,
and the file would outgrow its limit, go messages that were never delivered: pictures before
alarms, the oldest first, and each is written down in `let_go`.

Every function here works on one connection and runs in the ledger's owner thread.
"""

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, get_args

from agent.ledger_file import Span, remove_messages, transaction, with_span
from agent.messages import LetGo

_LOG: Final = logging.getLogger("atac_agent.ledger")
_DRIFT_NS: Final = 60_000_000_000
"""Clocks drift and are corrected: a difference up to this is no jump."""
_BELIEVED_NS: Final = 86_400_000_000_000
_PARTS: Final = 50
"""Parts that one step removes: with a picture each, some 3 MB of pages to give back."""
_SEEN: Final = 500
"""Parts that one step looks at."""
_MESSAGES: Final = 20
"""Undelivered messages that one step lets go."""
_MOST_LET_GO: Final = 1000
"""Undelivered messages that one sweep lets go; the next may find parts that were delivered."""
_RESERVE_BYTES: Final = 6_000_000
"""A journal that is due for its checkpoint, and one more group."""
_ROOM_BYTES: Final = 4_000_000
"""Free pages that a file needs when it cannot grow: two groups."""

KINDS: Final[tuple[LetGo, ...]] = get_args(LetGo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Parts older than `keep_ns` go; the file stays below `max_bytes`.

    Room is made from seven eighths of `max_bytes` on: the last eighth is for what comes meanwhile.
    """

    keep_ns: int
    max_bytes: int

    @property
    def begins_at(self) -> int:
        """The bytes in use above which room is made."""
        return self.max_bytes - self.max_bytes // 8


class AgeClock:
    """UTC for the age of parts: it goes on steadily when somebody sets the wall clock.

    A clock that was set to next year by mistake would make every part old at once. A jump is
    believed when it has held for a day, by a clock that also counts while the machine sleeps.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        steady_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall_ns = wall_ns
        self._steady_ns = steady_ns
        self._offset_ns = wall_ns() - steady_ns()
        self._jumped_ns: int | None = None

    def now_ns(self) -> int:
        """UTC in nanoseconds since 1970, without jumps of the last day."""
        wall, steady = self._wall_ns(), self._steady_ns()
        offset = wall - steady
        has_jumped = abs(offset - self._offset_ns) > _DRIFT_NS
        if not has_jumped:
            self._jumped_ns = None
        elif self._jumped_ns is None:
            self._jumped_ns = steady
            _LOG.warning(
                "the clock was set by %+.0f s; parts keep their age for a day",
                (offset - self._offset_ns) / 1e9,
            )
        if not has_jumped or steady - (self._jumped_ns or steady) > _BELIEVED_NS:
            self._offset_ns, self._jumped_ns = offset, None
        return steady + self._offset_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far a sweep has come: `epoch` is a row of `epochs`.

    `removed` parts and `let_go` undelivered messages went in it so far. `was_large` says that the
    file was too large from the beginning, so that every part was considered.
    """

    epoch: int = 0
    sequence: int = 0
    removed: int = 0
    let_go: int = 0
    was_large: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step did. `place` is where to go on, `None` at the end of a sweep."""

    place: Place | None
    pending: int = 0
    refused: int = 0
    let_go: tuple[tuple[LetGo, str, int], ...] = ()
    """Undelivered messages: kind, epoch and sequence."""


def limit_pages(connection: sqlite3.Connection, limits: Limits) -> None:
    """Let SQLite itself refuse to grow the file beyond the limit."""
    pages = limits.max_bytes // _pragma(connection, "page_size")
    connection.execute(f"PRAGMA max_page_count = {pages}")


def stop_growth(connection: sqlite3.Connection) -> None:
    """From now on only freed pages are used: a journal that the file cannot take in is stuck."""
    connection.execute(f"PRAGMA max_page_count = {_pragma(connection, 'page_count')}")


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something; freed pages are used again."""
    pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return pages * _pragma(connection, "page_size")


def step(
    connection: sqlite3.Connection,
    limits: Limits,
    *,
    now_ns: int,
    place: Place,
    in_hand: Collection[int],
    needs_room: bool,
) -> Step:
    """One short transaction of a sweep over all parts, oldest first.

    Parts go when they are older than the limit, or any when the file is too large, or has not
    enough free pages where `needs_room` says that the disk is full. Messages `in_hand`, which the
    sender has, stay.
    """
    is_large = used_bytes(connection) > limits.begins_at
    needs_room = needs_room and _free_bytes(connection) < _ROOM_BYTES
    row = connection.execute(
        "SELECT rowid, epoch FROM epochs WHERE rowid >= ? ORDER BY rowid", (place.epoch,)
    ).fetchone()
    if row is None:
        may_let_go = place.was_large and not place.removed and place.let_go < _MOST_LET_GO
        if is_large and may_let_go:
            return _let_go(connection, place, now_ns, in_hand)
        return Step(place=None)
    number, epoch = row
    after = place.sequence if number == place.epoch else 0
    oldest_ns = now_ns - limits.keep_ns
    going: list[int] = []
    seen, is_young = 0, False
    # The newest part stays, whatever its age: the count of sequences goes on from it.
    for sequence, decided_ns, waits in connection.execute(
        "SELECT sequence, decided_ns, EXISTS (SELECT 1 FROM outbox INDEXED BY pending_parts"
        " WHERE outbox.epoch = ?1 AND outbox.sequence = triggers.sequence"
        " AND delivered_ns IS NULL AND refused IS NULL) FROM triggers"
        " WHERE epoch = ?1 AND sequence > ?2 AND state IS NOT NULL"
        " AND sequence < (SELECT max(sequence) FROM triggers WHERE epoch = ?1)"
        " ORDER BY sequence LIMIT ?3",
        (epoch, after, _SEEN),
    ):
        if decided_ns > oldest_ns and not (is_large or needs_room):
            is_young = True
            break
        seen, after = seen + 1, sequence
        if not waits:
            going.append(sequence)
        if len(going) == _PARTS:
            break
    refused = _remove(connection, epoch, going)
    if is_young or not seen:
        number, after = number + 1, 0
    further = Place(
        epoch=number,
        sequence=after,
        removed=place.removed + len(going),
        was_large=is_large and (place.was_large or place == Place()),
    )
    return Step(place=further, refused=refused)


def read_let_go(connection: sqlite3.Connection, epoch: str) -> dict[LetGo, list[Span]]:
    """The sequences of `epoch` whose undelivered messages have gone."""
    spans: dict[LetGo, list[Span]] = {kind: [] for kind in KINDS}
    for kind, sequence in connection.execute(
        "SELECT kind, sequence FROM let_go WHERE epoch = ? ORDER BY sequence", (epoch,)
    ):
        add_let_go(spans, kind, sequence)
    return spans


def add_let_go(spans: dict[LetGo, list[Span]], kind: LetGo, sequence: int) -> None:
    """Note one more; quick for the newest sequence, which is the usual one."""
    known = spans[kind]
    if known and known[-1][1] == sequence - 1:
        known[-1] = (known[-1][0], sequence)
    elif not known or known[-1][1] < sequence:
        known.append((sequence, sequence))
    else:
        spans[kind] = with_span(known, sequence, sequence)


def _remove(connection: sqlite3.Connection, epoch: str, sequences: list[int]) -> int:
    """Remove parts with their messages; returns how many of those had been refused."""
    if not sequences:
        return 0
    keys = [(epoch, sequence) for sequence in sequences]
    where = "WHERE epoch = ? AND sequence = ?"
    with transaction(connection):
        refused = sum(
            connection.execute(
                f"SELECT count(*) FROM outbox {where} AND refused IS NOT NULL",  # noqa: S608 (our own words)
                key,
            ).fetchone()[0]
            for key in keys
        )
        for key in keys:
            rows = connection.execute(f"SELECT id FROM outbox {where}", key).fetchall()  # noqa: S608 (our own words)
            remove_messages(connection, [row[0] for row in rows])
        for table in ("triggers", "let_go", "labels"):
            connection.executemany(f"DELETE FROM {table} {where}", keys)  # noqa: S608 (our own words)
    return int(refused)


def _let_go(
    connection: sqlite3.Connection, place: Place, now_ns: int, in_hand: Collection[int]
) -> Step:
    """Let the oldest undelivered pictures go, or messages where there are no pictures."""
    for kind in KINDS:
        is_kind = "AND content_type = 'image/jpeg'" if kind == "picture" else ""
        found = connection.execute(
            "SELECT id, epoch, sequence FROM outbox"  # noqa: S608 (our own words)
            f" WHERE delivered_ns IS NULL AND refused IS NULL {is_kind} ORDER BY id LIMIT ?",
            (_MESSAGES + len(in_hand),),
        ).fetchall()
        going = [row for row in found if row[0] not in in_hand][:_MESSAGES]
        if not going:
            continue
        with transaction(connection):
            remove_messages(connection, [row[0] for row in going])
            connection.executemany(
                "INSERT OR IGNORE INTO let_go VALUES (?, ?, ?, ?)",
                [(epoch, sequence, kind, now_ns) for _, epoch, sequence in going],
            )
        let_go = tuple((kind, epoch, sequence) for _, epoch, sequence in going)
        further = replace(place, let_go=place.let_go + len(going))
        return Step(place=further, pending=len(going), let_go=let_go)
    return Step(place=None)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _free_bytes(connection: sqlite3.Connection) -> int:
    return _pragma(connection, "freelist_count") * _pragma(connection, "page_size")


class Reserve:
    """A file beside the ledger that holds disk space for the day on which the disk is full.

    Giving it up makes room for the journal of the transaction that removes old parts.
    """

    def __init__(self, ledger: Path) -> None:
        self._path = ledger.with_name(f"{ledger.name}.reserve")

    def take(self) -> bool:
        """Have the file there, unless space is short; says whether it is."""
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_size == _RESERVE_BYTES:
                return True
            if shutil.disk_usage(self._path.parent).free > 2 * _RESERVE_BYTES:
                self._path.write_bytes(bytes(_RESERVE_BYTES))
                return True
        return False

    def is_space_short(self) -> bool:
        """Whether the disk itself is full, or nearly."""
        with suppress(OSError):
            return shutil.disk_usage(self._path.parent).free < _RESERVE_BYTES
        return True

    def give_up(self) -> None:
        """Give the space back to the disk."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
