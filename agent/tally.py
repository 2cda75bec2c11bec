"""What a run counts and times: begun and ended triggers, and how long the stages took."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np

from agent.ledger import Account, Ledger
from agent.messages import CameraHealth, Health
from agent.mqtt import BrokerStatus
from agent.part import State
from agent.requests import Requests
from agent.threshold import Thresholds
from agent.verdict import Trigger, Verdict
from engine.frame import Inspection

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
_PAUSED: Final = "line: inspection is paused by request"
_LETTING_GO: Final = "ledger: is full, and undelivered messages make room; see ledger.max_mb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Troubles:
    """What is wrong just now, one line each; `None` means well. `cameras` has every camera."""

    cameras: Mapping[str, str | None]
    inference: str | None
    broker: str | None
    ledger: str | None
    evidence: str | None
    is_letting_go: bool
    is_paused: bool

    @property
    def others(self) -> tuple[str, ...]:
        """Those that health has no field of their own for."""
        return (
            *([] if self.inference is None else [f"inference: {self.inference}"]),
            *([] if self.evidence is None else [f"evidence: {self.evidence}"]),
            *([_LETTING_GO] if self.is_letting_go else []),
            *([_PAUSED] if self.is_paused else []),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Median and 99th percentile, in milliseconds, of one stage."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run: how its triggers ended and how long things took.

    `backend` is what inspected, such as `openvino cpu int8`. `counts` has every state and sums to
    `triggers`; `cameras` has the counts of each, which sum to `counts`. `alarms` were recorded for
    delivery. Of the outbox's messages (an alarm and its thumbnail are two) the broker took
    `delivered` and `refused` others in this run; `undelivered` wait for the next one. `start_up_s`
    is from the program's start to the first part, `seconds` from there to the last verdict.
    `latencies` are by stage; see `Timing`.
    """

    epoch: str
    backend: str
    triggers: int
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


class Timing:
    """The stages of the newest 10 000 inspected parts, in memory that does not grow.

    `wait` is from the frame's arrival to the start of its inspection, `inspect` the inspection,
    `end_to_end` from the frame's arrival to its verdict. Written by one thread.
    """

    def __init__(self) -> None:
        self._seconds = np.zeros((_KEPT, len(STAGES)))
        self._count = 0

    def add(self, inspection: Inspection, *, wait: float, end_to_end: float) -> None:
        """Note one part; all in seconds."""
        seconds = inspection.stages | {
            "wait": wait,
            "inspect": inspection.seconds,
            "end_to_end": end_to_end,
        }
        self._seconds[self._count % _KEPT] = [seconds.get(stage, 0.0) for stage in STAGES]
        self._count += 1

    def latencies(self, *, newest: int = _KEPT) -> dict[str, Latency]:
        """Each stage over the `newest` parts that went through it; others are left out."""
        count = self._count
        kept = self._seconds[np.arange(max(0, count - min(newest, _KEPT)), count) % _KEPT]
        found = {}
        for index, stage in enumerate(STAGES):
            seconds = kept[:, index]
            seconds = seconds[seconds > 0]  # a pass that was skipped took 0
            if len(seconds):
                p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
                found[stage] = Latency(p50_ms=float(p50), p99_ms=float(p99))
        return found


class Tally:
    """The count of one run over `ledger`.

    `begin` is called by the threads that receive frames, `add` and `health` by the one that
    records verdicts, `summary` after all have ended. `deadlines_s` has every camera, `None` where
    its parts have none. With the last of `parts` the run's `stop` is set. `started` is a
    `perf_counter()`.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        deadlines_s: Mapping[str, float | None],
        parts: int | None,
        stop: threading.Event,
        started: float,
        backend: Callable[[], str],
    ) -> None:
        self.timing: Final = Timing()
        self._ledger = ledger
        self._deadlines_ns = {
            camera: None if seconds is None else round(seconds * 1e9)
            for camera, seconds in deadlines_s.items()
        }
        self._parts = parts
        self._stop = stop
        self._started = started
        self._backend = backend
        self._beginning = threading.Lock()
        self._triggers = 0
        self._counts: Counter[tuple[str, State]] = Counter()
        self._zoomed = 0
        self._first: float | None = None
        self._last = started
        self._rated = (started, 0)

    def begin(self, camera: str, part_id: str, triggered_ns: int) -> Trigger | None:
        """The trigger of a part that has just arrived; `None` where it is one too many."""
        with self._beginning:
            if self._triggers == self._parts:
                return None
            if self._first is None:
                self._first = perf_counter()
            self._triggers += 1
            if self._triggers == self._parts:
                self._stop.set()
        allowed_ns = self._deadlines_ns[camera]
        trigger = Trigger(
            sequence=self._ledger.next_sequence(camera),
            camera=camera,
            part_id=part_id,
            triggered_ns=triggered_ns,
            deadline_ns=None if allowed_ns is None else triggered_ns + allowed_ns,
        )
        self._ledger.expect(trigger)
        return trigger

    def add(self, verdict: Verdict) -> None:
        """Count the end of a trigger."""
        self._counts[verdict.trigger.camera, verdict.state] += 1
        self._zoomed += verdict.inspection is not None and verdict.inspection.zoomed
        self._last = perf_counter()

    def health(
        self,
        broker: BrokerStatus,
        troubles: Troubles,
        requests: Requests,
        thresholds: Thresholds,
    ) -> Health:
        """How the agent is now; the rate is that since the last call."""
        now, ended = perf_counter(), self._counts.total()
        before, ended_before = self._rated
        self._rated = (now, ended)
        recent = self.timing.latencies(newest=500).get("end_to_end")
        return Health(
            uptime_s=now - self._started,
            backend=self._backend(),
            cameras=self._cameras(troubles.cameras),
            parts_per_second=(ended - ended_before) / max(now - before, 1e-9),
            latency_p50_ms=recent.p50_ms if recent else None,
            latency_p99_ms=recent.p99_ms if recent else None,
            threshold=thresholds.in_force,
            calibrated_threshold=thresholds.calibrated,
            waiting=broker.pending,
            delivered=broker.delivered,
            refused=self._ledger.refused,
            lost=self._ledger.lost,
            let_go=self._ledger.let_go,
            broker_trouble=troubles.broker,
            ledger_trouble=troubles.ledger,
            requests=requests.accepted,
            requests_refused=requests.refused,
            other_troubles=troubles.others,
        )

    def _cameras(self, troubles: Mapping[str, str | None]) -> dict[str, CameraHealth]:
        """Every camera of this run, and those whose parts this epoch has from earlier ones."""
        accounts = self._ledger.accounts()
        return {
            camera: CameraHealth(
                triggers=account.triggers,
                counts=account.counts,
                trouble=troubles.get(camera),
                is_removed=camera not in troubles,
            )
            for camera, account in (dict.fromkeys(troubles, Account()) | accounts).items()
        }

    def summary(self, broker: BrokerStatus, *, alarms: int) -> Summary:
        """The whole run; `broker` is how delivery ended."""
        first = self._last if self._first is None else self._first
        seconds = self._last - first
        cameras = {
            camera: {state: self._counts[camera, state] for state in State}
            for camera in self._deadlines_ns
        }
        return Summary(
            epoch=self._ledger.epoch,
            backend=self._backend(),
            triggers=self._triggers,
            counts={state: sum(each[state] for each in cameras.values()) for state in State},
            cameras=cameras,
            zoomed=self._zoomed,
            alarms=alarms,
            delivered=broker.delivered,
            refused=broker.refused,
            undelivered=broker.pending,
            start_up_s=first - self._started,
            seconds=seconds,
            parts_per_second=self._triggers / seconds if seconds else 0.0,
            latencies=self.timing.latencies(),
        )
