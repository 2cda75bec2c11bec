"""What the edge node and its devices tell, as pure functions: status and events in, metrics out.

A birth holds every metric that its session will ever have; data holds those that have changed.
"""

from collections.abc import Mapping
from typing import Final

from agent.part import State
from agent.record.rows import Event, software
from agent.sinks.sparkplug.payload import DataType, Metric, Value
from agent.station.status import CameraStatus, Status

REBIRTH: Final = "Node Control/Rebirth"
Values = Mapping[str, tuple[DataType, Value]]
"""Values and their types, by the names of their metrics."""

_PART: Final = {
    "Part/Id": DataType.STRING,
    "Part/PartId": DataType.STRING,
    "Part/Sequence": DataType.INT64,
    "Part/Count": DataType.INT64,
    "Part/State": DataType.STRING,
    "Part/OK": DataType.BOOLEAN,
    "Part/Reason": DataType.STRING,
    "Part/Score": DataType.DOUBLE,
    "Part/Threshold": DataType.DOUBLE,
    "Part/TriggeredAt": DataType.DATETIME,
    "Part/Milliseconds": DataType.DOUBLE,
}


def node(status: Status) -> Values:
    """What the edge node tells of the agent."""
    lost = sum(last - first + 1 for first, last in status.ledger.lost)
    waiting = sum(sink.pending for sink in status.sinks.values())
    return {
        "Properties/Software": (DataType.STRING, software()),
        "Properties/Bundle": (DataType.STRING, status.bundle_id),
        "Properties/Calibration": (DataType.STRING, status.calibration_id),
        "Properties/Backend": (DataType.STRING, status.backend),
        "Properties/Epoch": (DataType.STRING, status.epoch),
        "Health/Degraded": (DataType.BOOLEAN, status.is_degraded),
        "Health/Reasons": (DataType.STRING, "; ".join(status.faults)),
        "Health/Paused": (DataType.BOOLEAN, status.is_paused),
        "Threshold/InForce": (DataType.DOUBLE, status.threshold),
        "Threshold/Calibrated": (DataType.DOUBLE, status.calibrated_threshold),
        "Delivery/Waiting": (DataType.INT64, waiting),
        "Delivery/Lost": (DataType.INT64, lost),
    }


def camera(status: CameraStatus) -> Values:
    """What a device tells of its camera."""
    return {
        "Camera/Connected": (DataType.BOOLEAN, status.fault is None and not status.is_removed),
        "Camera/Reason": (DataType.STRING, status.fault or ""),
        "Count/Triggers": (DataType.INT64, status.triggers),
        **{f"Count/{state}": (DataType.INT64, status.counts.get(state, 0)) for state in State},
    }


def part(event: Event | None) -> Values:
    """What a device tells of its last part; nulls before the first."""
    if event is None:
        return {name: (datatype, None) for name, datatype in _PART.items()}
    values: tuple[Value, ...] = (
        event.id,
        event.part_id,
        event.sequence,
        event.count,
        event.state.value,
        event.state is State.OK,
        event.reason,
        event.score,
        event.threshold,
        event.triggered_ns // 1_000_000,
        round((event.decided_ns - event.triggered_ns) / 1e6, 3),
    )
    return {
        name: (datatype, value)
        for (name, datatype), value in zip(_PART.items(), values, strict=True)
    }


def at(values: Values, time_ms: int, *, is_historical: bool = False) -> tuple[Metric, ...]:
    """These values as they were at one time."""
    return tuple(
        Metric(
            name=name,
            datatype=datatype,
            value=value,
            time_ms=time_ms,
            is_historical=is_historical,
        )
        for name, (datatype, value) in values.items()
    )


def changed(now: Values, before: Values) -> Values:
    """What is not as it was told before."""
    return {name: value for name, value in now.items() if before.get(name) != value}
