"""Statuses of one's own choice, for those who read them."""

from dataclasses import replace

from agent.part import State
from agent.station.status import BOUNDS_S, CameraStatus, Histogram, LedgerStatus, Status
from agent.station.summary import STAGES

NO_TIMES = Histogram(counts=(0,) * (len(BOUNDS_S) + 1), total_s=0.0)
WELL = Status(
    time_ns=1_800_000_000_000_000_000,
    uptime_s=60.0,
    agent_id="line-3",
    epoch="0123456789ab",
    bundle_id="b" * 64,
    calibration_id="c" * 64,
    backend="onnxruntime cpu fp32",
    threshold=2.0,
    calibrated_threshold=2.0,
    cameras={"main": CameraStatus(triggers=0, counts=dict.fromkeys(State, 0))},
    latencies=dict.fromkeys(STAGES, NO_TIMES),
    sinks={},
    ledger=LedgerStatus(),
)


def status(**changes: object) -> Status:
    """An agent that is well and has had no part yet, but for `changes`."""
    return replace(WELL, **changes)


def camera_status(**counts: int) -> CameraStatus:
    """A camera whose parts have all ended, so many in each state."""
    return CameraStatus(
        triggers=sum(counts.values()), counts={state: counts.get(state, 0) for state in State}
    )


class Newest:
    """What services read: the `latest` status, `age` seconds old."""

    def __init__(self, latest: Status) -> None:
        self.latest = latest
        self.age = 0.0

    def status(self) -> Status:
        return self.latest

    def age_s(self) -> float:
        return self.age

    def newer(self, than: Status | None, timeout_s: float) -> Status | None:
        return None if self.latest is than else self.latest
