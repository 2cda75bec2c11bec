import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from PIL import Image
from referencing import Registry, Resource

from agent.part import State, is_alarm
from agent.record.ledger import Ledger
from agent.record.rows import THUMBNAIL_MAX_BYTES, Delivery, Event, utc
from agent.settings import AgentSettings
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.messages import (
    Topics,
    alarm,
    delivered,
    fleet,
    health,
    thumbnail,
    verdict,
)
from agent.sinks.mqtt.settings import MqttSettings, check_template
from agent.sinks.mqtt.sink import MqttSink
from agent.station.status import (
    BOUNDS_S,
    CameraStatus,
    DesiredStatus,
    FleetStatus,
    Histogram,
    LedgerStatus,
    ProductStatus,
    Promise,
    SinkStatus,
)
from engine.frame import Box, FoundRegion, Pass
from engine.picture import comment_of, with_comment
from tests.agent.statuses import camera_status, status
from tests.records import begin, end, inspected

ROOT = Path(__file__).parents[4]
SCHEMAS = {file.name: json.loads(file.read_text()) for file in ROOT.glob("agent/schemas/*.json")}
ASYNCAPI = yaml.safe_load((ROOT / "docs/asyncapi.yaml").read_text())
TOPICS = Topics(agent_id="line1")
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


def event(state=State.NG, **changes):
    found = {
        "score": 2.5,
        "deviation": 2.25,
        "attention_s": 0.0005,
        "passes": (
            Pass(box=Box.whole(64, 48), score=2.0, view_s=0.001, network_s=0.02),
            Pass(
                box=Box(left=10, top=20, right=30, bottom=40),
                score=3.0,
                view_s=0.001,
                network_s=0.02,
            ),
        ),
        "frame_number": 7,
        "captured_ns": NOON_NS - 50_000_000,
        "frame_width": 64,
        "frame_height": 48,
        "device_id": "CAM1",
        "block_id": 65_543,
        "device_ns": 1_795_802_195_297_395_123,
        "exposure_us": 4000.0,
        "trigger_count": 9,
    }
    values = {
        "agent_id": "line1",
        "epoch": "abc123",
        "sequence": 7,
        "position": 7,
        "camera": "main",
        "part_id": "part 7",
        "count": None,
        "triggered_ns": NOON_NS - 49_000_000,
        "deadline_ns": None,
        "state": state,
        "decided_ns": NOON_NS + 1_999_999,
        "reason": "",
        "late_state": None,
        "late_s": None,
        "threshold": 1.5,
        "bundle_id": "b" * 64,
        "calibration_id": "c" * 64,
        "software": "atac-agent 1",
    }
    return Event(**(found | values | changes))


def bare(state, **changes):
    """A part that nobody could inspect."""
    nothing = dict.fromkeys(
        ("score", "deviation", "attention_s", "frame_number", "captured_ns", "frame_width",
         "frame_height", "device_id", "block_id", "device_ns", "exposure_us", "trigger_count")
    )  # fmt: skip
    return event(state, **(nothing | {"passes": (), "reason": "why"} | changes))


def sent(item, about, **changes):
    values = {"id": 1, "sink": "mqtt", "item": item, "epoch": "abc123", "sequence": 7,
              "previous": 4} | changes  # fmt: skip
    return delivered(TOPICS, Delivery(**values), about)


def content(message):
    return json.loads(message.payload)


def test_an_alarm_says_all_about_the_part():
    message = sent("alarm", event(has_thumbnail=True))
    assert message.topic == "atac/line1/alarm"
    assert (message.qos, message.retain) == (1, False)
    assert message.properties == (("id", "line1:abc123:7"), ("previous", "4"))
    said = content(message)
    check("alarm", said)
    assert said == {
        "id": "line1:abc123:7",
        "agent": "line1",
        "epoch": "abc123",
        "sequence": 7,
        "camera": "main",
        "part_id": "part 7",
        "product": None,
        "count": None,
        "time": "2026-11-22T12:00:00.001Z",
        "triggered_at": "2026-11-22T11:59:59.951Z",
        "state": "NG",
        "reason": None,
        "late_state": None,
        "late_ms": None,
        "score": 2.5,
        "deviation": 2.25,
        "threshold": 1.5,
        "passes": [
            {
                "score": 2.0, "view_ms": 1.0, "network_ms": 20.0,
                "box": {"left": 0, "top": 0, "right": 64, "bottom": 48},
            },
            {
                "score": 3.0, "view_ms": 1.0, "network_ms": 20.0,
                "box": {"left": 10, "top": 20, "right": 30, "bottom": 40},
            },
        ],
        "regions": [],
        "frame": {
            "number": 7, "captured_at": "2026-11-22T11:59:59.950Z", "width": 64, "height": 48,
            "device_id": "CAM1", "block_id": 65_543, "device_us": 1_795_802_195_297_395,
            "exposure_us": 4000.0, "trigger_count": 9
        },
        "latency_ms": {"trigger_to_verdict": 51.0, "attention": 0.5, "inspection": 42.5},
        "bundle_id": "b" * 64,
        "calibration_id": "c" * 64,
        "software": "atac-agent 1",
        "thumbnail_topic": "atac/line1/thumbnail",
    }  # fmt: skip


def test_a_copy_says_so_in_its_properties_and_has_the_same_bytes():
    first, again = sent("alarm", event()), sent("alarm", event(), is_resent=True)
    assert again.payload == first.payload
    assert again.properties == (*first.properties, ("resent", "true"))


def test_each_region_has_its_own_verdict():
    box = Box(left=1, top=2, right=3, bottom=4)
    found = tuple(FoundRegion(name=n, box=box, score=s) for n, s in (("cap", 2.5), ("label", 1.5)))
    said = content(alarm(TOPICS, event(regions=found)))
    check("alarm", said)
    sides = {"left": 1, "top": 2, "right": 3, "bottom": 4}
    assert said["regions"] == [
        {"name": "cap", "box": sides, "score": 2.5, "state": "NG"},
        {"name": "label", "box": sides, "score": 1.5, "state": "OK"},
    ]


@pytest.mark.parametrize("state", list(State))
def test_every_state_fits_its_schemas(state):
    made = event if state in {State.OK, State.NG, State.TIMEOUT} else bare
    part = made(state, bundle_id="", calibration_id="", part_id=None, count=9)
    check("verdict", content(verdict(TOPICS, part)))
    if state is not State.OK:
        check("alarm", content(alarm(TOPICS, part)))


def test_a_part_from_before_a_crash_has_no_threshold():
    said = content(alarm(TOPICS, bare(State.ERROR, threshold=None)))
    check("alarm", said)
    assert said["threshold"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "OK"},
        {"score": None},
        {"sequence": 0},
        {"time": "2026-11-22T12:00:00+01:00"},
        {"passes": []},
        {"passes": [{"score": 1.0}]},
        {"extra": 1},
    ],
)
def test_the_schema_refuses_what_is_not_promised(wrong):
    said = content(alarm(TOPICS, event()))
    with pytest.raises(ValidationError):
        check("alarm", said | wrong)


def sink(**settings):
    return MqttSink(
        MqttSettings(host="127.0.0.1", **settings),
        agent_id="line1",
        is_alarm=lambda part: is_alarm(part.ended.state, "reject"),
    )


def test_a_good_part_has_nothing_to_say_unless_every_part_is_wanted(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as ledger:
        good, bad = begin(ledger), begin(ledger)
        end(ledger, good, State.OK)
        end(ledger, bad, State.NG)
    assert sink().items(good) == ()
    assert sink(every_part=True).items(good) == ("verdict",)
    assert sink().items(bad) == ("alarm", "thumbnail")
    assert sink(every_part=True).items(bad) == ("alarm", "thumbnail", "verdict")


def test_a_thumbnail_is_the_picture_with_the_id_in_it():
    message = thumbnail(TOPICS, event(thumbnail=jpeg()))
    picture = Image.open(io.BytesIO(message.payload))
    assert picture.info["comment"] == b"line1:abc123:7"
    assert np.array_equal(picture, Image.open(io.BytesIO(jpeg())))
    assert message.properties == (("id", "line1:abc123:7"),)
    with pytest.raises(ValueError, match="bytes"):
        thumbnail(TOPICS, event(thumbnail=jpeg() + b"x" * THUMBNAIL_MAX_BYTES))
    with pytest.raises(ValueError, match="not a JPEG"):
        thumbnail(TOPICS, event(thumbnail=b"GIF89a"))


@given(st.text(max_size=200))
def test_a_comment_can_be_read_back(comment):
    assert comment_of(with_comment(jpeg(), comment)) == comment


def test_an_ordinary_jpeg_has_no_comment():
    assert comment_of(jpeg()) is None


def test_a_timeout_says_what_came_too_late():
    said = content(alarm(TOPICS, event(State.TIMEOUT, late_state=State.OK, late_s=0.0125)))
    check("alarm", said)
    assert (said["state"], said["late_state"], said["score"]) == ("TIMEOUT", "OK", 2.5)
    assert said["late_ms"] == 12.5
    said["state"] = "NG"
    with pytest.raises(ValidationError):
        check("alarm", said)


@given(st.text(max_size=100), st.floats(allow_nan=False, allow_infinity=False))
def test_any_part_id_and_threshold_make_valid_json(part_id, threshold):
    part = event(State.TIMEOUT, part_id=part_id, threshold=threshold, reason=part_id)
    check("verdict", content(verdict(TOPICS, part)))


@given(st.integers(0, 253_402_300_799_999_999_999))
def test_times_are_utc_to_the_millisecond_and_in_order(time_ns):
    said = utc(time_ns)
    assert len(said) == len("2026-11-22T14:05:09.123Z")
    assert np.datetime64(said[:-1], "ms").astype(np.int64) == time_ns // 1_000_000


def test_health_sums_up():
    now = status(
        time_ns=NOON_NS,
        uptime_s=12.3456,
        backend="openvino cpu int8",
        cameras={
            "top": CameraStatus(triggers=7, counts={State.OK: 5, State.NG: 1}),
            "side": CameraStatus(triggers=3, counts={State.OK: 2, State.NG: 1}, is_removed=True),
        },
        ledger=LedgerStatus(
            lost=((3, 5),), discarded={"message": tuple((n, n) for n in range(0, 300, 2))}
        ),
        sinks={"mqtt": SinkStatus(is_connected=True, pending=4, delivered=2, requests=1)},
    )
    before = status(uptime_s=10.3456, cameras={"top": camera_status(OK=5)})
    said = content(health(TOPICS, "mqtt", now, before))
    check("health", said)
    assert (said["triggers"], said["open"]) == (10, 1)
    assert {state: n for state, n in said["counts"].items() if n} == {"OK": 7, "NG": 2}
    assert [(one["name"], one["status"], one["open"]) for one in said["cameras"]] == [
        ("top", "ok", 1),
        ("side", "removed", 0),
    ]
    assert said["backend"] == "openvino cpu int8"
    assert said["parts_per_second"] == 2.0
    assert said["outbox"] == {"waiting": 4, "delivered": 2, "refused": 0}
    assert said["lost"] == {"count": 3, "ranges": [{"first": 3, "last": 5}]}
    assert said["discarded"]["picture"] == {"count": 0, "ranges": []}
    # Of many ranges the newest are told, and the number of all.
    told = said["discarded"]["message"]
    assert told["count"] == 150
    assert [one["first"] for one in told["ranges"]] == list(range(100, 300, 2))
    assert (said["degraded"], said["reasons"]) == (False, [])
    assert said["latency_ms"] == {"p50": None, "p99": None}


def test_latencies_in_health_are_of_the_time_since_the_last():
    def times(*counts):
        filled = (*counts, *[0] * (len(BOUNDS_S) + 1 - len(counts)))
        return {"end_to_end": Histogram(counts=filled, total_s=1.0)}

    sinks = {"mqtt": SinkStatus(is_connected=True)}
    before = status(latencies=times(1000, 0, 0), sinks=sinks)
    now = status(latencies=times(1000, 0, 10), sinks=sinks)
    said = content(health(TOPICS, "mqtt", now, before))["latency_ms"]
    assert 2.0 < said["p50"] <= said["p99"] <= 5.0


def test_health_says_why_it_is_degraded():
    now = status(
        cameras={
            "top": CameraStatus(triggers=0, counts={}, fault="unplugged"),
            "side": CameraStatus(triggers=0, counts={}),
        },
        sinks={"mqtt": SinkStatus(is_connected=True)},
        faults=("camera top: unplugged", "too warm"),
    )
    said = content(health(TOPICS, "mqtt", now))
    check("health", said)
    assert said["degraded"]
    assert said["reasons"] == ["camera top: unplugged", "too warm"]
    assert [(one["status"], one["reason"]) for one in said["cameras"]] == [
        ("fault", "unplugged"),
        ("ok", None),
    ]
    assert said["broker"] == {"status": "ok", "reason": None}


def test_health_says_what_became_of_the_desired_state():
    promise = Promise(
        max_false_reject=0.01,
        confidence=0.95,
        is_proved=True,
        calibrated_at="2026-11-27T14:05:09+00:00",
    )
    found = FleetStatus(
        state="in force", serial=7, bundle="b" * 64, judged=200, changed_verdicts=3, promise=promise
    )
    now = status(sinks={"mqtt": SinkStatus(is_connected=True)}, fleet=found)
    said = content(health(TOPICS, "mqtt", now))
    check("health", said)
    assert (said["fleet"]["serial"], said["fleet"]["changed_verdicts"]) == (7, 3)
    cola = DesiredStatus(state="on trial", serial=7, bundle="b" * 64)
    counts = dict.fromkeys(State, 0)
    several = replace(
        now,
        fleet=FleetStatus(state="on trial", serial=7, products={"cola": cola}),
        products={"cola": ProductStatus(bundle_id="d" * 64, counts=counts)},
    )
    check("health", content(health(TOPICS, "mqtt", several)))
    kept = content(fleet(TOPICS, several))
    check("fleet", kept)
    assert (kept["bundle_id"], kept["bundles"]) == (None, {"cola": "d" * 64})
    assert kept["fleet"]["products"]["cola"]["state"] == "on trial"
    alone = content(health(TOPICS, "mqtt", status(sinks=now.sinks)))
    check("health", alone)
    assert alone["fleet"] is None


def test_topics_follow_the_template():
    template = check_template("plant/hall 2/{agent}/qa/{what}")
    topics = Topics(agent_id="line1", template=template)
    assert topics.of("alarm") == "plant/hall 2/line1/qa/alarm"


@pytest.mark.parametrize("agent_id", ["", "a/b", "a+", "#", "a:b", "a\nb", "a\0"])
def test_agent_ids_that_cannot_be_in_a_topic(agent_id):
    with pytest.raises(ValueError):
        AgentSettings(id=agent_id)


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
    assert addresses == {Topics(agent_id="{agent}").of(what) for what in ASYNCAPI["channels"]}


@pytest.mark.broker
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_messages_taken_off_a_broker_fit_the_asyncapi_document(
    broker, tmp_path, hear, eventually, version
):
    settings = MqttSettings(host=broker.host, port=broker.port, version=version, every_part=True)
    heard = hear(settings)
    sink = MqttSink(
        settings,
        agent_id="line1",
        is_alarm=lambda part: is_alarm(part.ended.state, "reject"),
    )
    with Ledger(
        tmp_path / "ledger.sqlite", agent_id="line1", bundle_id="b" * 64, sinks=[sink]
    ) as ledger:
        with Deliverer(sink, ledger) as deliverer:
            for state in State:
                part = inspected(begin(ledger))
                end(ledger, part, state, jpeg())
            deliverer.report(status(sinks={"mqtt": deliverer.status()}, fleet=FleetStatus()))
        eventually(lambda: ("atac/line1/state", b"offline") in heard.messages)
        ids = {f"line1:{ledger.epoch}:{n}" for n in range(2, 7)}
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
                assert comment_of(payload) in ids
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
    assert set(said) == set(content(alarm(TOPICS, event())))
