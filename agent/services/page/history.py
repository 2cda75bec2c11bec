"""`history.sqlite`: what the feed has told, with the indexes and sums that screens ask for.

    feed ─▶ add ─▶ waiting rows ─▶ flush: parts, hours, scores, latencies ─▶ rows, counts, …

Disposable: it is filled again from the ledger when it is deleted, damaged or of another version.
A request never scans: lists come by an index, figures over time by hourly sums.
"""

import json
import logging
import sqlite3
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.part import State
from agent.record.annotations import parted_label
from agent.record.feed import START, Cursor
from agent.record.rows import Event
from agent.station.status import BOUNDS_S
from engine.frame import Box

_LOG: Final = logging.getLogger("atac_agent.page")
VERSION: Final = 4
HOUR_NS: Final = 3_600_000_000_000
BINS: Final = 40
"""Of a score histogram, from 0 to twice the threshold where that is positive; see `score_bin`."""
NG, DOUBTFUL, AUDIT = 1, 2, 4
"""Why a part is to be looked at; a part may be in several queues."""
QUEUES: Final = {"ng": NG, "doubtful": DOUBTFUL, "audit": AUDIT}
_MOST: Final = 3_000_000
"""Parts that are kept; the oldest go, their sums stay."""
_TRIM: Final = 10_000
_BATCH: Final = 500

_SCHEMA: Final = """
CREATE TABLE marks (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (run INTEGER PRIMARY KEY, bundle_id TEXT, calibration_id TEXT,
    UNIQUE (bundle_id, calibration_id));
CREATE TABLE parts (n INTEGER PRIMARY KEY, epoch TEXT NOT NULL, sequence INTEGER NOT NULL,
    run INTEGER NOT NULL, camera TEXT NOT NULL, product TEXT, part_id TEXT,
    triggered_ns INTEGER NOT NULL,
    decided_ns INTEGER NOT NULL, state TEXT NOT NULL, late_state TEXT, reason TEXT NOT NULL,
    score REAL, threshold REAL, box TEXT, across REAL,
    down REAL, audit REAL, has_thumbnail INTEGER NOT NULL,
    queues INTEGER NOT NULL, label TEXT, kind TEXT, UNIQUE (epoch, sequence));
CREATE INDEX by_part_id ON parts (part_id);
CREATE INDEX by_time ON parts (triggered_ns);
CREATE INDEX by_state ON parts (state, n);
CREATE INDEX by_camera_state ON parts (camera, state, n);
CREATE INDEX by_score ON parts (score);
CREATE INDEX by_label ON parts (label, n) WHERE label IS NOT NULL;
CREATE INDEX by_kind ON parts (kind) WHERE kind IS NOT NULL;
CREATE INDEX open_ng ON parts (n) WHERE queues & 1 AND label IS NULL;
CREATE INDEX open_doubtful ON parts (n) WHERE queues & 2 AND label IS NULL;
CREATE INDEX open_audit ON parts (n) WHERE queues & 4 AND label IS NULL;
CREATE INDEX all_ng ON parts (n) WHERE queues & 1;
CREATE INDEX all_doubtful ON parts (n) WHERE queues & 2;
CREATE INDEX all_audit ON parts (n) WHERE queues & 4;
CREATE TABLE labels (epoch TEXT, sequence INTEGER, labelled_ns INTEGER, id INTEGER NOT NULL,
    label TEXT NOT NULL, who TEXT NOT NULL, role TEXT NOT NULL, queue TEXT NOT NULL,
    PRIMARY KEY (epoch, sequence, labelled_ns)) WITHOUT ROWID;
CREATE INDEX by_labelled ON labels (labelled_ns);
CREATE TABLE hours (hour INTEGER, camera TEXT, state TEXT, parts INTEGER NOT NULL,
    PRIMARY KEY (hour, camera, state)) WITHOUT ROWID;
CREATE TABLE scores (hour INTEGER, camera TEXT, bin INTEGER, parts INTEGER NOT NULL,
    PRIMARY KEY (hour, camera, bin)) WITHOUT ROWID;
CREATE TABLE latencies (hour INTEGER, camera TEXT, bucket INTEGER, parts INTEGER NOT NULL,
    PRIMARY KEY (hour, camera, bucket)) WITHOUT ROWID;
"""
"""`hours`, `scores` and `latencies` count parts by the UTC hour of their trigger and by camera.

`bin` is that of `score_bin`, `bucket` an index into the bounds of `agent.station.status`.
"""
_SUMS: Final = {"hours": "state", "scores": "bin", "latencies": "bucket"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What parts a list has; `None` and empty text: all of them. `before` continues a list."""

    queue: str = ""
    label: str = ""
    """`open`: none yet."""
    camera: str = ""
    state: str = ""
    part_id: str = ""
    score_from: float | None = None
    score_to: float | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    before: int | None = None

    @property
    def is_by_score(self) -> bool:
        """The highest scores first; else the newest parts."""
        return self.score_from is not None or self.score_to is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One part as screens show it."""

    n: int
    epoch: str
    sequence: int
    camera: str
    product: str | None
    part_id: str | None
    triggered_ns: int
    decided_ns: int
    state: str
    late_state: str | None
    reason: str
    score: float | None
    threshold: float | None
    box: tuple[int, int, int, int] | None
    audit: float | None
    has_thumbnail: bool
    queues: int
    label: str | None
    kind: str | None
    """Of defect, where somebody has named it."""

    @property
    def id(self) -> str:
        """Names the part in addresses: epoch and sequence."""
        return f"{self.epoch}/{self.sequence}"

    @property
    def ratio(self) -> float | None:
        """The score in thresholds, where that means something."""
        if self.score is None or not self.threshold or self.threshold < 0:
            return None
        return self.score / self.threshold


_ROW: Final = (
    "n, epoch, sequence, camera, product, part_id, triggered_ns, decided_ns, state, late_state,"
    " reason, score, threshold, box, audit, has_thumbnail, queues, label, kind"
)


class History:
    """The history in a folder; thread-safe.

    Args:
        path: The file.
        near: An OK part whose score is less than `near` thresholds below it is doubtful.
    """

    def __init__(self, path: Path, *, near: float) -> None:
        self._path = path
        self._near = near
        self._waiting: list[Event] = []
        self._adding = threading.Lock()
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = self._opened()
        except sqlite3.DatabaseError as error:
            _LOG.warning("%s: %s; it is filled again from the ledger", path, error)
            self._remove()
            self._writer = self._opened()
        self._reader = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False
        )
        self._reader.row_factory = sqlite3.Row
        self._runs: dict[tuple[str, str], int] = {
            (row["bundle_id"], row["calibration_id"]): row["run"]
            for row in self._reader.execute("SELECT * FROM runs")
        }

    def _opened(self) -> sqlite3.Connection:
        self._path.touch(0o640)
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            _check_version(version)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")  # it can be filled again
            if version == 0:
                connection.executescript(f"{_SCHEMA}PRAGMA user_version = {VERSION};")
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _remove(self) -> None:
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + end).unlink()

    def close(self) -> None:
        """Write what waits, and close the file."""
        self.flush()
        self._writer.close()
        self._reader.close()

    # ---- filling it

    def cursor(self) -> Cursor:
        """The newest part of the feed that is here."""
        epoch, sequence = json.loads(self._mark("cursor") or json.dumps(START))
        return epoch, sequence

    def add(self, event: Event) -> None:
        """Take one part of the feed; `flush` writes it."""
        with self._adding:
            self._waiting.append(event)
            is_many = len(self._waiting) >= _BATCH
        if is_many:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        with self._writing:
            with self._adding:
                events, self._waiting = self._waiting, []
            if events:
                with self._transaction():
                    self._write(events)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        finally:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _write(self, events: Sequence[Event]) -> None:
        sums: dict[str, Counter[tuple[int, str, object]]] = {name: Counter() for name in _SUMS}
        for event in events:
            row = self._row(event)
            marks = ", ".join(f":{name}" for name in row)
            added = self._writer.execute(
                f"INSERT OR IGNORE INTO parts ({', '.join(row)}) VALUES ({marks})",  # noqa: S608 (our own words)
                row,
            )
            if added.rowcount:
                hour = event.triggered_ns // HOUR_NS
                sums["hours"][hour, event.camera, event.state.value] += 1
                if event.score is not None and event.threshold is not None:
                    bin_ = score_bin(event.score, event.threshold)
                    sums["scores"][hour, event.camera, bin_] += 1
                    taken_s = (event.decided_ns - event.triggered_ns) / 1e9
                    sums["latencies"][hour, event.camera, bisect_left(BOUNDS_S, taken_s)] += 1
        for table, column in _SUMS.items():
            self._writer.executemany(
                f"INSERT INTO {table} (hour, camera, {column}, parts) VALUES (?, ?, ?, ?)"  # noqa: S608 (our own words)
                f" ON CONFLICT DO UPDATE SET parts = parts + excluded.parts",
                [(*key, parts) for key, parts in sums[table].items()],
            )
        self._set("cursor", json.dumps((events[-1].epoch, events[-1].sequence)))
        (first, last) = self._writer.execute("SELECT min(n), max(n) FROM parts").fetchone()
        if last - first >= _MOST + _TRIM:
            self._writer.execute("DELETE FROM parts WHERE n <= ?", (last - _MOST,))

    def _row(self, event: Event) -> dict[str, object]:
        box = event.passes[-1].box if len(event.passes) > 1 else None
        return {
            "epoch": event.epoch,
            "sequence": event.sequence,
            "run": self._run(event),
            "camera": event.camera,
            "product": event.product,
            "part_id": event.part_id,
            "triggered_ns": event.triggered_ns,
            "decided_ns": event.decided_ns,
            "state": event.state.value,
            "late_state": event.late_state and event.late_state.value,
            "reason": event.reason,
            "score": event.score,
            "threshold": event.threshold,
            "box": box and json.dumps((box.left, box.top, box.right, box.bottom)),
            **_centre(event, box),
            "audit": event.audit,
            "has_thumbnail": event.has_thumbnail,
            "queues": queues_of(event, self._near),
        }

    def _run(self, event: Event) -> int:
        key = event.bundle_id, event.calibration_id
        if key not in self._runs:
            self._writer.execute(
                "INSERT OR IGNORE INTO runs (bundle_id, calibration_id) VALUES (?, ?)", key
            )
            (run,) = self._writer.execute(
                "SELECT run FROM runs WHERE bundle_id = ? AND calibration_id = ?", key
            ).fetchone()
            self._runs[key] = run
        return self._runs[key]

    def newest_label(self, epoch: str) -> int:
        """The id of the newest label that is here, of the ledger that now has this epoch."""
        known, number = json.loads(self._mark("label") or '["", 0]')
        return int(number) if known == epoch else 0

    def add_labels(self, labels: Sequence[Mapping[str, Any]], epoch: str) -> None:
        """Take labels as the ledger that now has this epoch has them, in their order."""
        self.flush()
        with self._writing, self._transaction():
            for label in labels:
                self._writer.execute(
                    "INSERT OR IGNORE INTO labels VALUES"
                    " (:epoch, :sequence, :labelled_ns, :id, :label, :who, :role, :queue)",
                    dict(label),
                )
                said, kind = parted_label(label["label"])
                self._writer.execute(
                    "UPDATE parts SET label = ?, kind = ? WHERE epoch = ? AND sequence = ?",
                    (
                        None if said == "withdrawn" else said,
                        kind or None,
                        label["epoch"],
                        label["sequence"],
                    ),
                )
            if labels:
                self._set("label", json.dumps((epoch, labels[-1]["id"])))

    def _set(self, name: str, value: str) -> None:
        self._writer.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    def _mark(self, name: str) -> str | None:
        found = self.query("SELECT value FROM marks WHERE name = ?", name)
        return found[0]["value"] if found else None

    # ---- asking it

    def query(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a question that some index answers."""
        with self._reading:
            return self._reader.execute(sql, values).fetchall()

    def parts(self, filters: Filters, limit: int) -> list[Row]:
        """The next parts of a list."""
        where, values = _where(filters)
        order = "score DESC, n DESC" if filters.is_by_score else "n DESC"
        found = self.query(
            f"SELECT {_ROW} FROM parts WHERE {' AND '.join(where) or '1'} ORDER BY {order} LIMIT ?",  # noqa: S608 (our own words)
            *values,
            limit,
        )
        return [_shown(row) for row in found]

    def parts_where(self, condition: str, camera: str, limit: int) -> list[Row]:
        """The newest parts for which `condition`, our own SQL, holds; of all cameras or of one."""
        found = self.query(
            f"SELECT {_ROW} FROM parts WHERE {condition} AND (? = '' OR camera = ?)"  # noqa: S608 (our own words)
            " ORDER BY n DESC LIMIT ?",
            camera,
            camera,
            limit,
        )
        return [_shown(row) for row in found]

    def part(self, epoch: str, sequence: int) -> Row | None:
        """One part."""
        found = self.query(
            f"SELECT {_ROW} FROM parts WHERE epoch = ? AND sequence = ?",  # noqa: S608 (our own words)
            epoch,
            sequence,
        )
        return _shown(found[0]) if found else None

    def waiting(self, most: int = 1000) -> dict[str, int]:
        """How many parts of each queue have no label yet; counted up to `most`."""
        return {
            name: self.query(
                f"SELECT count(*) AS parts FROM (SELECT 1 FROM parts WHERE queues & {bit}"  # noqa: S608 (our own words)
                " AND label IS NULL LIMIT ?)",
                most,
            )[0]["parts"]
            for name, bit in QUEUES.items()
        }

    def labels(self, epoch: str, sequence: int) -> list[dict[str, Any]]:
        """All that was said of a part, the newest last."""
        found = self.query(
            "SELECT * FROM labels WHERE epoch = ? AND sequence = ? ORDER BY labelled_ns",
            epoch,
            sequence,
        )
        return [dict(row) for row in found]

    def counts_since(self, time_ns: int) -> Counter[str]:
        """Parts by state since then: whole hours by their sums, the first one part by part."""
        whole = -(-time_ns // HOUR_NS)
        counts: Counter[str] = Counter()
        for row in self.query(
            "SELECT state, sum(parts) AS parts FROM hours WHERE hour >= ? GROUP BY state", whole
        ):
            counts[row["state"]] += row["parts"]
        for row in self.query(
            "SELECT state, count(*) AS parts FROM parts"
            " WHERE triggered_ns >= ? AND triggered_ns < ? GROUP BY state",
            time_ns,
            whole * HOUR_NS,
        ):
            counts[row["state"]] += row["parts"]
        return counts

    def begins_after(self, time_ns: int) -> bool:
        """Whether there is one epoch, from its first part on, and none of it is older."""
        (found,) = self.query(
            "SELECT (SELECT min(epoch) FROM parts) AS first,"
            " (SELECT max(epoch) FROM parts) AS last,"
            " (SELECT min(triggered_ns) FROM parts) AS oldest_ns,"
            " (SELECT sequence FROM parts ORDER BY epoch, sequence LIMIT 1) AS sequence"
        )
        if found["first"] is None:
            return True
        is_whole = found["first"] == found["last"] and found["sequence"] == 1
        return is_whole and int(found["oldest_ns"]) >= time_ns

    def kinds(self) -> list[str]:
        """All kinds of defect that somebody has named, the most frequent first."""
        found = self.query(
            "SELECT kind FROM parts WHERE kind IS NOT NULL GROUP BY kind"
            " ORDER BY count(*) DESC, kind LIMIT 100"
        )
        return [row["kind"] for row in found]

    def cameras(self) -> list[str]:
        """The names of all cameras that had a part."""
        return [
            row["camera"]
            for row in self.query(
                "WITH RECURSIVE names(camera) AS (SELECT min(camera) FROM parts UNION ALL"
                " SELECT (SELECT min(camera) FROM parts WHERE camera > names.camera) FROM names"
                " WHERE names.camera IS NOT NULL)"
                " SELECT camera FROM names WHERE camera IS NOT NULL"
            )
        ]


def _check_version(version: int) -> None:
    if version not in {0, VERSION}:
        raise sqlite3.DatabaseError(f"is of version {version}")


def _centre(event: Event, box: Box | None) -> dict[str, float | None]:
    """Where the box has its centre in the frame, from 0 to 1."""
    width, height = event.frame_width, event.frame_height
    if box is None or not width or not height:
        return {"across": None, "down": None}
    return {
        "across": (box.left + box.right) / 2 / width,
        "down": (box.top + box.bottom) / 2 / height,
    }


def queues_of(event: Event, near: float) -> int:
    """Why a part is to be looked at, as bits."""
    found = NG if State.NG in {event.state, event.late_state} else 0
    if (
        event.state is State.OK
        and event.score is not None
        and event.threshold is not None
        and event.score > event.threshold - near * abs(event.threshold)
    ):
        found |= DOUBTFUL
    return found | (AUDIT if event.audit is not None else 0)


def score_bin(score: float, threshold: float) -> int:
    """Which of `BINS` a score is in: those from the middle on are above the threshold."""
    middle = BINS // 2
    place = int((score - threshold) / abs(threshold or 1.0) * middle + middle)
    low, high = (middle, BINS - 1) if score > threshold else (0, middle - 1)
    return min(high, max(low, place))


def _where(filters: Filters) -> tuple[list[str], list[object]]:
    where: list[str] = []
    values: list[object] = []

    def add(condition: str, *given: object) -> None:
        where.append(condition)
        values.extend(given)

    if filters.queue in QUEUES:
        add(f"queues & {QUEUES[filters.queue]}")
    if filters.label == "open":
        add("label IS NULL")
    elif filters.label:
        add("label = ?", filters.label)
    for name in ("camera", "state", "part_id"):
        if value := getattr(filters, name):
            add(f"{name} = ?", value)
    for condition, bound in {
        "score >= ?": filters.score_from,
        "score <= ?": filters.score_to,
        "triggered_ns >= ?": filters.from_ns,
        "triggered_ns < ?": filters.to_ns,
    }.items():
        if bound is not None:
            add(condition, bound)
    if filters.before is not None and filters.is_by_score:
        add(
            "(score, n) < ((SELECT score FROM parts WHERE n = ?), ?)",
            filters.before,
            filters.before,
        )
    elif filters.before is not None:
        add("n < ?", filters.before)
    return where, values


def _shown(row: sqlite3.Row) -> Row:
    box = row["box"] and tuple(json.loads(row["box"]))
    return Row(**{**dict(row), "box": box, "has_thumbnail": bool(row["has_thumbnail"])})
