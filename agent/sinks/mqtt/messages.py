"""What the agent says over MQTT, as pure functions: events and status in, messages out.

Topics come from one template, by default `atac/{agent}/{what}`:

    state       retained `online` or `offline`; the broker says `offline` when the agent dies
    health      every few seconds: counts, rates, what is wrong
    fleet       retained: what became of the desired state, where the agent follows one
    alarm       every part that has to be looked after, as JSON
    thumbnail   the JPEG of an alarm, matched by its id
    verdict     every part, as JSON; only where the configuration asks for it
    request     what others ask of the agent; the answers come on `response` or below it

A message is encoded when it is sent. Its bytes come from the part's row alone, so that every copy
of it is the same. The JSON is described by `agent/schemas/*.schema.json` and `docs/asyncapi.yaml`.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

from agent.mqtt.message import Message
from agent.part import State
from agent.record.rows import THUMBNAIL_MAX_BYTES, Delivery, Event, Span, software, utc
from agent.sinks.mqtt.settings import TOPIC_TEMPLATE
from agent.station.status import Status
from engine.frame import Box, FoundRegion, Pass
from engine.picture import with_comment

What = Literal["state", "health", "fleet", "alarm", "thumbnail", "verdict", "request", "response"]
_RANGES: Final = 100
_DISCARDED: Final = ("picture", "message")
_RESENT: Final = ("resent", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """The topics of one agent."""

    agent_id: str
    template: str = TOPIC_TEMPLATE

    def of(self, what: What) -> str:
        """The topic of one kind of message."""
        return self.template.format(agent=self.agent_id, what=what)


def delivered(topics: Topics, delivery: Delivery, event: Event) -> Message:
    """The message of a delivery; raises `ValueError` where there can be none."""
    match delivery.item:
        case "alarm":
            message = alarm(topics, event)
        case "thumbnail":
            message = thumbnail(topics, event)
        case "verdict":
            message = verdict(topics, event)
        case other:
            raise ValueError(f"MQTT has no message for {other!r}")
    properties = (*message.properties, ("previous", str(delivery.previous)))
    if delivery.is_resent:
        properties = (*properties, _RESENT)
    return replace(message, properties=properties)


def alarm(topics: Topics, event: Event) -> Message:
    """The alarm of a part."""
    content = _part(event)
    content["thumbnail_topic"] = topics.of("thumbnail") if event.has_thumbnail else None
    return _json(topics.of("alarm"), content)


def verdict(topics: Topics, event: Event) -> Message:
    """The verdict of any part."""
    return _json(topics.of("verdict"), _part(event))


def thumbnail(topics: Topics, event: Event) -> Message:
    """The thumbnail of an alarm: the JPEG with the alarm's id in it.

    The id is a JPEG comment, readable on any MQTT version, and the user property `id`.
    """
    if event.thumbnail is None:
        raise ValueError("there is no picture")
    payload = with_comment(event.thumbnail, event.id)
    if len(payload) > THUMBNAIL_MAX_BYTES:
        raise ValueError(f"a thumbnail of {len(payload)} bytes; {THUMBNAIL_MAX_BYTES} are allowed")
    return Message(
        topic=topics.of("thumbnail"),
        payload=payload,
        content_type="image/jpeg",
        properties=(("id", event.id),),
    )


def state(topics: Topics, *, online: bool) -> Message:
    """The retained presence message; the offline one is also the last will."""
    return Message(
        topic=topics.of("state"),
        payload=b"online" if online else b"offline",
        retain=True,
        content_type="text/plain",
    )


def health(topics: Topics, sink: str, now: Status, before: Status | None = None) -> Message:
    """How the agent is.

    Args:
        topics: Where to say it.
        sink: The name of this sink in the status.
        now: How the agent is.
        before: What was said last: rates and latencies are of the time since then.
    """
    delivery = now.sinks[sink]
    named = {"broker": delivery.fault, "ledger": now.ledger.fault}
    counts = sum((Counter(each.counts) for each in now.cameras.values()), Counter[State]())
    triggers = sum(each.triggers for each in now.cameras.values())
    content = {
        "agent": now.agent_id,
        "epoch": now.epoch,
        "time": utc(now.time_ns),
        "software": software(),
        "bundle_id": now.bundle_id or None,
        "calibration_id": now.calibration_id or None,
        "backend": now.backend or None,
        "product": now.product,
        "uptime_s": round(now.uptime_s, 3),
        **_accounted(triggers, counts),
        "parts_per_second": round(_rate(now, before), 3),
        "latency_ms": _recent_latency(now, before),
        "threshold": {"in_force": now.threshold, "calibrated": now.calibrated_threshold},
        "outbox": {
            "waiting": delivery.pending,
            "delivered": delivery.delivered,
            "refused": delivery.refused,
        },
        "requests": {"accepted": delivery.requests, "refused": delivery.requests_refused},
        "lost": _ranges(now.ledger.lost),
        "discarded": {kind: _ranges(now.ledger.discarded.get(kind, ())) for kind in _DISCARDED},
        "cameras": [
            {
                "name": name,
                **_condition(each.fault, is_removed=each.is_removed),
                **_accounted(each.triggers, each.counts),
                "unexpected_frames": each.unexpected_frames,
            }
            for name, each in now.cameras.items()
        ],
        **{name: _condition(fault) for name, fault in named.items()},
        "fleet": None if now.fleet is None else asdict(now.fleet),
        "degraded": now.is_degraded,
        "reasons": list(now.faults),
    }
    return _json(topics.of("health"), content)


def fleet(topics: Topics, now: Status) -> Message:
    """The retained message of an agent that follows a desired state; it holds until the next."""
    content: dict[str, object] = {
        "agent": now.agent_id,
        "time": utc(now.time_ns),
        "software": software(),
        "bundle_id": None if now.products else now.bundle_id or None,
        "bundles": {name: one.bundle_id for name, one in now.products.items()},
        "fleet": None if now.fleet is None else asdict(now.fleet),
    }
    return replace(_json(topics.of("fleet"), content), retain=True)


def response(
    topics: Topics, *, epoch: str, now_ns: int, about: "Message", answer: Mapping[str, object]
) -> Message:
    """The answer to a request; `about` has its response topic and correlation data.

    Args:
        topics: Whose answer it is.
        epoch: The epoch of now.
        now_ns: The time of now.
        about: A message with the response's topic and the request's correlation data.
        answer: What was asked and what came of it.
    """
    head = {"agent": topics.agent_id, "epoch": epoch, "time": utc(now_ns)}
    return replace(_json(about.topic, {**head, **answer}), correlation=about.correlation)


def _part(event: Event) -> dict[str, object]:
    return {
        "id": event.id,
        "agent": event.agent_id,
        "epoch": event.epoch,
        "sequence": event.sequence,
        "camera": event.camera,
        "part_id": event.part_id,
        "product": event.product,
        "count": event.count,
        "time": utc(event.decided_ns),
        "triggered_at": utc(event.triggered_ns),
        "state": event.state.value,
        "reason": event.reason or None,
        "late_state": event.late_state,
        "late_ms": None if event.late_s is None else round(event.late_s * 1e3, 3),
        "score": event.score,
        "deviation": event.deviation,
        "threshold": event.threshold,
        "passes": [_pass(each) for each in event.passes],
        "regions": [_region(each, event) for each in event.regions],
        "frame": _frame(event),
        "latency_ms": _latency(event),
        "bundle_id": event.bundle_id or None,
        "calibration_id": event.calibration_id or None,
        "software": event.software,
    }


def _pass(one: Pass) -> dict[str, object]:
    return {
        "score": one.score,
        "box": _box(one.box),
        "view_ms": round(one.view_s * 1e3, 3),
        "network_ms": round(one.network_s * 1e3, 3),
    }


def _region(one: FoundRegion, event: Event) -> dict[str, object]:
    is_above = event.threshold is not None and one.score > event.threshold
    return {
        "name": one.name,
        "box": _box(one.box),
        "score": one.score,
        "state": (State.NG if is_above else State.OK).value,
    }


def _frame(event: Event) -> dict[str, object] | None:
    if event.frame_number is None or event.captured_ns is None:
        return None
    return {
        "number": event.frame_number,
        "captured_at": utc(event.captured_ns),
        "width": event.frame_width,
        "height": event.frame_height,
        "device_id": event.device_id,
        "block_id": event.block_id,
        # In microseconds, as a JSON number of nanoseconds would not be exact everywhere.
        "device_us": None if event.device_ns is None else event.device_ns // 1000,
        "exposure_us": event.exposure_us,
        "trigger_count": event.trigger_count,
    }


def _latency(event: Event) -> dict[str, float | None]:
    """Milliseconds by a steady clock, which nobody sets."""
    total = attention = None
    if event.attention_s is not None:
        attention = round(event.attention_s * 1e3, 3)
        passes = sum(each.view_s + each.network_s for each in event.passes)
        total = round((passes + event.attention_s) * 1e3, 3)
    return {
        "trigger_to_verdict": round((event.decided_ns - event.triggered_ns) / 1e6, 3),
        "attention": attention,
        "inspection": total,
    }


def _rate(now: Status, before: Status | None) -> float:
    elapsed_s = now.uptime_s - (before.uptime_s if before else 0.0)
    ended = now.ended - before.ended if before else 0
    return ended / elapsed_s if elapsed_s > 0 else 0.0


def _recent_latency(now: Status, before: Status | None) -> dict[str, float | None]:
    recent = now.latencies.get("end_to_end")
    if recent is not None and before is not None and "end_to_end" in before.latencies:
        recent = recent.since(before.latencies["end_to_end"])
    found = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        seconds = recent.quantile(share) if recent is not None else None
        found[name] = None if seconds is None else round(seconds * 1e3, 3)
    return found


def _accounted(triggers: int, counts: Mapping[State, int]) -> dict[str, object]:
    return {
        "triggers": triggers,
        "open": triggers - sum(counts.values()),
        "counts": {state.value: counts.get(state, 0) for state in State},
    }


def _condition(fault: str | None, *, is_removed: bool = False) -> dict[str, object]:
    well = "removed" if is_removed else "ok"
    return {"status": well if fault is None else "fault", "reason": fault}


def _ranges(spans: tuple[Span, ...]) -> dict[str, object]:
    """How many sequences, and the newest of their ranges: a message has no room for all."""
    return {
        "count": sum(last - first + 1 for first, last in spans),
        "ranges": [{"first": first, "last": last} for first, last in spans[-_RANGES:]],
    }


def _box(box: Box) -> dict[str, int]:
    return {"left": box.left, "top": box.top, "right": box.right, "bottom": box.bottom}


def _json(topic: str, content: dict[str, object]) -> Message:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    identity = content.get("id")
    return Message(
        topic=topic,
        payload=text.encode(errors="replace"),
        properties=(("id", str(identity)),) if identity else (),
    )
