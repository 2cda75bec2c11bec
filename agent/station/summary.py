"""What a run came to: how its parts ended, and how long the stages took."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from agent.part import Part, State
from agent.station.status import BOUNDS_S, Histogram

STAGES: Final = (
    "wait",
    "view_1",
    "pass_1",
    "attention",
    "view_2",
    "pass_2",
    "inspect",
    "end_to_end",
)
_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Median and 99th percentile, in milliseconds, of one stage."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run: how its triggers ended and how long things took.

    `backend` is what inspected, such as `openvino cpu int8`. `counts` has every state and sums to
    `triggers`; `cameras` has the counts of each, which sum to `counts`. `inspected` parts have a
    score, `zoomed` of them were looked at twice. `alarms` were recorded for delivery. Of the
    outbox's messages (an alarm and its thumbnail are two) `delivered` were taken and `refused`
    others in this run; `undelivered` wait for the next one. `lost` parts could not be recorded.
    `start_up_s` is from the program's
    start to the first part, `seconds` from there to the last verdict. `latencies` are by stage;
    see `Timing`.
    """

    epoch: str
    backend: str
    triggers: int
    inspected: int
    counts: dict[State, int]
    cameras: dict[str, dict[State, int]]
    zoomed: int
    alarms: int
    delivered: int
    refused: int
    undelivered: int
    start_up_s: float
    seconds: float
    parts_per_second: float
    latencies: dict[str, Latency]
    lost: int = 0


class Timing:
    """How long the stages of inspected parts took, in memory that does not grow.

    `wait` is from the trigger to the start of the inspection, `inspect` the inspection,
    `end_to_end` from the trigger to the verdict. Written by one thread, read by any.
    """

    def __init__(self) -> None:
        self._seconds = np.zeros((_KEPT, len(STAGES)))
        self._count = 0
        self._buckets = np.zeros((len(STAGES), len(BOUNDS_S) + 1), np.int64)
        self._totals = np.zeros(len(STAGES))

    def add(self, part: Part, decided: float) -> None:
        """Note an inspected part that was decided at `decided`."""
        assert part.inspection is not None
        assert part.begun is not None
        times = part.inspection.stages | {
            "wait": part.begun - part.received,
            "inspect": part.inspection.seconds,
            "end_to_end": decided - part.received,
        }
        seconds = np.array([times.get(stage, 0.0) for stage in STAGES])
        self._seconds[self._count % _KEPT] = seconds
        self._count += 1
        taken = seconds > 0  # a pass that was skipped took 0
        buckets = np.searchsorted(BOUNDS_S, seconds)
        self._buckets[np.flatnonzero(taken), buckets[taken]] += 1
        self._totals += seconds

    def histograms(self) -> dict[str, Histogram]:
        """Each stage since the start."""
        return {
            stage: Histogram(counts=tuple(map(int, counts)), total_s=float(total))
            for stage, counts, total in zip(STAGES, self._buckets, self._totals, strict=True)
        }

    def latencies(self) -> dict[str, Latency]:
        """Each stage over the newest 10 000 parts that went through it; others are left out."""
        kept = self._seconds[: min(self._count, _KEPT)]
        found = {}
        for index, stage in enumerate(STAGES):
            seconds = kept[:, index]
            seconds = seconds[seconds > 0]
            if len(seconds):
                p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
                found[stage] = Latency(p50_ms=float(p50), p99_ms=float(p99))
        return found


class Ends:
    """How the parts of this run ended; told by one thread, read by others after it."""

    def __init__(self, cameras: Iterable[str]) -> None:
        self._cameras = tuple(cameras)
        self._counts: Counter[tuple[str, State]] = Counter()
        self.inspected = 0
        self.zoomed = 0

    def add(self, part: Part) -> None:
        """Count the end of a part."""
        self._counts[part.camera, part.ended.state] += 1
        if part.inspection is not None:
            self.inspected += 1
            self.zoomed += part.inspection.zoomed

    @property
    def cameras(self) -> dict[str, dict[State, int]]:
        """Each camera's parts by state."""
        return {
            camera: {state: self._counts[camera, state] for state in State}
            for camera in self._cameras
        }

    @property
    def counts(self) -> dict[State, int]:
        """All parts by state."""
        return summed(self.cameras.values())


def summed(counts: Iterable[Mapping[State, int]]) -> dict[State, int]:
    """The counts of several cameras together."""
    rows = tuple(counts)
    return {state: sum(row.get(state, 0) for row in rows) for state in State}
