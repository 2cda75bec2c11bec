"""The report of a shift, a day or a week: what was made, what was rejected, who changed what.

It reads the ledger of an agent that is stopped, or the history of the page of one that runs. Times
are those of this machine's zone.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final, Protocol

from agent.golden import Kept
from agent.part import State
from agent.record.annotations import Audited, parted_label
from agent.record.evidence_files import local
from engine.frame import Pixels
from engine.pages.rendering import render

WORST: Final = 12
HOUR_NS: Final = 3_600_000_000_000
ROWS: Final = ("top", "middle", "bottom")
COLUMNS: Final = ("left", "centre", "right")

Hourly = Mapping[tuple[int, str, State], int]
"""Parts by the UTC hour of their trigger, camera and state."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Worst:
    """One of the parts with the highest scores; `picture` where its frame was kept."""

    epoch: str
    sequence: int
    camera: str
    part_id: str | None
    triggered_ns: int
    state: State
    score: float
    threshold: float
    label: str | None
    picture: Pixels | None = None


class Source(Protocol):
    """Where a report's figures come from; times are UTC in nanoseconds, the last one excluded."""

    def hourly(self, from_ns: int, to_ns: int) -> Hourly: ...
    def positions(self, from_ns: int, to_ns: int) -> Iterable[tuple[str, float, float]]:
        """Where NG parts had their box: camera, and its centre from 0 to 1 across and down."""
        ...

    def said(self, from_ns: int, to_ns: int) -> Mapping[str, int]:
        """The newest labels of NG parts, as they were given; of those without one: empty."""
        ...

    def worst(self, from_ns: int, to_ns: int, most: int) -> list[Worst]: ...
    def changes(self, from_ns: int, to_ns: int) -> list[Audited]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """What happened from `from_ns` to `to_ns`."""

    agent_id: str
    from_ns: int
    to_ns: int
    hourly: Hourly
    positions: Mapping[str, Sequence[Sequence[int]]]
    """By camera, how many NG parts had their box where: three rows of three."""
    said: Mapping[str, int]
    """NG parts by what people said of them: the label, or no text."""
    worst: Sequence[Worst]
    changes: Sequence[Audited]
    checks: Sequence[Kept]

    @property
    def cameras(self) -> list[str]:
        """All that had a part."""
        return sorted({camera for _, camera, _ in self.hourly})

    def counts(self, camera: str | None = None) -> Counter[State]:
        """How parts ended, of one camera or of all."""
        counts: Counter[State] = Counter()
        for (_, name, state), parts in self.hourly.items():
            if camera in {None, name}:
                counts[state] += parts
        return counts

    def total(self, camera: str | None = None) -> int:
        """How many parts there were."""
        return self.counts(camera).total()

    def part_yield(self, camera: str | None = None) -> float | None:
        """OK parts of all parts."""
        total = self.total(camera)
        return self.counts(camera)[State.OK] / total if total else None

    @property
    def kinds(self) -> list[tuple[str, int]]:
        """NG parts by the kind of defect that people named, the most frequent first."""
        kinds: Counter[str] = Counter()
        for label, parts in self.said.items():
            if (kind := parted_label(label)[1]) != "":
                kinds[kind] += parts
        return kinds.most_common()

    @property
    def others(self) -> dict[str, int]:
        """NG parts without a kind, by label; `""`: those that nobody has judged."""
        return {label: parts for label, parts in self.said.items() if not parted_label(label)[1]}

    @property
    def span(self) -> str:
        """From when to when, in local time."""
        first, last = local(self.from_ns), local(self.to_ns)
        return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} {last:%Z}"


def gather(
    source: Source, checks: Iterable[Kept], *, agent_id: str, from_ns: int, to_ns: int
) -> Report:
    """Make the report of a span of time.

    Args:
        source: Where the figures come from.
        checks: All checks with golden samples that are known.
        agent_id: Whose line it is.
        from_ns: UTC.
        to_ns: UTC; what is of this moment or later is left out.
    """
    grids: dict[str, list[list[int]]] = {}
    for camera, across, down in source.positions(from_ns, to_ns):
        grid = grids.setdefault(camera, [[0] * 3 for _ in range(3)])
        grid[min(2, int(3 * down))][min(2, int(3 * across))] += 1
    return Report(
        agent_id=agent_id,
        from_ns=from_ns,
        to_ns=to_ns,
        hourly=source.hourly(from_ns, to_ns),
        positions=grids,
        said=source.said(from_ns, to_ns),
        worst=source.worst(from_ns, to_ns, WORST),
        changes=source.changes(from_ns, to_ns),
        checks=[one for one in checks if from_ns <= one.protocol.at_ns < to_ns],
    )


def moment_ns(text: str, *, is_end: bool = False) -> int:
    """`2026-11-27` or `2026-11-27 06:00`, in local time; as an end a day alone is all of it.

    Raises `ValueError` for another form.
    """
    moment = datetime.fromisoformat(text)
    if is_end and len(text.strip()) <= len("2026-11-27") and moment.time() == time():
        moment += timedelta(days=1)
    return round(moment.astimezone().timestamp() * 1e9)


def as_csv(report: Report) -> str:
    """Parts by local hour, camera and state, a line each."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["hour", "camera", *(state.value for state in State), "yield"])
    for hour, camera in sorted({(hour, camera) for hour, camera, _ in report.hourly}):
        parts = [report.hourly.get((hour, camera, state), 0) for state in State]
        share = f"{parts[0] / sum(parts):.4f}" if sum(parts) else ""
        moment = local(hour * HOUR_NS)
        table.writerow([f"{moment:%Y-%m-%d %H:%M%z}", _plain(camera), *parts, share])
    return text.getvalue()


def as_html(report: Report) -> bytes:
    """One page that needs no other file, and can be printed."""
    return render(
        "production.html.j2",
        title=f"{report.agent_id}: {report.span}",
        report=report,
        states=list(State),
        local=local,
        rows=ROWS,
        columns=COLUMNS,
    )


def _plain(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
