"""What the ledger holds of a part and of its deliveries, independent of any transport."""

from dataclasses import dataclass

from agent.part import State
from engine.frame import Box


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRow:
    """One pass over a frame: the box it saw, its score, and the seconds of view and network."""

    box: Box
    score: float
    view_s: float
    network_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The end of one part, as it was recorded; what every sink and service is told.

    Of an inspection there are `score` and all below it, else `None` and no passes. `bundle_id`
    and `calibration_id` are those of the run that inspected it.
    """

    agent_id: str
    epoch: str
    sequence: int
    camera: str
    part_id: str | None
    count: int | None
    triggered_ns: int
    deadline_ns: int | None
    state: State
    decided_ns: int
    reason: str
    late_state: State | None
    threshold: float | None
    frame_number: int | None
    captured_ns: int | None
    frame_width: int | None
    frame_height: int | None
    score: float | None
    deviation: float | None
    attention_s: float | None
    passes: tuple[PassRow, ...]
    bundle_id: str
    calibration_id: str
    software: str
    thumbnail: bytes | None = None

    @property
    def id(self) -> str:
        """The id of the part: the same in all that is said of it, and of no other."""
        return f"{self.agent_id}:{self.epoch}:{self.sequence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One item of an event that waits for a sink; ids grow in the order of recording.

    `previous` is the sequence of the part before, of the same sink and item, 0 for the first: a
    receiver that does not know it has missed one. `is_resent`: it may have come before.
    """

    id: int
    sink: str
    item: str
    epoch: str
    sequence: int
    previous: int
    is_resent: bool = False
