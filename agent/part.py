"""A part on its way through the agent: announced, seen, inspected, decided."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from engine.frame import Frame, Inspection

FailSafe = Literal["reject", "pass"]
"""What becomes of a part that nobody has inspected in time: an alarm, or nothing but its count."""


class State(StrEnum):
    """How a trigger ended. The counts of all states sum to the number of triggers."""

    OK = "OK"
    NG = "NG"
    TIMEOUT = "TIMEOUT"
    """The verdict came after the deadline; the part is treated as the fail-safe says."""
    DROPPED = "DROPPED"
    """The part was not inspected: the line was faster than the agent, or inspection is paused."""
    NO_FRAME = "NO_FRAME"
    """The camera gave no frame for this part."""
    ERROR = "ERROR"
    """Inspection failed; never taken for OK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A part has arrived at a camera, which is known by its name.

    `sequence` counts the triggers of this ledger, of all cameras, from 1 and without gaps. `count`
    is the trigger source's own count, where it has one; `number` counts this camera's triggers of
    this run. Times are UTC in nanoseconds since 1970;
    `deadline_ns` is `None` on lines without a deadline.
    """

    sequence: int
    camera: str
    triggered_ns: int
    deadline_ns: int | None = None
    count: int | None = None
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The one state in which a trigger ended.

    `reason` says in one line why a state other than OK and NG. A TIMEOUT whose result was still
    found has the state that came too late as `late_state`. `late_s` is by how much the verdict came
    after the deadline; `None`: in time, or there is none. What is late is never OK, and no NG
    either. `threshold` is NaN where none applied.
    It belongs to the bundle and the calibration of these ids; empty for those of the run's begin.
    """

    state: State
    decided_ns: int
    threshold: float
    reason: str = ""
    late_state: State | None = None
    late_s: float | None = None
    bundle_id: str = ""
    calibration_id: str = ""

    def __post_init__(self) -> None:
        assert self.late_s is None or self.state not in {State.OK, State.NG}, "late is no verdict"


@dataclass(slots=True, kw_only=True, eq=False)
class Part:
    """One part, filled as it goes; one thread has it at a time.

    `received` is `Clock.now()` of the trigger: the deadline counts from there. `part_id` is `None`
    while nobody knows it. `source` identifies the content of the frame also after a restart, where
    the camera knows that. `frame` is there wherever there was one, `inspection` for OK and NG and
    for a late result, `verdict` at the end. `begun` is when a worker took it. `audit` is the chance
    with which the part was drawn for the audit, `None` where it was not. `product` is what it is,
    on a line that makes several; it never changes.
    """

    trigger: Trigger
    received: float
    part_id: str | None = None
    source: str | None = None
    audit: float | None = None
    product: str | None = None
    frame: Frame | None = None
    begun: float | None = None
    inspection: Inspection | None = None
    verdict: Verdict | None = None

    @property
    def camera(self) -> str:
        """The name of the camera that sees the part."""
        return self.trigger.camera

    @property
    def ended(self) -> Verdict:
        """The verdict of a part that has one."""
        assert self.verdict is not None, "asked before the end"
        return self.verdict


def decide(inspection: Inspection, threshold: float) -> State:
    """NG when the score is above the threshold: the threshold itself still passes."""
    return State.NG if inspection.score > threshold else State.OK


def is_alarm(state: State, fail_safe: FailSafe) -> bool:
    """Whether a part that ended so is announced as one that has to be looked after.

    Whatever was not inspected in time, or not at all, is an alarm unless `fail_safe` is `pass`.
    """
    match state:
        case State.OK:
            return False
        case State.NG | State.ERROR:
            return True
        case State.TIMEOUT | State.DROPPED | State.NO_FRAME:
            return fail_safe == "reject"
