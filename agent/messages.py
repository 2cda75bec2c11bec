"""What the agent says over MQTT, as pure functions: verdicts in, messages out.

Topics come from one template, by default `atac/{agent}/{what}`:

    state       retained `online` or `offline`; the broker says `offline` when the agent dies
    health      every few seconds: counts, rates, what is in trouble
    alarm       every part that did not end OK, as JSON
    thumbnail   the JPEG of an alarm, matched by its id
    verdict     every part, as JSON; only where the configuration asks for it
    request     what others ask of the agent; the answers come on `response` or below it

The JSON is described by `agent/schemas/*.schema.json` and `docs/asyncapi.yaml`.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal, get_args

from agent.part import State
from agent.sinks.mqtt.settings import TOPIC_TEMPLATE
from agent.verdict import Verdict
from engine.frame import Box, Frame, Inspection

What = Literal["state", "health", "alarm", "thumbnail", "verdict", "request", "response"]
LetGo = Literal["picture", "message"]
"""What of a part was removed before the broker had it."""
THUMBNAIL_MAX_BYTES: Final = 64 * 1024
_JPEG_START: Final = b"\xff\xd8"
_JPEG_COMMENT: Final = b"\xff\xfe"
_RANGES: Final = 100
_RESENT: Final = ("resent", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One MQTT publication.

    `properties` are user properties; they and the last two, of requests and their responses, are
    sent on MQTT v5 only.
    """

    topic: str
    payload: bytes
    qos: Literal[0, 1] = 1
    retain: bool = False
    content_type: str = "application/json"
    properties: tuple[tuple[str, str], ...] = ()
    response_topic: str = ""
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who speaks and with which model: the same in every message of one run.

    `epoch` is the ledger's; an empty `bundle_id` or `calibration_id` means there is none.
    """

    agent_id: str
    epoch: str
    bundle_id: str = ""
    calibration_id: str = ""
    template: str = TOPIC_TEMPLATE

    def topic(self, what: What) -> str:
        """The topic of one kind of message."""
        return topic(self.template, self.agent_id, what)

    def id(self, sequence: int) -> str:
        """The id of trigger `sequence`: the same in each of its messages, and in no others."""
        return f"{self.agent_id}:{self.epoch}:{sequence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraHealth:
    """One camera: how many of its parts have begun, and how those ended did.

    `trouble` is one line, `None` means well. A camera that `is_removed` stands in the
    configuration no more, but has parts in this epoch.
    """

    triggers: int
    counts: Mapping[State, int]
    trouble: str | None = None
    is_removed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A snapshot of the running agent. Troubles are one line each; `None` means well.

    `cameras` has each by its name; `backend` is what inspects, such as `openvino cpu int8`.
    Latencies are milliseconds from trigger to verdict over the recent parts, `None` before the
    first. `threshold` is the one in force, which a request may have changed. `lost` names the
    sequence ranges, first and last inclusive, whose verdicts the ledger could not keep; `let_go`
    those whose undelivered pictures and messages had to make room.
    """

    uptime_s: float
    cameras: Mapping[str, CameraHealth]
    parts_per_second: float
    backend: str = ""
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    threshold: float | None = None
    calibrated_threshold: float | None = None
    waiting: int = 0
    delivered: int = 0
    refused: int = 0
    lost: tuple[tuple[int, int], ...] = ()
    requests: int = 0
    requests_refused: int = 0
    let_go: Mapping[LetGo, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    broker_trouble: str | None = None
    ledger_trouble: str | None = None
    other_troubles: tuple[str, ...] = ()


def topic(template: str, agent_id: str, what: What) -> str:
    """Fill `{agent}` and `{what}` into a template that the settings have accepted."""
    return template.format(agent=agent_id, what=what)


def outgoing(
    origin: Origin, verdict: Verdict, jpeg: bytes | None = None, *, every_part: bool = False
) -> list[Message]:
    """All messages of one verdict: alarm and thumbnail unless it is OK, then the verdict itself.

    `jpeg` is the thumbnail, at most `THUMBNAIL_MAX_BYTES`; `every_part` adds the `verdict` topic.
    """
    messages = []
    if verdict.state is not State.OK:
        messages.append(alarm(origin, verdict, thumbnail=jpeg is not None))
        if jpeg is not None:
            messages.append(thumbnail(origin, verdict, jpeg))
    if every_part:
        messages.append(summary(origin, verdict))
    return messages


def alarm(origin: Origin, verdict: Verdict, *, thumbnail: bool) -> Message:
    """The alarm of a part that did not end OK; `thumbnail` says whether a JPEG follows."""
    content = _part(origin, verdict)
    content["thumbnail_topic"] = origin.topic("thumbnail") if thumbnail else None
    return _json(origin.topic("alarm"), content)


def summary(origin: Origin, verdict: Verdict) -> Message:
    """The verdict of any part."""
    return _json(origin.topic("verdict"), _part(origin, verdict))


def thumbnail(origin: Origin, verdict: Verdict, jpeg: bytes) -> Message:
    """The thumbnail of an alarm: the JPEG with the alarm's id in it.

    The id is a JPEG comment, readable on any MQTT version, and the user property `id`.
    """
    identity = origin.id(verdict.trigger.sequence)
    payload = with_comment(jpeg, identity)
    if len(payload) > THUMBNAIL_MAX_BYTES:
        raise ValueError(f"a thumbnail of {len(payload)} bytes; {THUMBNAIL_MAX_BYTES} are allowed")
    return Message(
        topic=origin.topic("thumbnail"),
        payload=payload,
        content_type="image/jpeg",
        properties=(("id", identity),),
    )


def resent(message: Message) -> Message:
    """The same message, with a user property that says that it may have come before.

    The payload stays as it is, so that every copy has the same bytes.
    """
    if _RESENT in message.properties:
        return message
    return replace(message, properties=(*message.properties, _RESENT))


def chained(message: Message, previous: int) -> Message:
    """The same message, naming the part of the message before on its topic; 0 for the first.

    A consumer that does not know that part has missed its message.
    """
    return replace(message, properties=(*message.properties, ("previous", str(previous))))


def with_comment(jpeg: bytes, comment: str) -> bytes:
    """The same picture with a comment as its first segment."""
    if not jpeg.startswith(_JPEG_START):
        raise ValueError("not a JPEG")
    text = comment.encode()
    segment = _JPEG_COMMENT + (len(text) + 2).to_bytes(2, "big") + text
    return _JPEG_START + segment + jpeg[len(_JPEG_START) :]


def comment_of(jpeg: bytes) -> str | None:
    """The comment that `with_comment` put first, or `None`."""
    head = _JPEG_START + _JPEG_COMMENT
    if not jpeg.startswith(head):
        return None
    end = len(head) + int.from_bytes(jpeg[len(head) : len(head) + 2], "big")
    return jpeg[len(head) + 2 : end].decode(errors="replace")


def state(template: str, agent_id: str, *, online: bool) -> Message:
    """The retained presence message; the offline one is also the last will."""
    return Message(
        topic=topic(template, agent_id, "state"),
        payload=b"online" if online else b"offline",
        retain=True,
        content_type="text/plain",
    )


def health(origin: Origin, now_ns: int, snapshot: Health) -> Message:
    """The health message for the time `now_ns`, UTC nanoseconds since 1970."""
    named = {"broker": snapshot.broker_trouble, "ledger": snapshot.ledger_trouble}
    troubles = {f"camera {name}": each.trouble for name, each in snapshot.cameras.items()} | named
    reasons = [f"{name}: {trouble}" for name, trouble in troubles.items() if trouble is not None]
    reasons += snapshot.other_troubles
    counts = sum((Counter(each.counts) for each in snapshot.cameras.values()), Counter[State]())
    triggers = sum(each.triggers for each in snapshot.cameras.values())
    return _json(
        origin.topic("health"),
        {
            "agent": origin.agent_id,
            "epoch": origin.epoch,
            "time": utc(now_ns),
            "software": software(),
            "bundle_id": origin.bundle_id or None,
            "calibration_id": origin.calibration_id or None,
            "backend": snapshot.backend or None,
            "uptime_s": round(snapshot.uptime_s, 3),
            **_accounted(triggers, counts),
            "parts_per_second": round(snapshot.parts_per_second, 3),
            "latency_ms": {
                "p50": _rounded(snapshot.latency_p50_ms),
                "p99": _rounded(snapshot.latency_p99_ms),
            },
            "threshold": {
                "in_force": snapshot.threshold,
                "calibrated": snapshot.calibrated_threshold,
            },
            "outbox": {
                "waiting": snapshot.waiting,
                "delivered": snapshot.delivered,
                "refused": snapshot.refused,
            },
            "requests": {
                "accepted": snapshot.requests,
                "refused": snapshot.requests_refused,
            },
            "lost": _ranges(snapshot.lost),
            "let_go": {kind: _ranges(snapshot.let_go.get(kind, ())) for kind in get_args(LetGo)},
            "cameras": [
                {
                    "name": name,
                    **_status(each.trouble, is_removed=each.is_removed),
                    **_accounted(each.triggers, each.counts),
                }
                for name, each in snapshot.cameras.items()
            ],
            **{name: _status(trouble) for name, trouble in named.items()},
            "degraded": bool(reasons),
            "reasons": reasons,
        },
    )


def response(
    origin: Origin,
    now_ns: int,
    response_topic: str,
    correlation: bytes | None,
    told: Mapping[str, object],
) -> Message:
    """The answer to a request; `told` holds what it asked and what came of it."""
    about = {"agent": origin.agent_id, "epoch": origin.epoch, "time": utc(now_ns)}
    return replace(_json(response_topic, {**about, **told}), correlation=correlation)


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


def _part(origin: Origin, verdict: Verdict) -> dict[str, object]:
    trigger, found = verdict.trigger, verdict.inspection
    return {
        "id": origin.id(trigger.sequence),
        "agent": origin.agent_id,
        "epoch": origin.epoch,
        "sequence": trigger.sequence,
        "camera": trigger.camera,
        "part_id": trigger.part_id,
        "time": utc(verdict.decided_ns),
        "triggered_at": utc(trigger.triggered_ns),
        "state": verdict.state.value,
        "reason": verdict.reason or None,
        "late_state": verdict.late_state,
        "score": found and found.score,
        "pass_scores": found and [found.passes[0].score, found.passes[-1].score],
        "deviation": found and found.deviation,
        "threshold": verdict.threshold if math.isfinite(verdict.threshold) else None,
        "box": found and _box(found.box),
        "zoomed": found and found.zoomed,
        "frame": verdict.frame and _frame(verdict.frame),
        "latency_ms": _latency(verdict, found),
        "bundle_id": origin.bundle_id or None,
        "calibration_id": origin.calibration_id or None,
        "software": software(),
    }


def _accounted(triggers: int, counts: Mapping[State, int]) -> dict[str, object]:
    return {
        "triggers": triggers,
        "open": triggers - sum(counts.values()),
        "counts": {state.value: counts.get(state, 0) for state in State},
    }


def _status(trouble: str | None, *, is_removed: bool = False) -> dict[str, object]:
    well = "removed" if is_removed else "ok"
    return {"status": well if trouble is None else "trouble", "reason": trouble}


def _ranges(spans: tuple[tuple[int, int], ...]) -> dict[str, object]:
    """How many sequences, and the newest of their ranges: a message has no room for all."""
    return {
        "count": sum(last - first + 1 for first, last in spans),
        "ranges": [{"first": first, "last": last} for first, last in spans[-_RANGES:]],
    }


def _box(box: Box) -> dict[str, int]:
    return {"left": box.left, "top": box.top, "right": box.right, "bottom": box.bottom}


def _frame(frame: Frame) -> dict[str, object]:
    height, width = frame.pixels.shape[:2]
    return {
        "number": frame.number,
        "captured_at": utc(frame.captured_ns),
        "width": width,
        "height": height,
    }


def _latency(verdict: Verdict, found: Inspection | None) -> dict[str, float | None]:
    """Milliseconds by a steady clock, which nobody sets."""
    stages = ("view_1", "pass_1", "attention", "view_2", "pass_2", "total")
    seconds = {} if found is None else found.stages | {"total": found.seconds}
    skipped = None if found is None else 0.0
    return {
        "trigger_to_verdict": round((verdict.decided_ns - verdict.trigger.triggered_ns) / 1e6, 3),
        **{stage: _milliseconds(seconds.get(stage, skipped)) for stage in stages},
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _json(topic: str, content: dict[str, object]) -> Message:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    identity = content.get("id")
    return Message(
        topic=topic,
        payload=text.encode(errors="replace"),
        properties=(("id", str(identity)),) if identity else (),
    )
