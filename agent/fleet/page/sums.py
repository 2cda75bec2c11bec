"""Sums of what is in the bucket: each new object with parts is read once, and its sums are kept.

`sums.sqlite` is disposable: it is filled again from the bucket.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

import duckdb

from agent.services.shipper.names import Shipped, missing, parts_of

_LOG: Final = logging.getLogger("atac_agent.fleet")
HOURS: Final = 24
_HOUR_NS: Final = 3_600_000_000_000
_RECENT: Final = 6
"""Hours that are compared with those before: have scores moved?"""
_KEPT_DAYS: Final = 3
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS objects (name TEXT PRIMARY KEY, agent TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_agent ON objects (agent);
CREATE TABLE IF NOT EXISTS hours (agent TEXT NOT NULL, hour INTEGER NOT NULL, name TEXT NOT NULL,
    parts INTEGER NOT NULL, ng INTEGER NOT NULL, median REAL, PRIMARY KEY (agent, hour, name))
    WITHOUT ROWID;
"""
_SUMS: Final = f"""
SELECT decided_ns // {_HOUR_NS} AS hour, count(*), count(*) FILTER (state = 'NG'),
    median(score / threshold) FILTER (threshold > 0)
FROM read_parquet($file) GROUP BY hour
"""  # noqa: S608 - our own number


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """The last day of a line: of each hour the parts and the NG ones, the oldest first.

    `before` and `recent` are medians of scores in thresholds. `missing` counts parts between
    objects that are there.
    """

    parts: tuple[int, ...]
    ng: tuple[int, ...]
    before: float | None = None
    recent: float | None = None
    missing: int = 0


class Sums:
    """The sums of a bucket; `take` is called by one thread, `days` by any.

    Args:
        path: Their file.
        client: Of boto3, for the bucket.
        bucket: Its name.
    """

    def __init__(self, path: Path, client: Any, bucket: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.executescript(_SCHEMA)
        self._lock = threading.Lock()
        self._client = client
        self._bucket = bucket

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def take(self, now: datetime, *, is_over: Callable[[], bool] = lambda: False) -> int:
        """Read what is new of yesterday and today; says how many objects.

        Raises as boto3 does where the bucket cannot be read.
        """
        known = {name for (name,) in self._ask("SELECT name FROM objects")}
        taken = 0
        for back in (1, 0):
            day = f"{now.astimezone(UTC) - timedelta(days=back):%Y-%m-%d}"
            for name in self._listed(parts_of(day)):
                shipped = None if name in known else Shipped.of(name)
                if shipped is None:
                    continue
                if is_over():
                    return taken
                self._take(shipped)
                taken += 1
        oldest = f"{now.astimezone(UTC) - timedelta(days=_KEPT_DAYS):%Y-%m-%d}"
        with self._lock:
            for table in ("objects", "hours"):
                self._database.execute(
                    f"DELETE FROM {table} WHERE name < ?",  # noqa: S608 (our own word)
                    (parts_of(oldest),),
                )
        return taken

    def days(self, now: datetime) -> dict[str, Day]:
        """The last day of each line that has parts there."""
        last = round(now.timestamp()) // 3600
        first = last - HOURS + 1
        found: dict[str, list[tuple[int, int, int, float | None]]] = {}
        for agent, hour, parts, ng, median in self._ask(
            "SELECT agent, hour, sum(parts), sum(ng), sum(median * parts) / sum(parts)"
            " FROM hours WHERE hour BETWEEN ? AND ? GROUP BY agent, hour",
            first,
            last,
        ):
            found.setdefault(agent, []).append((hour - first, parts, ng, median))
        holes = self._missing()
        return {agent: _day(hours, holes.get(agent, 0)) for agent, hours in found.items()}

    def _missing(self) -> dict[str, int]:
        objects: dict[str, list[Shipped]] = {}
        for agent, name in self._ask("SELECT agent, name FROM objects"):
            if (shipped := Shipped.of(name)) is not None:
                objects.setdefault(agent, []).append(shipped)
        return {
            agent: sum(gap.parts for gap in missing(shipped)) for agent, shipped in objects.items()
        }

    def _listed(self, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
            for each in page.get("Contents", ()):
                yield each["Key"]

    def _take(self, shipped: Shipped) -> None:
        body = self._client.get_object(Bucket=self._bucket, Key=shipped.name)["Body"].read()
        rows: Iterable[Any] = ()
        with NamedTemporaryFile(suffix=".parquet") as file:
            file.write(body)
            file.flush()
            try:
                with duckdb.connect(config={"threads": 1}) as database:
                    rows = database.execute(_SUMS, {"file": file.name}).fetchall()
            except duckdb.Error as error:
                _LOG.warning("%s is no file of parts: %s", shipped.name, str(error).split("\n")[0])
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute(
                    "INSERT OR REPLACE INTO objects VALUES (?, ?)", (shipped.name, shipped.agent)
                )
                self._database.executemany(
                    "INSERT OR REPLACE INTO hours VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (shipped.agent, hour, shipped.name, parts, ng, median)
                        for hour, parts, ng, median in rows
                    ],
                )
                self._database.execute("COMMIT")
            finally:
                with suppress(sqlite3.Error):
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")

    def _ask(self, sql: str, *values: object) -> list[Any]:
        with self._lock:
            return self._database.execute(sql, values).fetchall()


def _day(hours: list[tuple[int, int, int, float | None]], missed: int) -> Day:
    parts, ng = [0] * HOURS, [0] * HOURS
    medians: dict[bool, list[tuple[float, int]]] = {False: [], True: []}
    for place, count, rejected, median in hours:
        parts[place], ng[place] = count, rejected
        if median is not None:
            medians[place >= HOURS - _RECENT].append((median, count))
    return Day(
        parts=tuple(parts),
        ng=tuple(ng),
        before=_mean(medians[False]),
        recent=_mean(medians[True]),
        missing=missed,
    )


def _mean(weighed: list[tuple[float, int]]) -> float | None:
    total = sum(count for _, count in weighed)
    return sum(value * count for value, count in weighed) / total if total else None
