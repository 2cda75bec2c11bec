"""Figures over time from the page's history, for reports, the threshold and drift.

Whole hours come from their sums, the rest by the index of times; nothing is counted part by part
over a week.
"""

import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

from agent.child import AgentEnd, RefusedError
from agent.part import State
from agent.production import Hourly, Worst
from agent.record.annotations import Audited
from agent.services.page.history import BINS, HOUR_NS, Filters, History, Row, score_bin
from agent.station.status import BOUNDS_S
from engine.errors import ImageError
from engine.frame import Pixels
from engine.image import decode_image
from engine.picture import reduced

DAY_NS: Final = 24 * HOUR_NS
_MOST_SHOWN: Final = 60
_SIDE: Final = 320
_BETWEEN: Final = "triggered_ns >= ? AND triggered_ns < ?"


class Asked(Protocol):
    """What answers questions: the page's history, or its file."""

    def query(self, sql: str, *values: object) -> list[sqlite3.Row]: ...


class HistoryFile:
    """The history of a page that runs in another process; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        self._file.row_factory = sqlite3.Row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def query(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a question."""
        return self._file.execute(sql, values).fetchall()


class HistorySource:
    """The figures of a report; `changes` come from the agent's ledger, pictures from `frame`."""

    def __init__(
        self,
        history: Asked,
        agent: AgentEnd | None,
        frame: Callable[[str, int], bytes | None] | None = None,
    ) -> None:
        self._history = history
        self._agent = agent
        self._frame = frame

    def hourly(self, from_ns: int, to_ns: int) -> Hourly:
        """Parts by the UTC hour of their trigger, camera and state."""
        first, last = -(-from_ns // HOUR_NS), to_ns // HOUR_NS
        found: Counter[tuple[int, str, State]] = Counter()
        for row in self._history.query(
            "SELECT hour, camera, state, parts FROM hours WHERE hour >= ? AND hour < ?", first, last
        ):
            found[row["hour"], row["camera"], State(row["state"])] += row["parts"]
        edges = [(from_ns, min(to_ns, first * HOUR_NS)), (max(from_ns, last * HOUR_NS), to_ns)]
        for begin, end in edges if first <= last else [(from_ns, to_ns)]:
            for row in self._history.query(
                f"SELECT triggered_ns / {HOUR_NS} AS hour, camera, state, count(*) AS parts"  # noqa: S608 (our own words)
                f" FROM parts WHERE {_BETWEEN} GROUP BY 1, 2, 3",
                begin,
                end,
            ):
                found[row["hour"], row["camera"], State(row["state"])] += row["parts"]
        return found

    def positions(self, from_ns: int, to_ns: int) -> Iterator[tuple[str, float, float]]:
        """Where NG parts had their box: camera, and its centre from 0 to 1 across and down."""
        for row in self._history.query(
            "SELECT camera, across, down FROM parts WHERE state = 'NG' AND across IS NOT NULL"  # noqa: S608 (our own words)
            f" AND {_BETWEEN}",
            from_ns,
            to_ns,
        ):
            yield row["camera"], row["across"], row["down"]

    def said(self, from_ns: int, to_ns: int) -> dict[str, int]:
        """The newest labels of NG parts, as they were given."""
        rows = self._history.query(
            "SELECT coalesce(label || coalesce(': ' || kind, ''), '') AS said, count(*) AS parts"  # noqa: S608 (our own words)
            f" FROM parts WHERE {_BETWEEN} AND state = 'NG' GROUP BY 1",
            from_ns,
            to_ns,
        )
        return {row["said"]: row["parts"] for row in rows}

    def worst(self, from_ns: int, to_ns: int, most: int) -> list[Worst]:
        """The parts with the highest scores."""
        rows = self._history.query(
            "SELECT epoch, sequence, camera, part_id, triggered_ns, state, score, threshold, label"  # noqa: S608 (our own words)
            f" FROM parts INDEXED BY by_score WHERE {_BETWEEN} AND score IS NOT NULL"
            " AND threshold IS NOT NULL"
            " ORDER BY score DESC LIMIT ?",
            from_ns,
            to_ns,
            most,
        )
        return [
            Worst(
                **{**dict(row), "state": State(row["state"])},
                picture=self._picture(row["epoch"], row["sequence"]),
            )
            for row in rows
        ]

    def _picture(self, epoch: str, sequence: int) -> Pixels | None:
        data = None if self._frame is None else self._frame(epoch, sequence)
        if data is None:
            return None
        with suppress(ImageError):
            return reduced(decode_image(data, source="evidence"), _SIDE)
        return None

    def changes(self, from_ns: int, to_ns: int) -> list[Audited]:
        """The audit log of that time."""
        if self._agent is None:
            return []
        return [one for one in changes(self._agent, from_ns) if one.changed_ns < to_ns]


def changes(agent: AgentEnd, since_ns: int) -> list[Audited]:
    """The agent's audit log from a time on; empty where it cannot be read now."""
    try:
        found, _ = agent.ask("changes", since_ns=since_ns)
    except RefusedError:
        return []
    assert isinstance(found, list)
    return [Audited(**one) for one in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Parts whose verdict another threshold would change: the first of them, and all counted."""

    rows: tuple[Row, ...]
    count: int
    labels: Mapping[str, int]
    """How many of all were labelled so."""


def flips(history: History, threshold: float, since_ns: int, *, to: State) -> Flips:
    """The parts since then that would be `to` with `threshold`."""
    is_lower = to is State.OK
    was = State.NG if is_lower else State.OK
    # Rejected parts are few; of the others only those above the threshold are looked at.
    index, which = ("by_state", "score <= ?") if is_lower else ("by_score", "score > ?")
    where = f"INDEXED BY {index} WHERE state = ? AND {which} AND triggered_ns >= ?"
    values = (was.value, threshold, since_ns)
    labels = Counter[str]()
    for row in history.query(
        f"SELECT label, count(*) AS parts FROM parts {where} GROUP BY label",  # noqa: S608 (our own words)
        *values,
    ):
        labels[row["label"] or "open"] += row["parts"]
    filters = Filters(
        state=was.value,
        from_ns=since_ns,
        score_to=threshold if is_lower else None,
        score_from=None if is_lower else threshold,
    )
    found = history.parts(filters, _MOST_SHOWN)
    rows = [row for row in found if is_lower or row.score != threshold]
    return Flips(rows=tuple(rows), count=labels.total(), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a chart: its `height` from 0 to 1, and what it means in words."""

    height: float
    says: str
    label: str = ""
    kind: str = "ok"


def score_bars(
    history: History, calibration: Mapping[str, Any], since_ns: int
) -> list[tuple[Bar, Bar]]:
    """For each bin of scores the share of the calibration's good parts and of the line's parts."""
    threshold = calibration["threshold"]
    before = Counter(score_bin(score, threshold) for score in calibration["good_scores"])
    now: Counter[int] = Counter()
    for row in history.query(
        "SELECT bin, sum(parts) AS parts FROM scores WHERE hour >= ? GROUP BY bin",
        since_ns // HOUR_NS,
    ):
        now[row["bin"]] += row["parts"]
    highest = max(
        [
            *(n / max(1, before.total()) for n in before.values()),
            *(n / max(1, now.total()) for n in now.values()),
            1e-9,
        ]
    )

    def bar(counts: Counter[int], place: int, kind: str) -> Bar:
        share = counts[place] / max(1, counts.total())
        return Bar(height=share / highest, says=f"{counts[place]}", kind=kind)

    return [
        (bar(before, place, "soft"), bar(now, place, "ok" if place < BINS // 2 else "ng"))
        for place in range(BINS)
    ]


def p99_s(history: History, from_hour: int, to_hour: int) -> float | None:
    """About the time that 99 of 100 parts took at most, from trigger to verdict."""
    counts = [0] * (len(BOUNDS_S) + 1)
    for row in history.query(
        "SELECT bucket, sum(parts) AS parts FROM latencies WHERE hour >= ? AND hour < ?"
        " GROUP BY bucket",
        from_hour,
        to_hour,
    ):
        counts[row["bucket"]] += row["parts"]
    rank, below = math.ceil(0.99 * sum(counts)), 0
    for count, bound in zip(counts, (*BOUNDS_S, BOUNDS_S[-1]), strict=True):
        below += count
        if count and below >= rank:
            return bound
    return None


def number(text: str) -> float | None:
    """A finite number that somebody has written; a comma may stand for the point."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
