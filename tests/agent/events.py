"""Events of one's own choice, for those who read the feed."""

from dataclasses import replace

from agent.part import Part, State, Trigger, Verdict
from agent.record.rows import Event, ended_row, event_of

_RUN = {"agent_id": "line-3", "bundle_id": "b", "calibration_id": "c", "software": "s"}
_PART = Part(
    trigger=Trigger(sequence=1, camera="main", triggered_ns=1),
    received=0.0,
    verdict=Verdict(state=State.OK, decided_ns=2, threshold=0.5),
)
_ROW = {
    name: getattr(ended_row(_PART, has_thumbnail=False), name)
    for name in ended_row(_PART, has_thumbnail=False).__slots__
}
OK = event_of({**_ROW, **_RUN, "epoch": "0123456789ab", "position": 1, "jpeg": None})


def event(**changes: object) -> Event:
    """A part that passed, but for `changes`."""
    return replace(OK, **changes)
