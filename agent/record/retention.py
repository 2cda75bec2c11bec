"""What the ledger removes, by age and by size, in steps small enough to pass unnoticed.

First go the oldest parts of which nothing waits for a sink. Only where those are not enough, and
the file would outgrow its limit, deliveries are discarded that no sink has had: pictures before
the rest, the oldest first, and each is written down in the table `discarded`.

Every function here works on one connection and runs in the ledger's owner thread.
"""

import logging
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, get_args

from agent.record import outbox, sources
from agent.record.rows import THUMBNAIL, Span, with_span
from agent.record.schema import number, transaction

_LOG: Final = logging.getLogger("atac_agent.ledger")
_DRIFT_NS: Final = 60_000_000_000
"""Clocks drift and are corrected: a difference up to this is no jump."""
_BELIEVED_NS: Final = 86_400_000_000_000
_PARTS: Final = 50
"""Parts that one step removes: with a picture each, some 3 MB of pages to give back."""
_SEEN: Final = 500
"""Parts that one step looks at."""
_DELIVERIES: Final = 20
"""Waiting deliveries that one step discards."""
_MOST_DISCARDED: Final = 1000
"""Waiting deliveries that one sweep discards; the next may find parts that were delivered."""
_MODE: Final = 0o640
_RESERVE_BYTES: Final = 6_000_000
"""A journal that is due for its checkpoint, and one more group."""
_ROOM_BYTES: Final = 4_000_000
"""Free pages that a file needs when it cannot grow: two groups."""

Discard = Literal["picture", "message"]
"""What of a part was removed before its sink had it: its thumbnail, or anything else."""
KINDS: Final[tuple[Discard, ...]] = get_args(Discard)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """What an earlier run has left: the time that it counted ages from at its end.

    For `differed_ns` of running time UTC had then said something else.
    """

    now_ns: int
    differed_ns: int = 0


class AgeClock:
    """UTC for the age of parts, which trusts no single reading of the wall clock.

    A clock that is wrong, at the start or later, would make every part old at once. So ages go on
    steadily from the time that the last run left in the ledger. The wall clock is believed when it
    has differed for a day of running time, over restarts, by a clock that also counts while the
    machine sleeps. Until then parts are kept for longer, at most by the time that nothing ran.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        steady_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall_ns = wall_ns
        self._steady_ns = steady_ns
        self._lock = threading.Lock()
        self._offset_ns = wall_ns() - steady_ns()
        self._differs_since: int | None = None
        self._differed_ns = 0

    def take_up(self, trusted: Trusted) -> None:
        """Go on where the last run was, whatever the wall clock says now."""
        with self._lock:
            self._offset_ns = trusted.now_ns - self._steady_ns()
            self._differs_since = None
            self._differed_ns = trusted.differed_ns

    def now_ns(self) -> int:
        """UTC in nanoseconds since 1970, without what has differed for less than a day."""
        return self.trusted().now_ns

    def trusted(self) -> Trusted:
        """What the next run is to take up."""
        with self._lock:
            wall, steady = self._wall_ns(), self._steady_ns()
            difference = wall - steady - self._offset_ns
            if abs(difference) <= _DRIFT_NS:
                self._offset_ns += difference
                self._differs_since, self._differed_ns = None, 0
            elif self._differs_since is None:
                self._differs_since = steady - self._differed_ns
                _LOG.warning(
                    "the clock differs by %+.0f s from what the ledger knows;"
                    " parts keep their age until it has done so for a day",
                    difference / 1e9,
                )
            if self._differs_since is not None:
                self._differed_ns = steady - self._differs_since
                if self._differed_ns > _BELIEVED_NS:
                    self._offset_ns += difference
                    self._differs_since, self._differed_ns = None, 0
            return Trusted(now_ns=steady + self._offset_ns, differed_ns=self._differed_ns)


def read_trusted(connection: sqlite3.Connection) -> Trusted | None:
    """What `write_trusted` has kept."""
    row = connection.execute("SELECT trusted_ns, differed_ns FROM clock").fetchone()
    return row and Trusted(now_ns=row["trusted_ns"], differed_ns=row["differed_ns"])


def write_trusted(connection: sqlite3.Connection, trusted: Trusted) -> None:
    """Keep the time that ages count from."""
    connection.execute(
        "INSERT OR REPLACE INTO clock (id, trusted_ns, differed_ns) VALUES (1, :now, :differed)",
        {"now": trusted.now_ns, "differed": trusted.differed_ns},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far a sweep has come: `epoch` is a row of `epochs`.

    `removed` parts and `discarded` deliveries went in it so far. `was_large` says that the file
    was too large from the beginning, so that every part was considered.
    """

    epoch: int = 0
    sequence: int = 0
    removed: int = 0
    discarded: int = 0
    was_large: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step did. `place` is where to go on, `None` at the end of a sweep.

    `waiting` and `refused` count the deliveries of each sink that are gone.
    """

    place: Place | None
    waiting: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    discarded: tuple[tuple[Discard, str, int], ...] = ()
    """Deliveries that were waiting: kind, epoch and sequence."""


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

    Args:
        connection: The ledger's.
        limits: What may be kept.
        now_ns: The time that ages count from.
        place: Where the sweep has come to.
        in_hand: Ids of deliveries that sinks are working on: these stay.
        needs_room: The disk is full: parts go, whatever their age, until enough pages are free.

    Returns:
        What was done. Parts go when they are older than the limit, or any when the file is too
        large.

    Raises:
        sqlite3.Error: The file could not be written; nothing was done.
    """
    is_large = used_bytes(connection) > limits.begins_at
    needs_room = needs_room and _free_bytes(connection) < _ROOM_BYTES
    row = connection.execute(
        "SELECT rowid AS row, epoch FROM epochs WHERE row >= ? ORDER BY row", (place.epoch,)
    ).fetchone()
    if row is None:
        may_discard = place.was_large and not place.removed and place.discarded < _MOST_DISCARDED
        if is_large and may_discard:
            return _discard(connection, place, now_ns, in_hand)
        sources.forget(connection, now_ns - limits.keep_ns)
        return Step(place=None)
    at, epoch = row["row"], row["epoch"]
    after = place.sequence if at == place.epoch else 0
    oldest_ns = now_ns - limits.keep_ns
    going: list[int] = []
    seen, is_young = 0, False
    # The newest part stays, whatever its age: the count of sequences goes on from it.
    for part in connection.execute(
        "SELECT sequence, decided_ns, EXISTS (SELECT 1 FROM deliveries INDEXED BY waiting_parts"
        " WHERE deliveries.epoch = :epoch AND deliveries.sequence = triggers.sequence"
        " AND deliveries.state IS NULL) AS waits FROM triggers"
        " WHERE epoch = :epoch AND sequence > :after AND state IS NOT NULL"
        " AND sequence < (SELECT max(sequence) FROM triggers WHERE epoch = :epoch)"
        " ORDER BY sequence LIMIT :limit",
        {"epoch": epoch, "after": after, "limit": _SEEN},
    ):
        if part["decided_ns"] > oldest_ns and not (is_large or needs_room):
            is_young = True
            break
        seen, after = seen + 1, part["sequence"]
        if not part["waits"]:
            going.append(part["sequence"])
        if len(going) == _PARTS:
            break
    refused = _remove(connection, epoch, going, now_ns)
    if is_young or not seen:
        at, after = at + 1, 0
    further = Place(
        epoch=at,
        sequence=after,
        removed=place.removed + len(going),
        was_large=is_large and (place.was_large or place == Place()),
    )
    return Step(place=further, refused=refused)


def read_discarded(connection: sqlite3.Connection, epoch: str) -> dict[Discard, list[Span]]:
    """The sequences of `epoch` whose deliveries were discarded."""
    spans: dict[Discard, list[Span]] = {kind: [] for kind in KINDS}
    for kind, sequence in connection.execute(
        "SELECT kind, sequence FROM discarded WHERE epoch = ? ORDER BY sequence", (epoch,)
    ):
        add_discarded(spans, kind, sequence)
    return spans


def add_discarded(spans: dict[Discard, list[Span]], kind: Discard, sequence: int) -> None:
    """Note one more; quick for the newest sequence, which is the usual one."""
    known = spans[kind]
    if known and known[-1][1] == sequence - 1:
        known[-1] = (known[-1][0], sequence)
    else:
        spans[kind] = with_span(known, sequence, sequence)


def _remove(
    connection: sqlite3.Connection, epoch: str, sequences: list[int], now_ns: int
) -> Counter[str]:
    """Remove parts with all that belongs to them; counts the refused deliveries of each sink."""
    refused: Counter[str] = Counter()
    if not sequences:
        return refused
    keys = [{"epoch": epoch, "sequence": sequence} for sequence in sequences]
    where = "WHERE epoch = :epoch AND sequence = :sequence"
    with transaction(connection):
        seen = sources.of_parts(connection, keys)
        for key in keys:
            refused.update(
                sink
                for (sink,) in connection.execute(
                    f"SELECT sink FROM deliveries {where} AND state = 'refused'",  # noqa: S608 (our own words)
                    key,
                )
            )
        for table in ("triggers", "thumbnails", "deliveries", "discarded", "labels"):
            connection.executemany(f"DELETE FROM {table} {where}", keys)  # noqa: S608 (our own words)
        sources.keep(connection, seen, now_ns)
    return refused


def _discard(
    connection: sqlite3.Connection, place: Place, now_ns: int, in_hand: Collection[int]
) -> Step:
    """Discard the oldest waiting pictures, or other deliveries where there are no pictures."""
    for kind in KINDS:
        is_kind = f"AND item = '{THUMBNAIL}'" if kind == "picture" else ""
        found = connection.execute(
            "SELECT id, epoch, sequence, sink FROM deliveries"  # noqa: S608 (our own words)
            f" WHERE state IS NULL {is_kind} ORDER BY id LIMIT ?",
            (_DELIVERIES + len(in_hand),),
        ).fetchall()
        going = [row for row in found if row["id"] not in in_hand][:_DELIVERIES]
        if not going:
            continue
        parts = [{"epoch": row["epoch"], "sequence": row["sequence"]} for row in going]
        with transaction(connection):
            outbox.remove(connection, [row["id"] for row in going])
            if kind == "picture":
                connection.executemany(
                    "DELETE FROM thumbnails WHERE epoch = :epoch AND sequence = :sequence", parts
                )
            connection.executemany(
                "INSERT OR IGNORE INTO discarded (epoch, sequence, kind, noticed_ns)"
                " VALUES (:epoch, :sequence, :kind, :now_ns)",
                [{**part, "kind": kind, "now_ns": now_ns} for part in parts],
            )
        return Step(
            place=replace(place, discarded=place.discarded + len(going)),
            waiting=Counter(row["sink"] for row in going),
            discarded=tuple((kind, row["epoch"], row["sequence"]) for row in going),
        )
    return Step(place=None)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return number(connection, f"PRAGMA {name}", {})


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
                # A file of our own, wherever a link or a pipe of this name would lead.
                self._path.unlink(missing_ok=True)
                self._path.touch(_MODE, exist_ok=False)
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
