import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from PIL import Image
from referencing import Registry, Resource

from agent.ledger import Ledger
from agent.messages import (
    THUMBNAIL_MAX_BYTES,
    CameraHealth,
    Health,
    Origin,
    alarm,
    comment_of,
    health,
    outgoing,
    summary,
    thumbnail,
    utc,
    with_comment,
)
from agent.mqtt import Publisher
from agent.part import State
from agent.verdict import Trigger, Verdict
from engine.frame import Box, Frame, Inspection, Pass

ROOT = Path(__file__).parents[2]
SCHEMAS = {file.name: json.loads(file.read_text()) for file in ROOT.glob("agent/schemas/*.json")}
ASYNCAPI = yaml.safe_load((ROOT / "docs/asyncapi.yaml").read_text())
ORIGIN = Origin(agent_id="line1", epoch="abc123", bundle_id="b" * 64, calibration_id="c" * 64)
NOON_NS = 1_795_348_800_000_000_000  # 2026-11-22T12:00:00Z
REGISTRY = Registry().with_resources(
    (name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
)


def check(name, content):
    validator = Draft202012Validator(
        SCHEMAS[f"{name}.schema.json"], registry=REGISTRY, format_checker=FormatChecker()
    )
    validator.validate(content)


def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    return file.getvalue()


def verdict(state=State.NG, sequence=7, **changes):
    found = Inspection(
        score=2.5,
        deviation=2.25,
        passes=(
            Pass(box=Box.whole(64, 48), score=2.0, view_s=0.001, network_s=0.02),
            Pass(
                box=Box(left=10, top=20, right=30, bottom=40),
                score=3.0,
                view_s=0.001,
                network_s=0.02,
            ),
        ),
        attention=np.zeros((2, 2), np.float32),
        score_map=np.zeros((2, 2), np.float32),
        attention_s=0.0005,
    )
    frame = Frame(pixels=np.zeros((48, 64), np.uint8), number=7, captured_ns=NOON_NS - 50_000_000)
    trigger = Trigger(
        sequence=sequence, camera="main", part_id="part 7", triggered_ns=NOON_NS - 49_000_000
    )
    values = {
        "trigger": trigger,
        "state": state,
        "decided_ns": NOON_NS + 1_999_999,
        "threshold": 1.5,
        "frame": frame,
        "inspection": found,
        "reason": "",
    }
    return Verdict(**(values | changes))


def bare(state, **changes):
    """A part that nobody could inspect."""
    return verdict(state, **({"frame": None, "inspection": None, "reason": "why"} | changes))


def content(message):
    return json.loads(message.payload)


def test_an_alarm_says_all_about_the_part():
    message = alarm(ORIGIN, verdict(), thumbnail=True)
    assert message.topic == "atac/line1/alarm"
    assert (message.qos, message.retain) == (1, False)
    said = content(message)
    check("alarm", said)
    software = said.pop("software")
    assert software.startswith("atac-agent ")
    assert said == {
        "id": "line1:abc123:7",
        "agent": "line1",
        "epoch": "abc123",
        "sequence": 7,
        "camera": "main",
        "part_id": "part 7",
        "time": "2026-11-22T12:00:00.001Z",
        "triggered_at": "2026-11-22T11:59:59.951Z",
        "state": "NG",
        "reason": None,
        "late_state": None,
        "score": 2.5,
        "pass_scores": [2.0, 3.0],
        "deviation": 2.25,
        "threshold": 1.5,
        "box": {"left": 10, "top": 20, "right": 30, "bottom": 40},
        "zoomed": True,
        "frame": {
            "number": 7, "captured_at": "2026-11-22T11:59:59.950Z", "width": 64, "height": 48
        },
        "latency_ms": {
            "trigger_to_verdict": 51.0, "view_1": 1.0, "pass_1": 20.0, "attention": 0.5,
            "view_2": 1.0, "pass_2": 20.0, "total": 42.5,
        },
        "bundle_id": "b" * 64,
        "calibration_id": "c" * 64,
        "thumbnail_topic": "atac/line1/thumbnail",
    }  # fmt: skip


@pytest.mark.parametrize("state", list(State))
def test_every_state_fits_its_schemas(state):
    plain = Origin(agent_id="line1", epoch="abc123")
    part = verdict(state) if state in {State.OK, State.NG, State.TIMEOUT} else bare(state)
    check("verdict", content(summary(plain, part)))
    if state is not State.OK:
        check("alarm", content(alarm(plain, part, thumbnail=False)))


def test_a_part_from_before_a_crash_has_no_threshold():
    said = content(alarm(ORIGIN, bare(State.ERROR, threshold=float("nan")), thumbnail=False))
    check("alarm", said)
    assert said["threshold"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "OK"},
        {"score": None},
        {"sequence": 0},
        {"time": "2026-11-22T12:00:00+01:00"},
        {"box": {"left": 1}},
        {"extra": 1},
    ],
)
def test_the_schema_refuses_what_is_not_promised(wrong):
    said = content(alarm(ORIGIN, verdict(), thumbnail=True))
    with pytest.raises(ValidationError):
        check("alarm", said | wrong)


def test_a_good_part_sends_nothing_unless_every_part_is_wanted():
    assert outgoing(ORIGIN, verdict(State.OK)) == []
    (only,) = outgoing(ORIGIN, verdict(State.OK), every_part=True)
    assert only.topic == "atac/line1/verdict"
    bad = outgoing(ORIGIN, verdict(), jpeg(), every_part=True)
    assert [message.topic for message in bad] == [
        "atac/line1/alarm", "atac/line1/thumbnail", "atac/line1/verdict"
    ]  # fmt: skip
    assert {comment_of(bad[1].payload), *(content(bad[n])["id"] for n in (0, 2))} == {
        "line1:abc123:7"
    }


def test_a_thumbnail_is_the_picture_with_the_id_in_it():
    message = thumbnail(ORIGIN, verdict(), jpeg())
    picture = Image.open(io.BytesIO(message.payload))
    assert picture.info["comment"] == b"line1:abc123:7"
    assert np.array_equal(picture, Image.open(io.BytesIO(jpeg())))
    assert message.properties == (("id", "line1:abc123:7"),)
    with pytest.raises(ValueError, match="bytes"):
        thumbnail(ORIGIN, verdict(), jpeg() + b"x" * THUMBNAIL_MAX_BYTES)
    with pytest.raises(ValueError, match="not a JPEG"):
        thumbnail(ORIGIN, verdict(), b"GIF89a")


@given(st.text(max_size=200))
def test_a_comment_can_be_read_back(comment):
    assert comment_of(with_comment(jpeg(), comment)) == comment


def test_an_ordinary_jpeg_has_no_comment():
    assert comment_of(jpeg()) is None


def test_a_timeout_says_what_came_too_late():
    said = content(alarm(ORIGIN, verdict(State.TIMEOUT, late_state=State.OK), thumbnail=False))
    check("alarm", said)
    assert (said["state"], said["late_state"], said["score"]) == ("TIMEOUT", "OK", 2.5)
    said["state"] = "NG"
    with pytest.raises(ValidationError):
        check("alarm", said)


@given(st.text(max_size=100), st.floats(), st.sampled_from(list(State)))
def test_any_part_id_and_threshold_make_valid_json(part_id, threshold, state):
    trigger = Trigger(sequence=1, camera="main", part_id=part_id, triggered_ns=0)
    part = verdict(State.TIMEOUT, trigger=trigger, threshold=threshold, reason=part_id)
    check("verdict", content(summary(ORIGIN, part)))


@given(st.integers(0, 253_402_300_799_999_999_999))
def test_times_are_utc_to_the_millisecond_and_in_order(time_ns):
    said = utc(time_ns)
    assert len(said) == len("2026-11-22T14:05:09.123Z")
    assert np.datetime64(said[:-1], "ms").astype(np.int64) == time_ns // 1_000_000


def test_health_sums_up():
    snapshot = Health(
        uptime_s=12.3456,
        backend="openvino cpu int8",
        cameras={
            "top": CameraHealth(triggers=7, counts={State.OK: 5, State.NG: 1}),
            "side": CameraHealth(triggers=3, counts={State.OK: 2, State.NG: 1}, is_removed=True),
        },
        parts_per_second=2.0,
        latency_p50_ms=20.12345,
        lost=((3, 5),),
        let_go={"message": tuple((n, n) for n in range(0, 300, 2))},
        waiting=4,
    )
    said = content(health(ORIGIN, NOON_NS, snapshot))
    check("health", said)
    assert (said["triggers"], said["open"]) == (10, 1)
    assert {state: n for state, n in said["counts"].items() if n} == {"OK": 7, "NG": 2}
    assert [(one["name"], one["status"], one["open"]) for one in said["cameras"]] == [
        ("top", "ok", 1),
        ("side", "removed", 0),
    ]
    assert said["backend"] == "openvino cpu int8"
    assert said["lost"] == {"count": 3, "ranges": [{"first": 3, "last": 5}]}
    assert said["let_go"]["picture"] == {"count": 0, "ranges": []}
    # Of many ranges the newest are told, and the number of all.
    assert said["let_go"]["message"]["count"] == 150
    assert [one["first"] for one in said["let_go"]["message"]["ranges"]] == list(range(100, 300, 2))
    assert (said["degraded"], said["reasons"]) == (False, [])
    assert said["latency_ms"] == {"p50": 20.123, "p99": None}


def test_health_says_why_it_is_degraded():
    snapshot = Health(
        uptime_s=0.0,
        cameras={
            "top": CameraHealth(triggers=0, counts={}, trouble="unplugged"),
            "side": CameraHealth(triggers=0, counts={}),
        },
        parts_per_second=0.0,
        other_troubles=("too warm",),
    )
    said = content(health(ORIGIN, NOON_NS, snapshot))
    check("health", said)
    assert said["degraded"]
    assert said["reasons"] == ["camera top: unplugged", "too warm"]
    assert [(one["status"], one["reason"]) for one in said["cameras"]] == [
        ("trouble", "unplugged"),
        ("ok", None),
    ]
    assert said["broker"] == {"status": "ok", "reason": None}


def test_topics_follow_the_template():
    origin = Origin(agent_id="line1", epoch="", template="plant/hall 2/{agent}/qa/{what}")
    assert origin.topic("alarm") == "plant/hall 2/line1/qa/alarm"


def test_schemas_are_schemas():
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_the_asyncapi_document_leads_to_every_schema_and_back():
    """Every reference resolves, every channel has an operation, every schema is used."""
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    used = set()

    def walk(node):
        if isinstance(node, dict):
            target = node.get("$ref")
            if isinstance(target, str):
                if target.startswith("#/"):
                    at = ASYNCAPI
                    for step in target[2:].split("/"):
                        at = at[step]
                else:
                    path = (ROOT / "docs" / target).resolve()
                    assert path.parent == ROOT / "agent/schemas"
                    used.add(path.name)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(ASYNCAPI)
    assert used | {"part.schema.json"} == set(SCHEMAS)
    channels = {
        half["channel"]["$ref"]
        for operation in ASYNCAPI["operations"].values()
        for half in (operation, operation.get("reply", operation))
    }
    assert channels == {f"#/channels/{name}" for name in ASYNCAPI["channels"]}
    addresses = {channel["address"] for channel in ASYNCAPI["channels"].values()}
    assert addresses == {
        Origin(agent_id="{agent}", epoch="").topic(what) for what in ASYNCAPI["channels"]
    }


@pytest.mark.broker
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_messages_taken_off_a_broker_fit_the_asyncapi_document(
    broker, tmp_path, hear, eventually, version
):
    settings = type(broker.settings)(host=broker.host, port=broker.port, version=version)
    heard = hear(settings)
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as ledger:
        origin = Origin(agent_id="line1", epoch=ledger.epoch, bundle_id="b" * 64)
        with Publisher(settings, ledger, "line1") as publisher:
            for state in State:
                part = verdict(state, sequence=ledger.next_sequence("main"))
                ledger.record(part, outgoing(origin, part, jpeg(), every_part=True))
            snapshot = Health(
                uptime_s=1.0,
                cameras={"main": CameraHealth(triggers=ledger.total(), counts={})},
                parts_per_second=1.0,
                broker_trouble=publisher.status.trouble,
            )
            publisher.publish_now(health(origin, time.time_ns(), snapshot))
        eventually(lambda: ("atac/line1/state", b"offline") in heard.messages)
    seen = set()
    for topic, payload in heard.messages:
        (channel,) = (
            name
            for name, channel in ASYNCAPI["channels"].items()
            if channel["address"].replace("{agent}", "line1") == topic
        )
        seen.add(channel)
        described = ASYNCAPI["components"]["messages"][channel]
        match described.get("contentType", ASYNCAPI["defaultContentType"]):
            case "image/jpeg":
                assert len(payload) <= described["payload"]["maxLength"]
                assert comment_of(payload) in {origin.id(n) for n in range(2, 7)}
            case "text/plain":
                check(channel, payload.decode())
            case "application/json":
                check(channel, json.loads(payload))
    assert seen == set(ASYNCAPI["channels"]) - {"request", "response"}
    assert len(heard.on("/verdict")) == 6
    assert len(heard.on("/alarm")) == len(heard.on("/thumbnail")) == 5


def test_the_documented_alarm_is_one():
    text = (ROOT / "docs/mqtt.md").read_text()
    example = text.split("```json\n")[1].split("```")[0]
    said = json.loads(example) | {"bundle_id": None, "calibration_id": None}
    check("alarm", said)
    assert set(said) == set(content(alarm(ORIGIN, verdict(), thumbnail=True)))
