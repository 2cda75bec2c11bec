"""Parts that are announced over MQTT, by a real broker."""

import json
import threading
from contextlib import contextmanager
from functools import partial

import pytest

from agent.cameras.scripted import ScriptedCamera, scripted_frame
from agent.clock import SystemClock
from agent.mqtt.link import Link
from agent.mqtt.message import Message
from agent.registry import open_trigger
from agent.settings import load_config
from agent.station.run import run_station
from agent.station.station import Model
from agent.triggers.mqtt import MqttTriggerSettings
from engine.errors import ConfigurationError, TriggerError
from engine.scripted_inspector import BrightnessInspector
from tests.agent.station.test_station import rows

pytestmark = pytest.mark.broker
TOPIC = "line3/part"


def settings_of(broker, **more):
    return MqttTriggerSettings(**{"topic": TOPIC, "host": broker.host, "port": broker.port} | more)


@contextmanager
def hearing(broker, **more):
    with open_trigger(settings_of(broker, **more), threading.Event(), SystemClock()) as source:
        yield source


@pytest.fixture
def publish(broker):
    with Link(broker.settings, "line") as link:

        def send(payload=b"", *, topic=TOPIC, retain=False, **properties):
            message = Message(
                topic=topic,
                payload=payload if isinstance(payload, bytes) else json.dumps(payload).encode(),
                retain=retain,
                properties=tuple(properties.items()),
            )
            link.publish(message)

        yield send


@pytest.mark.parametrize(
    ("options", "payload", "properties", "told"),
    [
        ({}, b"A-17\r\n", {}, ("A-17", None)),
        ({}, "Ä17".encode(), {}, ("Ä17", None)),
        ({}, b"", {}, (None, None)),
        ({}, b"\xff", {}, (None, None)),
        ({}, b"x" * 129, {}, (None, None)),
        ({"payload": "none"}, b"A-17", {}, (None, None)),
        ({"payload": "json"}, {"part_id": "A-17", "count": 4}, {}, ("A-17", 4)),
        ({"payload": "json"}, {"part_id": 17, "count": "4"}, {}, ("17", 4)),
        ({"payload": "json"}, {"part_id": ["A"], "count": -1}, {}, (None, None)),
        ({"payload": "json"}, b"[1]", {}, (None, None)),
        ({"payload": "json"}, b"{", {}, (None, None)),
        ({"payload": "json", "part_id_key": "sn"}, {"sn": "A"}, {}, ("A", None)),
        ({"part_id_property": "serial"}, b"x", {"serial": "A-17"}, ("A-17", None)),
        ({"part_id_property": "serial"}, b"x", {}, (None, None)),
        ({"count_property": "n"}, b"A-17", {"n": "12"}, ("A-17", 12)),
    ],
)
def test_a_message_announces_a_part(broker, publish, options, payload, properties, told):
    with hearing(broker, **options) as source:
        publish(payload, **properties)
        heard = source.read()
        assert (heard.part_id, heard.count) == told
        assert heard.is_trigger


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_what_a_broker_has_kept_is_no_part(broker, publish, version):
    publish(b"old", retain=True)
    with hearing(broker, version=version) as source:
        publish(b"new")
        assert source.read().part_id == "new"


def test_wildcards_hear_several_topics(broker, publish):
    with hearing(broker, topic="line3/+/part") as source:
        publish(b"other", topic="line3/part")
        publish(b"a", topic="line3/left/part")
        publish(b"b", topic="line3/right/part")
        assert [source.read().part_id for _ in range(2)] == ["a", "b"]


def test_a_broker_that_goes_is_said_and_heard_again(broker, publish):
    source = open_trigger(settings_of(broker), threading.Event(), SystemClock())
    with source:
        broker.kill()
        with pytest.raises(TriggerError, match="connection was lost"):
            source.read()
    with pytest.raises(TriggerError, match=f"127.0.0.1:{broker.port}: Connection refused"):
        source.__enter__()
    broker.start()
    with source, Link(broker.settings, "line") as link:
        link.publish(Message(topic=TOPIC, payload=b"a"))
        assert source.read().part_id == "a"


def test_a_broker_that_does_not_let_us_hear_is_said(start_broker):
    broker = start_broker(users={"line": "x"}, acl="user line\ntopic read other\n")
    with pytest.raises(TriggerError, match="refused the connection"):
        open_trigger(settings_of(broker), threading.Event(), SystemClock()).__enter__()


class Watched:
    """A source that says when it is connected and what it has heard."""

    def __init__(self, source):
        self.source, self.connected, self.heard = source, threading.Event(), 0

    def __enter__(self):
        self.source.__enter__()
        self.connected.set()
        return self

    def __exit__(self, *_):
        self.source.__exit__()

    def read(self):
        announcement = self.source.read()
        self.heard += 1
        return announcement


def test_parts_of_a_line_get_the_ids_of_their_messages(broker, publish, tmp_path, eventually):
    """Message, frame, verdict, three times, through the real station."""
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: test}\nbundle: {path: none}\nmqtt: {host: 127.0.0.1, port: 1, drain_s: 0}\n"
        f"camera: {{type: conveyor, trigger: {{type: mqtt, host: {broker.host}, "
        f"port: {broker.port}, topic: {TOPIC}, payload: json, max_ms: 20_000}}}}\n"
    )
    config, stop = load_config(path), threading.Event()
    source = Watched(open_trigger(config.cameras[0].trigger, stop, SystemClock()))

    def arrives(number):
        publish({"part_id": f"A-{number}", "count": number})
        eventually(lambda: source.heard > number)

    script = [lambda: source.connected.wait(60)]
    for number in range(3):
        script += [partial(arrives, number), scripted_frame(40 + 10 * number)]
    summary = run_station(
        config,
        cameras=[ScriptedCamera(*script)],
        triggers={"main": source},
        inspector=BrightnessInspector(),
        model=Model(threshold=0.5),
        parts=3,
        stop=stop,
    )
    assert summary.inspected == 3
    assert [row[1:3] for row in rows(config)] == [("A-0", "OK"), ("A-1", "OK"), ("A-2", "NG")]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("topic: a/#/b", "stands for a whole level"),
        ("topic: a+/b", "stands for a whole level"),
        ('topic: "#"', "stands for a whole level"),
        ("topic: a, version: 3.1.1, count_property: n", "user properties need version: 5"),
        ("topic: a, window: 3", "unknown key"),
        ("topic: a, password: x", "passwords do not belong here"),
        ("max_ms: 5", "camera.trigger.topic: is missing"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(tmp_path, keys, said):
    path = tmp_path / "agent.yaml"
    trigger = f"{{type: mqtt, host: h, {keys}}}"
    path.write_text(
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\n"
        f"camera: {{type: conveyor, trigger: {trigger}}}\n"
    )
    with pytest.raises(ConfigurationError, match=said):
        load_config(path)


def test_a_file_that_is_not_there_is_named_by_its_key(broker, tmp_path):
    settings = settings_of(broker, user="line", password_file=tmp_path / "none")
    with pytest.raises(ConfigurationError, match=r"trigger\.password_file"):
        open_trigger(settings, threading.Event(), SystemClock())
