"""Requests over MQTT 5: obeyed when allowed, refused and counted otherwise."""

import json
import queue
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

import agent.mqtt
from agent.ledger import Ledger
from agent.ledger_file import requeue_in_file
from agent.messages import Message, Origin, outgoing, utc
from agent.mqtt import Publisher, ask
from agent.part import State
from agent.requests import COMMANDS, REQUEST_MAX_BYTES, Asked, RequestError, Requests, request_json
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.threshold import Threshold
from agent.verdict import Trigger, Verdict
from engine.errors import BrokerError, ConfigurationError

SCHEMAS = Path(agent.mqtt.__file__).parent / "schemas"
RESPONSE = "atac/line1/response/me"


def schema(name):
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def soon(seconds=60.0):
    return utc(time.time_ns() + round(seconds * 1e9))


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as opened:
        yield opened


def requests(ledger, *allowed):
    origin = Origin(agent_id="line1", epoch=ledger.epoch)
    return Requests(
        origin,
        ledger,
        allowed=allowed or COMMANDS,
        threshold=Threshold(ledger, calibrated=1.5, calibration_id="c1"),
        paused=threading.Event(),
    )


def replay(_epoch, first, last):
    return last - first + 1


def answer(asked_of, payload, topic=RESPONSE, correlation=None, *, is_retained=False):
    asked = Asked(
        payload=payload, response_topic=topic, correlation=correlation, is_retained=is_retained
    )
    message = asked_of.answer(asked, replay)
    if message is None:
        return None
    assert message.topic == topic
    assert message.correlation == correlation
    told = json.loads(message.payload)
    schema("response").validate(told)
    return told


def end(ledger, count=1):
    origin = Origin(agent_id="line1", epoch=ledger.epoch)
    for _ in range(count):
        trigger = Trigger(
            sequence=ledger.next_sequence("main"), camera="main", part_id="a part", triggered_ns=0
        )
        verdict = Verdict(
            trigger=trigger, state=State.ERROR, decided_ns=time.time_ns(), threshold=1.0
        )
        ledger.record(verdict, outgoing(origin, verdict))
    assert ledger.flush()


def test_ping_and_threshold(ledger):
    asked_of = requests(ledger)
    told = answer(asked_of, request_json("ping", "nonce-01", soon()), correlation=b"\0\1")
    assert (told["command"], told["nonce"], told["ok"]) == ("ping", "nonce-01", True)
    assert (told["agent"], told["epoch"]) == ("line1", ledger.epoch)
    told = answer(asked_of, request_json("threshold", "nonce-02", soon()))
    assert told["result"] == {"threshold": 1.5, "calibrated": 1.5}
    assert (asked_of.accepted, asked_of.refused) == (2, 0)


def set_threshold(asked_of, nonce, value, by="Ada"):
    return answer(asked_of, request_json("set_threshold", nonce, soon(), threshold=value, by=by))


def test_a_threshold_is_changed_on_record_and_over_restarts_of_the_same_calibration(tmp_path):
    def current(ledger, calibration="c1"):
        return Threshold(ledger, calibrated=1.5, calibration_id=calibration).value

    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as ledger:
        end(ledger, 3)
        asked_of = requests(ledger)
        assert current(ledger) == 1.5
        assert set_threshold(asked_of, "nonce-01", 2)["result"] == {
            "threshold": 2.0,
            "calibrated": 1.5,
        }
        assert asked_of._threshold.value == 2.0
        assert set_threshold(asked_of, "nonce-02", -0.25, by="Grace")["ok"]
        epoch = ledger.epoch
    file = sqlite3.connect(tmp_path / "ledger.sqlite")
    found = file.execute("SELECT who, nonce, old, new, after, epoch FROM thresholds")
    assert found.fetchall() == [
        ("Ada", "nonce-01", 1.5, 2.0, 3, epoch),
        ("Grace", "nonce-02", 2.0, -0.25, 3, epoch),
    ]
    file.close()
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as ledger:
        assert current(ledger) == -0.25
        assert current(ledger, "c2") == 1.5
        asked_of = requests(ledger)
        assert set_threshold(asked_of, "nonce-03", None)["result"]["threshold"] == 1.5
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as ledger:
        assert current(ledger) == 1.5


@pytest.mark.parametrize(
    "arguments",
    [
        {"threshold": "2", "by": "Ada"},
        {"threshold": 2.0},
        {"threshold": 2.0, "by": ""},
        {"threshold": 2.0, "by": "A" * 101},
        {"by": "Ada"},
        {"threshold": float("nan"), "by": "Ada"},
        {"threshold": float("inf"), "by": "Ada"},
    ],
)
def test_a_threshold_that_is_none_or_nobodys_is_refused(ledger, arguments):
    asked_of = requests(ledger)
    told = answer(asked_of, request_json("set_threshold", "nonce-01", soon(), **arguments))
    assert not told["ok"]
    assert asked_of._threshold.value == 1.5


def test_a_threshold_is_changed_only_where_that_is_allowed(ledger):
    asked_of = requests(ledger, "ping", "threshold")
    assert "mqtt.commands" in set_threshold(asked_of, "nonce-01", 2.0)["error"]
    assert asked_of._threshold.value == 1.5


def test_a_threshold_that_cannot_be_put_on_record_stays_as_it_is(ledger, monkeypatch):
    asked_of = requests(ledger)
    monkeypatch.setattr(ledger, "_ask", lambda _work: None)  # as with a disk that is away
    assert "the ledger cannot be written" in set_threshold(asked_of, "nonce-01", 2.0)["error"]
    assert asked_of._threshold.value == 1.5


def test_pause_and_resume(ledger):
    asked_of = requests(ledger)
    for nonce, command, is_paused in [("nonce-01", "pause", True), ("nonce-02", "resume", False)]:
        told = answer(asked_of, request_json(command, nonce, soon()))
        assert told["result"]["paused"] is asked_of._paused.is_set() is is_paused


def test_a_label_is_kept_for_a_part_that_there_is(ledger):
    end(ledger, 2)
    asked_of = requests(ledger)
    part = f"line1:{ledger.epoch}:2"
    told = answer(asked_of, request_json("label", "nonce-01", soon(), id=part, label="good"))
    assert told["result"] == {"id": part, "label": "good"}
    strangers = [f"line1:{ledger.epoch}:3", f"line2:{ledger.epoch}:2", "line1", f"{part}²", ""]
    for n, stranger in enumerate(strangers):
        payload = request_json("label", f"nonce-1{n}", soon(), id=stranger, label="good")
        assert answer(asked_of, payload)["error"].startswith("id: ")
    found = ledger._ask(lambda file: file.execute("SELECT * FROM labels").fetchall())
    assert [row[:3] for row in found] == [(ledger.epoch, 2, "good")]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 4000, "Invalid JSON"),
        (b"[]", "be an object"),
        (b"{}", "discriminator"),
        (b"x" * (REQUEST_MAX_BYTES + 1), "larger than 4096 bytes"),
        (request_json("ping", "short", "SOON"), "nonce"),
        (request_json("ping", "nonce/01", "SOON"), "nonce"),
        (request_json("ping", "nonce-01", "tomorrow"), "expires"),
        (request_json("ping", "nonce-01", "2026-99-99T00:00:00Z"), "expires: is no time"),
        (request_json("ping", "nonce-01", "PAST"), "has expired"),
        (request_json("ping", "nonce-01", "FAR"), "more than 300 s"),
        (request_json("ping", "nonce-01", "SOON", path="/etc/passwd"), "path"),
        (request_json("replay", "nonce-01", "SOON", first=2, last=1), "last: is before first"),
        (request_json("replay", "nonce-01", "SOON", first="1", last=2), "first"),
        (request_json("replay", "nonce-01", "SOON", first=0, last=2), "first"),
        (request_json("replay", "nonce-01", "SOON", first=1, last=1 << 70), "last"),
        (request_json("shutdown", "nonce-01", "SOON"), "command"),
        (request_json("pause", "nonce-01", "SOON"), "not in mqtt.commands"),
    ],
)
def test_anything_else_is_refused_and_counted(ledger, payload, reason):
    asked_of = requests(ledger, "ping", "replay")
    for word, seconds in [(b"SOON", 60), (b"PAST", -1), (b"FAR", 400)]:
        payload = payload.replace(word, soon(seconds).encode())
    told = answer(asked_of, payload)
    assert told["ok"] is False
    assert reason in told["error"]
    assert (asked_of.accepted, asked_of.refused) == (0, 1)


def test_a_request_is_obeyed_once(ledger):
    asked_of = requests(ledger)
    payload = request_json("ping", "nonce-01", soon())
    assert answer(asked_of, payload)["ok"]
    assert answer(asked_of, payload)["error"] == "its nonce has been used"
    assert answer(asked_of, request_json("ping", "nonce-02", soon()), is_retained=True)[
        "error"
    ] == ("is a retained message")


@pytest.mark.parametrize(
    "topic",
    ["", "factory/stop", "atac/line2/response", "atac/line1/responses", "atac/line1/response/+"],
)
def test_nobody_makes_the_agent_speak_elsewhere(ledger, topic):
    asked_of = requests(ledger)
    assert answer(asked_of, request_json("pause", "nonce-01", soon()), topic=topic) is None
    assert (asked_of.accepted, asked_of.refused) == (0, 1)
    assert not asked_of._paused.is_set()


@given(
    st.one_of(
        st.binary(max_size=300),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["command", "nonce", "expires", "first", "last", "threshold", "by"]
                    ),
                    inner,
                    max_size=6,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_request_does_harm(payload):
    class NoLedger:
        epoch = "0" * 12

        def label(self, *_):
            return False

        def changed_threshold(self, _calibration_id):
            return None

        def change_threshold(self, _change):
            return False

    asked_of = requests(NoLedger())
    assert answer(asked_of, payload)["ok"] is False


def test_schema_and_agent_accept_the_same_requests():
    known = schema("request")
    for command in ("ping", "threshold", "pause", "resume"):
        known.validate(json.loads(request_json(command, "nonce-01", soon())))
    known.validate(json.loads(request_json("replay", "nonce-01", soon(), first=1, last=2)))
    for value in (1.5, None):
        arguments = {"threshold": value, "by": "Ada"}
        known.validate(json.loads(request_json("set_threshold", "nonce-01", soon(), **arguments)))
    known.validate(json.loads(request_json("label", "nonce-01", soon(), id="a:b:1", label="good")))
    for wrong in [
        request_json("stop", "nonce-01", soon()),
        request_json("ping", "short", soon()),
        request_json("ping", "nonce-01", "tomorrow"),
        request_json("ping", "nonce-01", soon(), path="x"),
        request_json("replay", "nonce-01", soon(), first=0, last=2),
    ]:
        with pytest.raises(ValidationError):
            known.validate(json.loads(wrong))


@pytest.mark.broker
def test_a_replay_over_mqtt_fills_a_gap_behind_live_alarms(broker, ledger, hear, eventually):
    heard = hear(broker.settings)
    with Publisher(broker.settings, ledger, "line1", requests(ledger)) as publisher:
        end(ledger, 70)
        eventually(lambda: ledger.pending == 0 and publisher.status.delivered == 70)
        assert ask(broker.settings, "line1", "replay", first=11, last=60) == {
            "epoch": ledger.epoch,
            "messages": 50,
        }
        eventually(lambda: publisher.status.delivered == 120 and ledger.pending == 0)
        assert ask(broker.settings, "line1", "replay", first=71, last=90)["messages"] == 0
        with pytest.raises(RequestError, match="line1 refuses: last: is before first"):
            ask(broker.settings, "line1", "replay", first=2, last=1)
    eventually(lambda: len(heard.on("/alarm")) == 120)
    payloads = heard.on("/alarm")
    # The first seventy may overtake each other: what is live goes before what waits.
    first_heard = {json.loads(payload)["sequence"]: payload for payload in payloads[:70]}
    assert payloads[70:] == [first_heard[sequence] for sequence in range(11, 61)]


@pytest.mark.broker
def test_an_agent_that_takes_no_requests_does_not_answer(broker, ledger, monkeypatch, eventually):
    monkeypatch.setattr(agent.mqtt, "_ANSWER_S", 0.5)
    settings = MqttSettings(host=broker.settings.host, port=broker.settings.port, commands=())
    with Publisher(settings, ledger, "line1", requests(ledger)) as publisher:
        eventually(lambda: publisher.status.connected)
        with pytest.raises(BrokerError, match=r"line1 does not answer; is ping in its mqtt\.comm"):
            ask(settings, "line1", "ping")
    with pytest.raises(ConfigurationError, match="need MQTT 5"):
        ask(MqttSettings(host="localhost", version="3.1.1"), "line1", "ping")


@pytest.mark.broker
def test_a_flood_of_rubbish_delays_nothing(broker, ledger, hear, eventually):
    heard = hear(broker.settings)
    asked_of = requests(ledger)
    with Publisher(broker.settings, ledger, "line1", asked_of) as publisher:
        eventually(lambda: publisher.status.connected)
        ask(broker.settings, "line1", "ping")
        with agent.mqtt._Link(broker.settings, "rubbish", queue.SimpleQueue()) as link:
            for n in range(300):
                link.publish(Message(topic="atac/line1/request", payload=b"{" * (n % 50)))
            link.publish(Message(topic="atac/line1/request", payload=b"x" * 200_000))
            end(ledger, 20)
            eventually(lambda: publisher.status.delivered == 20 and asked_of.refused == 300)
        ask(broker.settings, "line1", "ping")
    assert len(heard.on("/alarm")) == 20


def test_a_stopped_agent_sends_again_when_it_starts(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(ConfigurationError, match="there is no ledger yet"):
        requeue_in_file(path, "line1", (1, 2), None)
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, 9)
        ledger.mark_delivered([one.id for one in ledger.pending_messages(after=0, limit=99)])
        ledger.flush()
        assert requeue_in_file(path, "line1", (1, 2), None) is None
    assert requeue_in_file(path, "line1", (3, 5), None) == 3
    assert requeue_in_file(path, "line1", (3, 5), "0" * 12) == 0
    with Ledger(path, agent_id="line1") as ledger:
        assert ledger.pending == 3
        found = ledger.pending_messages(after=0, limit=99)
        assert [json.loads(one.message.payload)["sequence"] for one in found] == [3, 4, 5]
