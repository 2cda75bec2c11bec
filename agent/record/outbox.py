"""Deliveries in the ledger: what each sink wants of a part, and what has become of it.

A delivery is a narrow row. What it says is in the part's own row and is encoded by the sink when
it sends, so a mark writes a few bytes, and a part that three sinks want is stored once.

Every function here works on one connection and runs in the ledger's owner thread.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from agent.record.rows import THUMBNAIL, Delivery, Event, Span, event_of

Wanted = tuple[str, str]
"""A sink and an item that it wants."""

_EVENT: Final = """
SELECT triggers.*, agent_id, bundle_id, calibration_id, software
FROM triggers JOIN runs USING (run) JOIN epochs ON epochs.epoch = triggers.epoch
"""
_RECORDED_AFTER: Final = f"""
SELECT *, NULL AS jpeg FROM ({_EVENT}) WHERE position > coalesce(
    (SELECT position FROM triggers WHERE epoch = :epoch AND sequence = :sequence), 0
) ORDER BY position LIMIT :limit
"""  # noqa: S608 (our own words)
_WITH_PICTURE: Final = f"""
SELECT deliveries.id, sink, item, previous, jpeg, parts.*
FROM deliveries
JOIN ({_EVENT}) AS parts USING (epoch, sequence)
LEFT JOIN thumbnails ON item = '{THUMBNAIL}'
    AND thumbnails.epoch = deliveries.epoch AND thumbnails.sequence = deliveries.sequence
"""  # noqa: S608 (our own words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A sink has taken a delivery, or `refused` it for this reason, with its own `code`."""

    id: int
    time_ns: int
    refused: str | None = None
    code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """What a replay has queued again: ids of deliveries, and how many of them were refused."""

    ids: tuple[int, ...]
    refused: int
    last: int
    """The last sequence that was looked at."""


def insert(
    connection: sqlite3.Connection,
    epoch: str,
    sequence: int,
    wanted: Collection[Wanted],
    latest: dict[Wanted, int],
) -> int:
    """Queue what the sinks want of a part; returns the newest id, 0 for none.

    `latest` has the part of the newest delivery for each sink and item, and is brought up to date.
    """
    newest = 0
    for sink, item in wanted:
        newest = (
            connection.execute(
                "INSERT INTO deliveries (epoch, sequence, sink, item, previous)"
                " VALUES (:epoch, :sequence, :sink, :item, :previous)",
                {
                    "epoch": epoch,
                    "sequence": sequence,
                    "sink": sink,
                    "item": item,
                    "previous": latest.get((sink, item), 0),
                },
            ).lastrowid
            or 0
        )
        latest[sink, item] = sequence
    return newest


def read_latest(connection: sqlite3.Connection, epoch: str) -> dict[Wanted, int]:
    """The part of the newest delivery of an epoch, for each sink and item."""
    rows = connection.execute("SELECT * FROM latest WHERE epoch = ?", (epoch,))
    return {(row["sink"], row["item"]): row["sequence"] for row in rows}


def write_latest(connection: sqlite3.Connection, epoch: str, latest: dict[Wanted, int]) -> None:
    """Keep what `read_latest` gives."""
    connection.executemany(
        "INSERT OR REPLACE INTO latest (epoch, sink, item, sequence)"
        " VALUES (:epoch, :sink, :item, :sequence)",
        [
            {"epoch": epoch, "sink": sink, "item": item, "sequence": sequence}
            for (sink, item), sequence in latest.items()
        ],
    )


def write_mark(connection: sqlite3.Connection, mark: Mark) -> str | None:
    """Returns the sink where the delivery was waiting until now."""
    row = connection.execute(
        "UPDATE deliveries SET state = :state, settled_ns = :time_ns, code = :code,"
        " reason = :refused WHERE id = :id AND state IS NULL RETURNING sink",
        {
            "id": mark.id,
            "state": "taken" if mark.refused is None else "refused",
            "time_ns": mark.time_ns,
            "refused": mark.refused,
            "code": None if mark.refused is None else mark.code,
        },
    ).fetchone()
    return None if row is None else str(row["sink"])


def read_waiting(
    connection: sqlite3.Connection, sink: str, *, after: int, upto: int, limit: int
) -> list[sqlite3.Row]:
    """Rows of waiting deliveries with ids above `after` and up to `upto`, oldest first."""
    return connection.execute(
        f"{_WITH_PICTURE} WHERE sink = :sink AND deliveries.state IS NULL"
        " AND deliveries.id > :after AND deliveries.id <= :upto"
        " ORDER BY deliveries.id LIMIT :limit",
        {"sink": sink, "after": after, "upto": upto, "limit": limit},
    ).fetchall()


def delivery_of(row: sqlite3.Row) -> tuple[Delivery, Event]:
    """What `read_waiting` has found, for a sink."""
    delivery = Delivery(
        id=row["id"],
        sink=row["sink"],
        item=row["item"],
        epoch=row["epoch"],
        sequence=row["sequence"],
        previous=row["previous"],
    )
    return delivery, event_of(dict(row))


def read_recorded_after(
    connection: sqlite3.Connection, epoch: str, sequence: int, limit: int
) -> list[sqlite3.Row]:
    """Rows of the next parts recorded after one; from the oldest where that is not known."""
    return connection.execute(
        _RECORDED_AFTER, {"epoch": epoch, "sequence": sequence, "limit": limit}
    ).fetchall()


def keep_to(connection: sqlite3.Connection, agent_id: str, sinks: Sequence[str]) -> Counter[str]:
    """Have only the deliveries of these sinks of an agent wait; says which others are set aside.

    What is set aside is kept like what was delivered, and waits again when its sink is back.
    """
    values = {"agent": agent_id, "sinks": json.dumps(sinks)}
    ours = "epoch IN (SELECT epoch FROM epochs WHERE agent_id = :agent)"
    listed = "(SELECT value FROM json_each(:sinks))"
    connection.execute(
        f"UPDATE deliveries SET state = NULL WHERE state = 'aside' AND {ours} AND sink IN {listed}",  # noqa: S608 (our own words)
        values,
    )
    connection.execute(
        f"UPDATE deliveries SET state = 'aside'"  # noqa: S608 (our own words)
        f" WHERE state IS NULL AND {ours} AND sink NOT IN {listed}",
        values,
    )
    found = connection.execute(
        f"SELECT sink, count(*) FROM deliveries WHERE state = 'aside' AND {ours} GROUP BY sink",  # noqa: S608 (our own words)
        values,
    )
    return Counter(dict(map(tuple, found)))


def counts(connection: sqlite3.Connection) -> tuple[Counter[str], Counter[str]]:
    """How many deliveries of each sink wait, and how many it has refused."""
    waiting = connection.execute(
        "SELECT sink, count(*) FROM deliveries WHERE state IS NULL GROUP BY sink"
    )
    refused = connection.execute(
        "SELECT sink, count(*) FROM deliveries WHERE state = 'refused' GROUP BY sink"
    )
    return Counter(dict(map(tuple, waiting))), Counter(dict(map(tuple, refused)))


def count_of(connection: sqlite3.Connection, sink: str, epoch: str, span: Span) -> int:
    """How many deliveries of these parts there are, settled or not."""
    return _scalar(
        connection,
        "SELECT count(*) FROM deliveries WHERE epoch = :epoch AND sink = :sink"
        " AND sequence BETWEEN :first AND :last",
        sink,
        epoch,
        span,
    )


def requeue(
    connection: sqlite3.Connection, sink: str, epoch: str, span: Span, *, parts: int | None = None
) -> Requeued:
    """Have the settled deliveries of the first `parts` parts of `span`, or of all, wait again."""
    first, last = span
    if parts is not None:
        found = _scalar(
            connection,
            "SELECT max(sequence) FROM (SELECT DISTINCT sequence FROM deliveries"
            " WHERE epoch = :epoch AND sink = :sink AND sequence BETWEEN :first AND :last"
            " ORDER BY sequence LIMIT :parts)",
            sink,
            epoch,
            span,
            parts=parts,
        )
        last = found or last
    rows = connection.execute(
        "SELECT id, state FROM deliveries WHERE epoch = :epoch AND sink = :sink"
        " AND sequence BETWEEN :first AND :last AND state IS NOT NULL ORDER BY id",
        {"epoch": epoch, "sink": sink, "first": first, "last": last},
    ).fetchall()
    ids = tuple(row["id"] for row in rows)
    connection.executemany(
        "UPDATE deliveries SET state = NULL, settled_ns = NULL, code = NULL, reason = NULL"
        " WHERE id = ?",
        [(number,) for number in ids],
    )
    refused = sum(row["state"] == "refused" for row in rows)
    return Requeued(ids=ids, refused=refused, last=last)


def remove(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Remove deliveries."""
    connection.executemany("DELETE FROM deliveries WHERE id = ?", [(one,) for one in ids])


def _scalar(
    connection: sqlite3.Connection, query: str, sink: str, epoch: str, span: Span, **more: int
) -> int:
    values = {"sink": sink, "epoch": epoch, "first": span[0], "last": span[1], **more}
    return int(connection.execute(query, values).fetchone()[0] or 0)
