"""What the ledger holds of a part and of its deliveries, independent of any transport.

    Part ── part_row ──▶ PartRow ═▶ table `triggers` ═▶ Event ──▶ sinks, feed

A column is a field of `PartRow`: it is named here and nowhere else.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from agent.part import Part, State, Trigger, Verdict
from engine.frame import Box, FoundRegion, Inspection, Pass

Value = str | int | float | None
Span = tuple[int, int]
"""A range of sequences, first and last inclusive."""
Kind = tuple[str, State]
"""A camera and how parts of it ended."""

THUMBNAIL: Final = "thumbnail"
"""The item that is left out where a part has no picture, and goes first when room is needed."""
THUMBNAIL_MAX_BYTES: Final = 64 * 1024
_LARGEST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRow:
    """The end of one part as it is stored; open until `state` is known.

    `position` counts the ends of this file in the order in which they were recorded. `evidence`
    is JSON: an object with `passes`, and `regions` where the bundle has some.
    """

    sequence: int
    camera: str
    part_id: str | None
    count: int | None
    triggered_ns: int
    deadline_ns: int | None
    source: str | None = None
    position: int | None = None
    state: str | None = None
    decided_ns: int | None = None
    reason: str | None = None
    late_state: str | None = None
    late_s: float | None = None
    threshold: float | None = None
    frame_number: int | None = None
    captured_ns: int | None = None
    frame_width: int | None = None
    frame_height: int | None = None
    device_id: str | None = None
    block_id: int | None = None
    device_ns: int | None = None
    exposure_us: float | None = None
    trigger_count: int | None = None
    score: float | None = None
    deviation: float | None = None
    attention_s: float | None = None
    audit: float | None = None
    product: str | None = None
    evidence: str | None = None
    has_thumbnail: int = 0


COLUMNS: Final = tuple(field.name for field in fields(PartRow))
KEY: Final = frozenset({"sequence", "camera", "triggered_ns", "deadline_ns"})
"""Columns that are known when a part begins and never change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The end of one part, as it was recorded; what every sink and service is told.

    `audit` is the chance with which the part was drawn for the audit; `None`: it was not drawn.
    `position` counts the ends in the order in which they were recorded. Of an inspection there are
    `score` and all below it, else `None` and no passes. `bundle_id`, `calibration_id` and
    `software` are those of the run in which the part began. `has_thumbnail` says whether there was
    a picture when the part was recorded; `thumbnail` has it where it was asked for and still is.
    """

    agent_id: str
    epoch: str
    sequence: int
    position: int
    camera: str
    part_id: str | None
    count: int | None
    triggered_ns: int
    deadline_ns: int | None
    state: State
    decided_ns: int
    reason: str
    late_state: State | None
    late_s: float | None
    threshold: float | None
    frame_number: int | None
    captured_ns: int | None
    frame_width: int | None
    frame_height: int | None
    device_id: str | None
    block_id: int | None
    device_ns: int | None
    exposure_us: float | None
    trigger_count: int | None
    score: float | None
    deviation: float | None
    attention_s: float | None
    passes: tuple[Pass, ...]
    bundle_id: str
    calibration_id: str
    software: str
    regions: tuple[FoundRegion, ...] = ()
    product: str | None = None
    audit: float | None = None
    has_thumbnail: bool = False
    thumbnail: bytes | None = None

    @property
    def id(self) -> str:
        """The id of the part: the same in all that is said of it, and of no other."""
        return part_id(self.agent_id, self.epoch, self.sequence)


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


def part_id(agent_id: str, epoch: str, sequence: int) -> str:
    """The id of a part in all that is said of it: `line-3:5f0c2a9be4d1:1204`."""
    return f"{agent_id}:{epoch}:{sequence}"


def begun_row(part: Part) -> PartRow:
    """A part that has begun and has no end yet."""
    trigger = part.trigger
    return PartRow(
        sequence=trigger.sequence,
        camera=clean(trigger.camera),
        part_id=None if part.part_id is None else clean(part.part_id),
        source=None if part.source is None else clean(part.source),
        count=_bounded(trigger.count),
        triggered_ns=trigger.triggered_ns,
        deadline_ns=trigger.deadline_ns,
        audit=part.audit,
        product=None if part.product is None else clean(part.product),
    )


def ended_row(part: Part, *, has_thumbnail: bool) -> PartRow:
    """A part that has its verdict, without frames and maps, which must not wait in memory."""
    verdict = part.verdict
    assert verdict is not None
    row = replace(
        begun_row(part),
        state=verdict.state.value,
        decided_ns=verdict.decided_ns,
        reason=clean(verdict.reason),
        late_state=None if verdict.late_state is None else verdict.late_state.value,
        late_s=None if verdict.late_s is None else _finite(verdict.late_s),
        threshold=_finite(verdict.threshold),
        has_thumbnail=int(has_thumbnail),
    )
    if (frame := part.frame) is not None:
        height, width = frame.pixels.shape[:2]
        row = replace(
            row,
            frame_number=_bounded(frame.number),
            captured_ns=_bounded(frame.captured_ns),
            frame_width=width,
            frame_height=height,
            device_id=None if frame.device_id is None else clean(frame.device_id),
            block_id=_bounded(frame.block_id),
            device_ns=_bounded(frame.device_ns),
            exposure_us=None if frame.exposure_us is None else _finite(frame.exposure_us),
            trigger_count=_bounded(frame.trigger_count),
        )
    if (found := part.inspection) is not None:
        row = replace(
            row,
            score=float(found.score),
            deviation=float(found.deviation),
            attention_s=float(found.attention_s),
            evidence=_evidence(found),
        )
    return row


def open_part(row: Mapping[str, Any], verdict: Verdict) -> Part:
    """The part of a row that an earlier run has left open, with the verdict that it gets now."""
    trigger = Trigger(
        sequence=row["sequence"],
        camera=row["camera"],
        triggered_ns=row["triggered_ns"],
        deadline_ns=row["deadline_ns"],
        count=row["count"],
    )
    return Part(
        trigger=trigger,
        received=0.0,
        part_id=row["part_id"],
        source=row["source"],
        audit=row["audit"],
        product=row["product"],
        verdict=verdict,
    )


def event_of(row: Mapping[str, Any]) -> Event:
    """The event of a row of `triggers`, with epoch, run and, where it was read, thumbnail."""
    evidence = {} if row["evidence"] is None else json.loads(row["evidence"])
    return Event(
        agent_id=row["agent_id"],
        epoch=row["epoch"],
        sequence=row["sequence"],
        position=row["position"],
        camera=row["camera"],
        part_id=row["part_id"],
        count=row["count"],
        triggered_ns=row["triggered_ns"],
        deadline_ns=row["deadline_ns"],
        state=State(row["state"]),
        decided_ns=row["decided_ns"],
        reason=row["reason"] or "",
        late_state=None if row["late_state"] is None else State(row["late_state"]),
        late_s=row["late_s"],
        threshold=row["threshold"],
        frame_number=row["frame_number"],
        captured_ns=row["captured_ns"],
        frame_width=row["frame_width"],
        frame_height=row["frame_height"],
        device_id=row["device_id"],
        block_id=row["block_id"],
        device_ns=row["device_ns"],
        exposure_us=row["exposure_us"],
        trigger_count=row["trigger_count"],
        score=row["score"],
        deviation=row["deviation"],
        attention_s=row["attention_s"],
        passes=_passes(evidence),
        regions=_regions(evidence),
        bundle_id=row["bundle_id"],
        calibration_id=row["calibration_id"],
        software=row["software"],
        product=row["product"],
        audit=row["audit"],
        has_thumbnail=bool(row["has_thumbnail"]),
        thumbnail=row["jpeg"],
    )


def clean(text: str) -> str:
    """File names may hold what UTF-8 cannot; SQLite and JSON must not choke on a part id."""
    return text.encode(errors="replace").decode()


def utc(time_ns: int) -> str:
    """RFC 3339 in UTC to the millisecond: `2026-11-22T14:05:09.123Z`."""
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns // 1_000_000 % 1000:03d}Z"


@cache
def software() -> str:
    """The name and version of this software."""
    try:
        return f"atac-agent {version('atac-agent')}"
    except PackageNotFoundError:
        return "atac-agent, not installed"


def with_span(ranges: list[Span], first: int, last: int) -> list[Span]:
    """Sorted, disjoint inclusive ranges with `first … last` added and neighbours joined."""
    if ranges and ranges[-1][1] < first - 1:  # the usual case: it is the newest
        return [*ranges, (first, last)]
    before = [span for span in ranges if span[1] < first - 1]
    after = [span for span in ranges if span[0] > last + 1]
    touched = ranges[len(before) : len(ranges) - len(after)]
    joined = (min([first, *(a for a, _ in touched)]), max([last, *(b for _, b in touched)]))
    return [*before, joined, *after]


def _evidence(found: Inspection) -> str:
    passes = [
        {
            "box": _sides(each.box),
            "score": float(each.score),
            "view_s": float(each.view_s),
            "network_s": float(each.network_s),
        }
        for each in found.passes
    ]
    regions = [
        {"name": clean(each.name), "box": _sides(each.box), "score": float(each.score)}
        for each in found.regions
    ]
    evidence = {"passes": passes} | ({"regions": regions} if regions else {})
    return json.dumps(evidence, separators=(",", ":"))


def _sides(box: Box) -> list[int]:
    return [int(side) for side in (box.left, box.top, box.right, box.bottom)]


def _box(sides: Sequence[int]) -> Box:
    return Box(**dict(zip(("left", "top", "right", "bottom"), sides, strict=True)))


def _passes(evidence: Mapping[str, Any]) -> tuple[Pass, ...]:
    return tuple(
        Pass(
            box=_box(each["box"]),
            score=each["score"],
            view_s=each["view_s"],
            network_s=each["network_s"],
        )
        for each in evidence.get("passes", ())
    )


def _regions(evidence: Mapping[str, Any]) -> tuple[FoundRegion, ...]:
    return tuple(
        FoundRegion(name=each["name"], box=_box(each["box"]), score=each["score"])
        for each in evidence.get("regions", ())
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _bounded(value: int | None) -> int | None:
    """SQLite's integers have 64 bits; what a device gives may have more."""
    return None if value is None or not -_LARGEST <= value <= _LARGEST else int(value)
