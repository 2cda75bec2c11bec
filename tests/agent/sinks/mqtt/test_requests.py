"""Requests over MQTT 5: obeyed when allowed, refused and counted otherwise."""

import json
import socket
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import agent
import agent.sinks.mqtt.requests
from agent.clock import SystemClock
from agent.mqtt.link import Heard, Link
from agent.mqtt.message import Message
from agent.part import State, is_alarm
from agent.record.annotations import threshold_in_file
from agent.record.ledger import Ledger
from agent.record.replay import requeue_in_file
from agent.record.rows import utc
from agent.requests import RequestError, Requests
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.messages import Topics
from agent.sinks.mqtt.requests import (
    COMMANDS,
    REQUEST_MAX_BYTES,
    Budget,
    MqttRequests,
    ask,
    request_json,
)
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.mqtt.sink import MqttSink
from agent.station.threshold import Threshold
from agent.triggers.software import SoftwareTriggers
from engine.errors import BrokerError, ConfigurationError
from tests.records import add, settle

SCHEMAS = Path(agent.__file__).parent / "schemas"
RESPONSE = "atac/line1/response/me"


def schema(name):
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


def soon(seconds=60.0):
    return utc(time.time_ns() + round(seconds * 1e9))


def sink_of(settings):
    return MqttSink(
        settings, agent_id="line1", is_alarm=lambda part: is_alarm(part.ended.state, "reject")
    )


def opened(path):
    return Ledger(path, agent_id="line1", sinks=[sink_of(MqttSettings(host="127.0.0.1"))])


@pytest.fixture
def ledger(tmp_path):
    with opened(tmp_path / "ledger.sqlite") as found:
        yield found


def obeying(ledger, **sources):
    return Requests(
        ledger,
        agent_id="line1",
        threshold=Threshold(ledger, calibrated=1.5, calibration_id="c1"),
        paused=threading.Event(),
        sources=sources,
    )


def requests(ledger, *allowed):
    settings = MqttSettings(host="127.0.0.1", commands=allowed or COMMANDS)
    return MqttRequests(settings, Topics(agent_id="line1"), obeying(ledger), replay)


def publishing(settings, ledger):
    return Deliverer(sink_of(settings), ledger, drain_s=settings.drain_s, requests=obeying(ledger))


def threshold(asked_of):
    return asked_of._requests._threshold.value


def is_paused(asked_of):
    return asked_of._requests._paused.is_set()


class NoLedger:
    epoch = "0" * 12

    def label(self, *_):
        return False

    def changed_threshold(self, _calibration_id):
        return None

    def change_threshold(self, _change):
        return False

    def use_nonce(self, *_, **__):
        return True


def replay(_epoch, first, last):
    return last - first + 1


def answer(asked_of, payload, topic=RESPONSE, correlation=None, **how):
    is_retained = how.pop("is_retained", False)
    heard = Heard(
        payload=payload, response_topic=topic, correlation=correlation, is_retained=is_retained
    )
    message = asked_of.answer(heard, **how)
    if message is None:
        return None
    assert message.topic == topic
    assert message.correlation == correlation
    told = json.loads(message.payload)
    schema("response").validate(told)
    return told


def end(ledger, count=1):
    add(ledger, *[State.ERROR] * count)
    assert ledger.flush(60)


def test_ping_and_threshold(ledger):
    asked_of = requests(ledger)
    told = answer(asked_of, request_json("ping", "nonce-01", soon()), correlation=b"\0\1")
    assert (told["command"], told["nonce"], told["ok"]) == ("ping", "nonce-01", True)
    assert (told["agent"], told["epoch"]) == ("line1", ledger.epoch)
    told = answer(asked_of, request_json("threshold", "nonce-02", soon()))
    assert told["result"] == {"threshold": 1.5, "calibrated": 1.5}
    assert (asked_of.accepted, asked_of.refused) == (2, 0)


def set_threshold(asked_of, nonce, value, by="Ada", **more):
    payload = request_json("set_threshold", nonce, soon(), threshold=value, by=by, **more)
    return answer(asked_of, payload)


def test_a_threshold_is_changed_on_record_and_over_restarts_of_the_same_calibration(tmp_path):
    def current(ledger, calibration="c1"):
        return Threshold(ledger, calibrated=1.5, calibration_id=calibration).value

    with opened(tmp_path / "ledger.sqlite") as ledger:
        end(ledger, 3)
        asked_of = requests(ledger)
        assert current(ledger) == 1.5
        assert set_threshold(asked_of, "nonce-01", 2)["result"] == {
            "threshold": 2.0,
            "calibrated": 1.5,
        }
        assert threshold(asked_of) == 2.0
        assert set_threshold(asked_of, "nonce-02", -0.25, by="Grace")["ok"]
        epoch = ledger.epoch
    file = sqlite3.connect(tmp_path / "ledger.sqlite")
    found = file.execute("SELECT who, nonce, old, new, after, epoch FROM thresholds")
    assert found.fetchall() == [
        ("Ada", "nonce-01", 1.5, 2.0, 3, epoch),
        ("Grace", "nonce-02", 2.0, -0.25, 3, epoch),
    ]
    file.close()
    with opened(tmp_path / "ledger.sqlite") as ledger:
        assert current(ledger) == -0.25
        assert current(ledger, "c2") == 1.5
        asked_of = requests(ledger)
        assert set_threshold(asked_of, "nonce-03", None)["result"]["threshold"] == 1.5
    with opened(tmp_path / "ledger.sqlite") as ledger:
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
    assert threshold(asked_of) == 1.5


@pytest.mark.parametrize("value", [-100, 0.24, 3.0, 1e9])
def test_a_threshold_outside_the_calibrations_scores_needs_force_and_is_a_fault(ledger, value):
    about = Threshold(ledger, calibrated=1.5, calibration_id="c1", scores=(0.25, 3.0))
    paused = threading.Event()
    asked_of = MqttRequests(
        MqttSettings(host="127.0.0.1", commands=COMMANDS),
        Topics(agent_id="line1"),
        Requests(ledger, agent_id="line1", threshold=about, paused=paused),
        replay,
    )
    told = set_threshold(asked_of, "nonce-01", value)
    assert "lies outside the scores of the calibration, 0.25 to 3: " in told["error"]
    assert told["error"].endswith("with force: true it is set all the same")
    assert (about.value, about.fault) == (1.5, None)
    assert set_threshold(asked_of, "nonce-02", value, force=True)["ok"]
    assert about.value == value
    assert about.fault.startswith(f"{value:.10g} lies outside")
    after = Threshold(ledger, calibrated=1.5, calibration_id="c1", scores=(0.25, 3.0))
    assert after.fault == about.fault
    assert set_threshold(asked_of, "nonce-03", None)["ok"]
    assert about.fault is None
    assert threshold_in_file(ledger._path, "c1") is None  # an agent has the file open


def test_a_calibrated_threshold_is_never_outside():
    for calibrated in (0.25, 3.0, 7.0):
        about = Threshold(NoLedger(), calibrated=calibrated, calibration_id="", scores=(0.25, 3.0))
        assert about.fault is None


def test_a_threshold_is_changed_only_where_that_is_allowed(ledger):
    asked_of = requests(ledger, "ping", "threshold")
    assert "mqtt.commands" in set_threshold(asked_of, "nonce-01", 2.0)["error"]
    assert threshold(asked_of) == 1.5


def test_a_threshold_that_cannot_be_put_on_record_stays_as_it_is(ledger, monkeypatch):
    asked_of = requests(ledger)
    monkeypatch.setattr(ledger._writer, "ask", lambda *_, **__: None)  # as with a disk that is away
    assert "the ledger cannot be written" in set_threshold(asked_of, "nonce-01", 2.0)["error"]
    assert threshold(asked_of) == 1.5


def test_pause_and_resume(ledger):
    asked_of = requests(ledger)
    for nonce, command, paused in [("nonce-01", "pause", True), ("nonce-02", "resume", False)]:
        told = answer(asked_of, request_json(command, nonce, soon()))
        assert told["result"]["paused"] is is_paused(asked_of) is paused


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
    found = ledger._writer.ask(lambda file: file.execute("SELECT * FROM labels").fetchall())
    assert [(row["epoch"], row["sequence"], row["label"]) for row in found] == [
        (ledger.epoch, 2, "good")
    ]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 4000, "Invalid JSON"),
        (b"[]", "be an object"),
        (b"{}", "command is missing; write ping, "),
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
        (
            request_json("shutdown", "nonce-01", "SOON"),
            "command 'shutdown' is not known; write ping, ",
        ),
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


@pytest.mark.parametrize(
    ("nonce", "told"), [("nonce-01", "nonce-01"), ("no/nonce", None), (17, None), (None, None)]
)
def test_a_refusal_names_the_request_by_its_nonce(ledger, nonce, told):
    found = answer(requests(ledger), request_json("shutdown", nonce, soon()))
    assert (found["command"], found["nonce"]) == (None, told)


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
    [
        "",
        "factory/stop",
        "atac/line2/response",
        "atac/line1/responses",
        "atac/line1/response/+",
        "atac/line1/response/\0",
        "atac/line1/response/\x1b[31m",
    ],
)
def test_nobody_makes_the_agent_speak_elsewhere(ledger, topic):
    asked_of = requests(ledger)
    assert answer(asked_of, request_json("pause", "nonce-01", soon()), topic=topic) is None
    assert (asked_of.accepted, asked_of.refused) == (0, 1)
    assert not is_paused(asked_of)


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
    asked_of = requests(NoLedger())
    assert answer(asked_of, payload)["ok"] is False


def test_schema_and_agent_accept_the_same_requests():
    known = schema("request")
    for command in ("ping", "threshold", "pause", "resume", "product"):
        known.validate(json.loads(request_json(command, "nonce-01", soon())))
    known.validate(json.loads(request_json("replay", "nonce-01", soon(), first=1, last=2)))
    for value in (1.5, None):
        arguments = {"threshold": value, "by": "Ada"}
        known.validate(json.loads(request_json("set_threshold", "nonce-01", soon(), **arguments)))
    forced = request_json("set_threshold", "nonce-01", soon(), threshold=1, by="Ada", force=True)
    known.validate(json.loads(forced))
    known.validate(json.loads(request_json("label", "nonce-01", soon(), id="a:b:1", label="good")))
    about = {"by": "Ada", "why": "a reason"}
    known.validate(json.loads(request_json("rollback", "nonce-01", soon(), **about)))
    switch = request_json("switch_product", "nonce-01", soon(), product="cola", **about)
    known.validate(json.loads(switch))
    about |= {"bundle_id": "0" * 64}
    known.validate(json.loads(request_json("promote", "nonce-01", soon(), **about)))
    about |= {"product": "cola", "camera": "side"}
    known.validate(json.loads(request_json("promote", "nonce-01", soon(), **about)))
    for wrong in [
        request_json("stop", "nonce-01", soon()),
        request_json("ping", "short", soon()),
        request_json("ping", "nonce-01", "tomorrow"),
        request_json("ping", "nonce-01", soon(), path="x"),
        request_json("replay", "nonce-01", soon(), first=0, last=2),
    ]:
        with pytest.raises(ValidationError):
            known.validate(json.loads(wrong))


def test_a_request_is_obeyed_once_also_after_a_restart(tmp_path):
    path = tmp_path / "ledger.sqlite"
    pause = request_json("pause", "nonce-01", soon())
    with opened(path) as ledger:
        asked_of = requests(ledger)
        assert answer(asked_of, pause)["ok"]
        assert answer(asked_of, request_json("resume", "nonce-02", soon()))["ok"]
    with opened(path) as ledger:
        asked_of = requests(ledger)
        assert answer(asked_of, pause)["error"] == "its nonce has been used"
        assert not is_paused(asked_of)
        assert answer(asked_of, request_json("pause", "nonce-03", soon()))["ok"]


def test_who_asks_is_cleaned_before_it_is_logged(ledger, caplog):
    asked_of = requests(ledger)
    assert set_threshold(asked_of, "nonce-01", 2.0, by="Ada\n\x1b[31mroot")["ok"]
    (said,) = [record.message for record in caplog.records]
    assert said.isprintable()


def test_nonces_are_bounded_and_forgotten_with_their_requests(ledger, monkeypatch):
    now = time.time()
    monkeypatch.setattr("agent.sinks.mqtt.requests._NONCES", 100)
    settings = MqttSettings(host="127.0.0.1", commands=COMMANDS)
    topics = Topics(agent_id="line1")
    asked_of = MqttRequests(settings, topics, obeying(ledger), replay, now=lambda: now)
    for n in range(100):
        assert answer(asked_of, request_json("ping", f"nonce-{n:03}", soon()))["ok"]
    told = answer(asked_of, request_json("ping", "nonce-100", soon()))
    assert told["error"] == "busy: too many requests; ask again later"
    now += 61
    assert answer(asked_of, request_json("ping", "nonce-101", soon(120)))["ok"]
    assert len(asked_of._nonces) == len(asked_of._expiring) == 1
    # Found by hash and forgotten from a heap: no request looks at all of them.
    assert isinstance(asked_of._nonces, set)


def test_correlation_data_count_in_the_size_of_a_packet():
    link = Link(MqttSettings(host="127.0.0.1"), "name")
    link.largest = 1000
    answer = Message(topic=RESPONSE, payload=b"x" * 100)
    assert link.allows(answer)
    assert link.allows(replace(answer, correlation=bytes(700)))
    assert not link.allows(replace(answer, correlation=bytes(900)))


def test_one_too_many_is_told_that_the_agent_is_busy(ledger):
    asked_of = requests(ledger)
    told = answer(asked_of, request_json("ping", "nonce-01", soon()), is_busy=True)
    assert told["error"] == "busy: too many requests; ask again later"
    assert answer(asked_of, request_json("ping", "nonce-01", soon()))["ok"]


def test_a_budget_bounds_rate_and_bytes_after_a_burst():
    now = 0.0
    budget = Budget(10, 5, 1000, now=lambda: now)
    assert [budget.take(10) for _ in range(7)] == [True] * 5 + [False] * 2
    now = 0.1
    assert [budget.take(10) for _ in range(2)] == [True, False]
    now = 10.0
    assert [budget.take(200) for _ in range(4)] == [True, True, False, False]
    assert budget.take(10)


@pytest.mark.broker
def test_a_replay_over_mqtt_fills_a_gap_behind_live_alarms(broker, ledger, hear, eventually):
    heard = hear(broker.settings)
    with publishing(broker.settings, ledger) as publisher:
        end(ledger, 70)
        eventually(lambda: ledger.waiting("mqtt") == 0 and publisher.status().delivered == 70)
        assert ask(broker.settings, "line1", "replay", first=11, last=60) == {
            "epoch": ledger.epoch,
            "messages": 50,
        }
        eventually(lambda: publisher.status().delivered == 120 and ledger.waiting("mqtt") == 0)
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
    monkeypatch.setattr(agent.sinks.mqtt.requests, "ANSWER_S", 0.5)
    settings = MqttSettings(host=broker.settings.host, port=broker.settings.port, commands=())
    with publishing(settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        with pytest.raises(BrokerError, match=r"line1 does not answer; is ping in its mqtt\.comm"):
            ask(settings, "line1", "ping")
    with pytest.raises(ConfigurationError, match="need MQTT 5"):
        ask(MqttSettings(host="localhost", version="3.1.1"), "line1", "ping")


@pytest.mark.broker
def test_a_flood_of_rubbish_delays_nothing(broker, ledger, hear, eventually):
    heard = hear(broker.settings)
    with publishing(broker.settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        ask(broker.settings, "line1", "ping")
        with Link(broker.settings, "rubbish") as link:
            for n in range(300):
                link.publish(Message(topic="atac/line1/request", payload=b"{" * (n % 50)))
            link.publish(Message(topic="atac/line1/request", payload=b"x" * 200_000))
            end(ledger, 20)
            eventually(lambda: publisher.status().delivered == 20)
            assert publisher.status().requests_refused < 300  # the agent takes its time
            eventually(lambda: publisher.status().requests_refused == 300)
        eventually(lambda: pinged(broker.settings))
    assert len(heard.on("/alarm")) == 20


def pinged(settings):
    try:
        return ask(settings, "line1", "ping")
    except RequestError:  # busy
        return None


def odd_request(broker, *, retain, qos=1):
    """A request that paho gives to nobody: its user property holds a byte order mark."""
    topic = b"atac/line1/request"
    properties = b"\x26" + b"\x00\x01k" + b"\x00\x03\xef\xbb\xbf"
    body = len(topic).to_bytes(2, "big") + topic
    body += b"\x00\x07" if qos else b""
    body += bytes([len(properties)]) + properties + b"{}"
    connect = b"\x00\x04MQTT\x05\x02\x00\x3c\x00" + b"\x00\x03odd"
    with socket.create_connection((broker.host, broker.port)) as peer:
        peer.sendall(bytes([0x10, len(connect)]) + connect)
        peer.recv(100)
        peer.sendall(bytes([0x30 | qos << 1 | retain, len(body)]) + body)
        if qos:
            peer.recv(100)
        peer.sendall(b"\xe0\x00")


@pytest.mark.broker
@pytest.mark.parametrize("qos", [0, 1])
def test_a_packet_that_cannot_be_parsed_costs_one_request(broker, ledger, eventually, caplog, qos):
    odd_request(broker, retain=1)
    with publishing(broker.settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        assert ask(broker.settings, "line1", "ping")["paused"] is False
        assert publisher.status().requests_refused == 0
        for n in range(3):
            odd_request(broker, retain=n % 2, qos=qos)
            eventually(lambda n=n: publisher.status().requests_refused == n + 1)
        ask(broker.settings, "line1", "ping")
        end(ledger, 10)
        eventually(lambda: publisher.status().delivered == 10)
        assert publisher.status().fault is None
    assert not caplog.records


@pytest.mark.broker
def test_a_retained_request_is_not_obeyed(broker, ledger, eventually):
    with publishing(broker.settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        ask(broker.settings, "line1", "ping")
        with Link(broker.settings, "keeper") as link:
            link.publish(
                Message(
                    topic="atac/line1/request",
                    payload=request_json("ping", "nonce-01", soon()),
                    response_topic=RESPONSE,
                    retain=True,
                )
            )
            eventually(lambda: publisher.status().requests_refused == 1)
    with publishing(broker.settings, ledger) as publisher:
        ask(broker.settings, "line1", "ping")
        assert publisher.status().requests_refused == 0


@pytest.mark.broker
def test_a_response_that_the_broker_takes_not_is_no_alarms_fault(start_broker, ledger, eventually):
    broker = start_broker(extra="max_packet_size 3000")
    with publishing(broker.settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        ask(broker.settings, "line1", "ping")
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, "greedy", protocol=paho.MQTTv5)
        client.connect(broker.host, broker.port)
        client.loop_start()
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = RESPONSE
        properties.CorrelationData = bytes(2750)
        payload = request_json("ping", "nonce-01", soon())
        client.publish("atac/line1/request", payload, 1, properties=properties)
        eventually(lambda: publisher.status().requests == 2)
        end(ledger, 5)
        eventually(lambda: publisher.status().delivered == 5)
        assert publisher.status().fault is None
        ask(broker.settings, "line1", "ping")
        client.disconnect()
        client.loop_stop()


@pytest.mark.broker
def test_an_agent_that_may_not_read_requests_does_all_else(start_broker, ledger, eventually):
    broker = start_broker(acl="topic write atac/line1/#\n")
    with publishing(broker.settings, ledger) as publisher:
        end(ledger, 5)
        eventually(lambda: publisher.status().delivered == 5)
        assert publisher.status().fault is None


def test_a_stopped_agent_sends_again_when_it_starts(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(ConfigurationError, match="there is no ledger yet"):
        requeue_in_file(path, "line1", ["mqtt"], (1, 2), None)
    with opened(path) as ledger:
        end(ledger, 9)
        settle(ledger, *ledger.waiting_for("mqtt", after=0, limit=99))
        ledger.flush(60)
        assert requeue_in_file(path, "line1", ["mqtt"], (1, 2), None) is None
    assert requeue_in_file(path, "line1", ["mqtt"], (3, 5), None) == 3
    assert requeue_in_file(path, "line1", ["mqtt"], (3, 5), "0" * 12) == 0
    with opened(path) as ledger:
        assert ledger.waiting("mqtt") == 3
        found = ledger.waiting_for("mqtt", after=0, limit=99)
        assert [event.sequence for _, event in found] == [3, 4, 5]


def test_a_part_is_announced_by_request():
    stop = threading.Event()
    left, right = SoftwareTriggers(stop, SystemClock()), SoftwareTriggers(stop, SystemClock())
    asked = obeying(NoLedger(), left=left, right=right)
    assert asked.trigger("left", "A-17") == {"camera": "left", "part_id": "A-17"}
    assert left.read().part_id == "A-17"
    for camera in (None, "middle"):
        with pytest.raises(RequestError, match="write left or right"):
            asked.trigger(camera, None)
    assert obeying(NoLedger(), left=left).trigger(None, None)["camera"] == "left"
    with pytest.raises(RequestError, match="none has trigger"):
        obeying(NoLedger()).trigger(None, None)
