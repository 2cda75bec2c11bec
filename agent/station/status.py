"""How the agent is now, as one frozen value that any number of readers share.

Counters only grow; rates are the reader's business. A new `Status` is made once a second, and at
once when a fault comes or goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from agent.part import State

BOUNDS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
"""Upper bounds of the buckets of every latency histogram, in seconds; the last bucket is open."""

Span = tuple[int, int]
"""A range of sequences, first and last inclusive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Latencies of one stage since the start: `counts` by bucket (one more than `BOUNDS_S`)."""

    counts: tuple[int, ...]
    total_s: float

    @property
    def count(self) -> int:
        """How many were timed."""
        return sum(self.counts)

    def since(self, earlier: "Histogram") -> "Histogram":
        """What was timed after `earlier`, a reading of the same histogram."""
        pairs = zip(self.counts, earlier.counts, strict=True)
        return Histogram(
            counts=tuple(now - then for now, then in pairs),
            total_s=self.total_s - earlier.total_s,
        )

    def quantile(self, share: float) -> float | None:
        """About which time `share` of all took at most, in seconds; `None` without any.

        Between the bounds of a bucket it is interpolated; in the open one it is its lower bound.
        """
        rank, below = share * self.count, 0
        for count, lower, upper in zip(
            self.counts, (0.0, *BOUNDS_S), (*BOUNDS_S, BOUNDS_S[-1]), strict=True
        ):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below += count
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraStatus:
    """One camera: triggers that have begun and how those that ended did; `fault` is one line.

    `is_removed`: it is no longer configured, but has parts in this epoch. `unexpected_frames`
    came without a trigger and were given to no part. `deadline_s` is from trigger to verdict.
    """

    triggers: int
    counts: Mapping[State, int]
    fault: str | None = None
    is_removed: bool = False
    unexpected_frames: int = 0
    deadline_s: float | None = None
    gives_frames: bool = True
    """Whether the camera itself is well, whatever is wrong with its triggers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkStatus:
    """One sink: deliveries of this run that were taken or refused, and those that wait.

    `requests` and `requests_refused` count what others asked of the agent through it.
    """

    is_connected: bool
    fault: str | None = None
    pending: int = 0
    delivered: int = 0
    refused: int = 0
    requests: int = 0
    requests_refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatus:
    """The ledger: verdicts that could not be kept, and deliveries discarded to make room."""

    fault: str | None = None
    lost: tuple[Span, ...] = ()
    discarded: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    is_discarding: bool = False


FleetState = Literal[
    "waiting",
    "stopped",
    "pulling",
    "calibrating",
    "shadowing",
    "on trial",
    "in force",
    "refused",
    "rolled back",
]
"""How far the agent is with its desired state; docs/fleet.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The promise of the threshold that was set for a bundle on this line, and when."""

    max_false_reject: float
    confidence: float
    is_proved: bool
    calibrated_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredStatus:
    """One desired `bundle`, the `serial` of the state that named it, and what became of it.

    Of `judged` kept frames the bundle gives `changed_verdicts` another verdict than they had.
    `reason` says why the state is what it is.
    """

    state: FleetState = "waiting"
    serial: int | None = None
    bundle: str | None = None
    reason: str | None = None
    judged: int | None = None
    changed_verdicts: int | None = None
    promise: Promise | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus(DesiredStatus):
    """What became of the desired state of this agent.

    On a line with products each of them has a status of its own, and the line's is the worst of
    them: with their frames together, the weakest of their promises, and no bundle.
    """

    products: Mapping[str, DesiredStatus] = field(default_factory=dict)


def place_name(product: str, camera: str | None) -> str:
    """What the bundle of a product is called, or that of a camera with one of its own for it."""
    return product if camera is None else f"{product} at {camera}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductStatus:
    """What inspects a product, and how its parts have ended in this run."""

    bundle_id: str
    counts: Mapping[State, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The running agent at `time_ns` (UTC). `faults` has one line for each thing that is wrong."""

    time_ns: int
    uptime_s: float
    agent_id: str
    epoch: str
    bundle_id: str
    calibration_id: str
    backend: str
    threshold: float
    calibrated_threshold: float
    cameras: Mapping[str, CameraStatus]
    latencies: Mapping[str, Histogram]
    sinks: Mapping[str, SinkStatus]
    ledger: LedgerStatus
    faults: tuple[str, ...] = ()
    is_paused: bool = False
    product: str | None = None
    """What the next part is, on a line that makes several products."""
    products: Mapping[str, ProductStatus] = field(default_factory=dict)
    """All of its bundles, by `place_name`."""
    is_last: bool = False
    """The run has ended: there is no later status, and it should be told at once."""
    in_hand_s: float = 0.0
    """For how long the oldest part has been in a worker's hand."""
    ended_threads: tuple[str, ...] = ()
    """Threads that have ended although the agent runs, by their names."""
    watches: Mapping[str, str | None] = field(default_factory=dict)
    """What watches the parts over time, such as `drift`, and the fault that it has found."""
    fleet: FleetStatus | None = None
    """What became of the desired state; `None`: the agent is in no fleet."""

    @property
    def is_degraded(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.faults)

    @property
    def ended(self) -> int:
        """Triggers of this epoch that have ended, of all cameras."""
        return sum(sum(camera.counts.values()) for camera in self.cameras.values())

    def makes_progress(self, *, age_s: float, limit_s: float) -> bool:
        """Whether nothing has hung for `limit_s` and no thread has ended; `age_s` old is this."""
        # A status is made once a second, so it may be that old.
        in_hand_s = self.in_hand_s + age_s if self.in_hand_s else 0.0
        return in_hand_s < limit_s and age_s < 1.5 + limit_s and not self.ended_threads
