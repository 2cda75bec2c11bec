"""Which contents have had their part, also once the part is gone: the file may still be there.

A camera asks at its start, and once a day, about every file that it sees; what nobody has asked
about for as long as parts are kept is forgotten.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Final

from agent.record.schema import transaction

_DAY_NS: Final = 86_400 * 10**9
_FORGOTTEN: Final = 1000
"""In one step, so that commits are not held up."""


def known(connection: sqlite3.Connection, sources: Collection[str], now_ns: int) -> set[str]:
    """Those of `sources` whose part has ended; that somebody asked is noted."""
    asked = {"asked": json.dumps(list(sources)), "now": now_ns, "old": now_ns - _DAY_NS}
    among = "source IN (SELECT value FROM json_each(:asked))"
    found = connection.execute(
        f"SELECT source FROM triggers WHERE state IS NOT NULL AND {among}"  # noqa: S608 (our own words)
        f" UNION SELECT source FROM sources WHERE {among}",
        asked,
    ).fetchall()
    with suppress(sqlite3.Error), transaction(connection):
        connection.execute(
            f"UPDATE sources SET asked_ns = :now WHERE asked_ns < :old AND {among}",  # noqa: S608 (our own words)
            asked,
        )
    return {row["source"] for row in found}


def of_parts(connection: sqlite3.Connection, parts: Sequence[dict[str, Any]]) -> list[str]:
    """The sources of parts that are about to go."""
    query = (
        "SELECT source FROM triggers WHERE epoch = :epoch AND sequence = :sequence"
        " AND source IS NOT NULL"
    )
    return [row["source"] for part in parts for row in connection.execute(query, part)]


def keep(connection: sqlite3.Connection, sources: Sequence[str], now_ns: int) -> None:
    """Remember them beyond their parts; in the transaction in which these go."""
    connection.executemany(
        "INSERT OR IGNORE INTO sources (source, asked_ns) VALUES (?, ?)",
        [(source, now_ns) for source in sources],
    )


def forget(connection: sqlite3.Connection, oldest_ns: int) -> None:
    """Forget some of those that nobody has asked about since."""
    query = "SELECT source FROM sources WHERE asked_ns < ? LIMIT ?"
    if going := connection.execute(query, (oldest_ns, _FORGOTTEN)).fetchall():
        with transaction(connection):
            connection.executemany(
                "DELETE FROM sources WHERE source = ?", [(row["source"],) for row in going]
            )
