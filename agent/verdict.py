"""A trigger and the one state it ends in."""

from dataclasses import dataclass

from agent.part import State
from engine.frame import Frame, Inspection


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A part has arrived at a camera, which is known by its name.

    `sequence` counts the triggers of this ledger, of all cameras, from 1 and without gaps. Times
    are UTC in nanoseconds since 1970. `deadline_ns` is `None` on lines without one.
    """

    sequence: int
    camera: str
    part_id: str
    triggered_ns: int
    deadline_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """The end of one trigger, with all its evidence.

    `inspection` is there for OK and NG, and for a TIMEOUT whose late result was still found;
    such a TIMEOUT has the state that came too late as `late_state`; `frame` is there wherever there
    was one. `reason` says in one line why a state other than OK and NG.
    """

    trigger: Trigger
    state: State
    decided_ns: int
    threshold: float
    frame: Frame | None = None
    inspection: Inspection | None = None
    reason: str = ""
    late_state: State | None = None
