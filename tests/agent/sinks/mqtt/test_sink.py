import json
import logging
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import paho.mqtt.client as paho
import pytest

import agent.mqtt.link
import agent.sinks.delivery
from agent.mqtt.link import Link, Subscriber
from agent.mqtt.message import Message
from agent.mqtt.settings import TlsSettings
from agent.part import State, is_alarm
from agent.record.ledger import Ledger
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.broker import EmbeddedBroker
from agent.sinks.mqtt.messages import delivered
from agent.sinks.mqtt.probe import probe
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.mqtt.sink import MqttSink
from agent.station.status import SinkStatus
from engine.errors import BrokerError, ConfigurationError
from tests.agent.statuses import status
from tests.records import add

pytestmark = pytest.mark.broker

# paho leaves a socket whose TLS handshake failed to the garbage collector.
leaves_a_socket = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def sink_of(settings):
    return MqttSink(
        settings, agent_id="line1", is_alarm=lambda part: is_alarm(part.ended.state, "reject")
    )


@pytest.fixture
def ledger(tmp_path):
    with opened(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def opened(path):
    """A ledger that asks what an MQTT sink wants; the sink's broker is of no account."""
    return Ledger(path, agent_id="line1", sinks=[sink_of(MqttSettings(host="127.0.0.1"))])


def publishing(settings, ledger):
    return Deliverer(sink_of(settings), ledger, drain_s=settings.drain_s)


def end(ledger, *, count=1, state=State.ERROR):
    """Parts that arrive and end at once, with their alarms."""
    add(ledger, *[state] * count, reason="test")


def health(publisher, **changes):
    """What the station tells its sinks."""
    sinks = {"mqtt": SinkStatus(is_connected=True)}
    publisher.report(status(sinks=sinks, **changes))


def with_(settings, **changes):
    return MqttSettings(host=settings.host, port=settings.port, **changes)


@contextmanager
def alarms(broker):
    """The alarms that a subscriber hears, with their properties."""
    got = []
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda _client, _data, message: got.append(message)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect(broker.host, broker.port)
    client.subscribe("atac/line1/alarm", qos=1)
    client.loop_start()
    try:
        assert subscribed.wait(60)
        yield got
    finally:
        client.disconnect()
        client.loop_stop()


def sequences(heard):
    return [json.loads(payload)["sequence"] for payload in heard.on("/alarm")]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_alarms_arrive_once_and_in_order_between_online_and_offline(
    broker, ledger, hear, version, eventually
):
    settings = with_(broker.settings, version=version)
    heard = hear(settings)
    with publishing(settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        end(ledger, count=200)
        eventually(lambda: publisher.status().delivered == 200 and ledger.waiting("mqtt") == 0)
        status = publisher.status()
    eventually(lambda: heard.messages[-1] == ("atac/line1/state", b"offline"))
    assert heard.messages[0] == ("atac/line1/state", b"online")
    assert sequences(heard) == list(range(1, 201))
    assert status.is_connected
    assert status.fault is None
    assert (status.refused, status.pending) == (0, 0)


def test_presence_is_retained(broker, ledger, hear, eventually):
    with publishing(broker.settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        probe(broker.settings, "line1")  # whose own coming and going changes nothing
        heard = hear(broker.settings, "atac/line1/state")
        eventually(lambda: heard.messages == [("atac/line1/state", b"online")])
    heard = hear(broker.settings, "atac/line1/state")
    eventually(lambda: heard.messages == [("atac/line1/state", b"offline")])


def test_an_agent_that_vanishes_is_offline_by_its_will(broker, ledger, hear, eventually):
    """A connection that breaks without a farewell, as when the agent is killed."""
    heard = hear(broker.settings)
    offline = Message(topic="atac/line1/state", payload=b"offline", retain=True)
    link = Link(broker.settings, "atac-line1", will=offline)
    link.__enter__()
    link.close(says_farewell=False)
    eventually(lambda: heard.messages == [("atac/line1/state", b"offline")])


def test_starting_without_a_broker_says_so_once_and_loses_nothing(
    start_broker, ledger, hear, eventually, caplog, monkeypatch
):
    attempts, connect = [], MqttSink.connect
    monkeypatch.setattr(MqttSink, "connect", lambda self: attempts.append(1) or connect(self))
    monkeypatch.setattr("agent.sinks.delivery._RETRY_FIRST_S", 0.05)
    broker = start_broker()
    broker.kill()
    with publishing(broker.settings, ledger) as publisher:
        end(ledger, count=10)
        eventually(lambda: "refused" in (publisher.status().fault or ""))
        assert not publisher.status().is_connected
        eventually(lambda: len(attempts) > 4)
        warnings = [
            record.message for record in caplog.records if "waits in the ledger" in record.message
        ]
        assert warnings == [
            f"mqtt: what it wants waits in the ledger: 127.0.0.1:{broker.port}: Connection refused"
        ]
        broker.start()
        heard = hear(broker.settings)
        eventually(lambda: publisher.status().delivered == 10)
        assert publisher.status().fault is None
    assert set(sequences(heard)) <= set(range(1, 11))


def test_a_broker_that_is_killed_and_restarted_misses_no_alarm_and_hears_online_again(
    broker, ledger, hear, eventually
):
    with publishing(broker.settings, ledger) as publisher:
        end(ledger, count=50)
        eventually(lambda: publisher.status().delivered == 50)
        broker.kill()
        end(ledger, count=50)
        eventually(lambda: not publisher.status().is_connected)
        broker.start()
        heard = hear(broker.settings, "atac/line1/state")
        eventually(lambda: publisher.status().delivered == 100)
        eventually(lambda: heard.messages == [("atac/line1/state", b"online")])


def test_unacknowledged_messages_are_sent_again(ledger, eventually):
    """A broker that takes messages and dies before it acknowledges them."""
    with MuteBroker() as mute:
        settings = MqttSettings(
            host="127.0.0.1", port=mute.port, version="3.1.1", window=3, drain_s=0
        )
        with publishing(settings, ledger) as publisher:
            end(ledger, count=10)
            eventually(lambda: len(mute.connections) == 1 and mute.published() >= 3)
            time.sleep(0.2)  # would show a fourth
            first = mute.connections[0].published
            assert len(first) == 3  # `online` and two alarms: the window, no more
            mute.hang_up()
            eventually(lambda: len(mute.connections) == 2 and mute.published() == 6)
            assert publisher.status().delivered == 0
            again = mute.connections[1].published
            assert b'"sequence":1,' in first[1]
            assert b'"sequence":1,' in again[1]
            assert b'"sequence":2,' in again[2]
    assert ledger.waiting("mqtt") == 10


def test_a_message_that_is_sent_again_says_so(broker, ledger, eventually):
    end(ledger)
    ledger.flush(60)  # before the sender, which cannot know what came before itself
    with alarms(broker) as got, publishing(broker.settings, ledger):
        eventually(lambda: got)
    properties = got[0].properties.UserProperty
    assert properties == [
        ("id", f"line1:{ledger.epoch}:1"),
        ("previous", "0"),
        ("resent", "true"),
    ]


def test_messages_wait_for_the_next_run_of_the_agent(broker, tmp_path, hear, eventually):
    path = tmp_path / "kept.sqlite"
    with opened(path) as ledger:
        end(ledger, count=5)
    heard = hear(broker.settings)
    with opened(path) as ledger:
        assert ledger.waiting("mqtt") == 5
        with publishing(broker.settings, ledger):
            eventually(lambda: ledger.waiting("mqtt") == 0)
    with opened(path) as ledger, publishing(broker.settings, ledger):
        assert ledger.waiting("mqtt") == 0
    eventually(lambda: heard.on("/state") == [b"online", b"offline"] * 2)
    assert sequences(heard) == [1, 2, 3, 4, 5]


def test_stopping_sends_what_is_left(broker, ledger, hear, eventually):
    heard = hear(broker.settings)
    with publishing(broker.settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        end(ledger, count=300)
    assert ledger.waiting("mqtt") == 0
    eventually(lambda: len(sequences(heard)) == 300)


def test_only_the_latest_health_waits_for_a_broker(start_broker, ledger, hear, eventually):
    broker = start_broker()
    broker.kill()
    with publishing(broker.settings, ledger) as publisher:
        for number in range(20):
            health(publisher, uptime_s=float(number))
        eventually(lambda: publisher.status().fault)
        broker.start()
        heard = hear(broker.settings)
        eventually(lambda: publisher.status().is_connected)
        health(publisher, uptime_s=100.0)
        eventually(lambda: said(heard)[-1:] == [100.0])
    assert said(heard) in ([100.0], [19.0, 100.0])


def said(heard):
    return [json.loads(payload)["uptime_s"] for payload in heard.on("/health")]


def test_a_wrong_password_is_named_and_retried_slowly(start_broker, ledger, eventually, tmp_path):
    broker = start_broker(users={"line1": "right"})
    word = tmp_path / "word"
    word.write_text("wrong\n")
    settings = with_(broker.settings, user="line1", password_file=word)
    with publishing(settings, ledger) as publisher:
        end(ledger)
        eventually(lambda: "refused the connection" in (publisher.status().fault or ""))
        assert "check mqtt.user" in publisher.status().fault
        assert not publisher.status().is_connected
    assert ledger.waiting("mqtt") == 1
    word.write_text("right\n")
    with publishing(settings, ledger):
        eventually(lambda: ledger.waiting("mqtt") == 0)


def test_a_password_from_the_environment(start_broker, monkeypatch):
    broker = start_broker(users={"line1": "right"})
    monkeypatch.setenv("ATAC_TEST_WORD", "right")
    settings = with_(broker.settings, user="line1", password_variable="ATAC_TEST_WORD")
    assert "as line1" in probe(settings, "line1").answer
    monkeypatch.setenv("ATAC_TEST_WORD", "wrong")
    with pytest.raises(BrokerError, match="refused the connection") as caught:
        probe(settings, "line1")
    assert caught.value.is_refusal


def test_a_topic_that_the_broker_denies_is_not_delivered_and_said_once(
    start_broker, ledger, hear, eventually, caplog
):
    rules = "topic readwrite atac/line1/state\ntopic readwrite atac/line1/health\n"
    broker = start_broker(acl=rules)
    with publishing(broker.settings, ledger) as publisher:
        end(ledger, count=5)
        eventually(lambda: publisher.status().refused == 5)
        status = publisher.status()
        assert status.is_connected
        assert status.fault == "refuses alarm: Not authorized"
        assert status.delivered == 0
        eventually(lambda: (ledger.refused("mqtt"), ledger.waiting("mqtt")) == (5, 0))
        assert sum("mqtt refuses" in record.message for record in caplog.records) == 1

        broker.allow(rules + "topic readwrite atac/line1/alarm\n")
        eventually(lambda: end(ledger) or publisher.status().delivered)
        assert publisher.status().fault is None
        assert publisher.status().refused >= 5


def test_a_broker_of_the_older_version_only_is_named_as_such():
    with EmbeddedBroker() as old:
        with pytest.raises(BrokerError, match=r"set mqtt\.version: 3\.1\.1"):
            probe(MqttSettings(host=old.host, port=old.port), "line1")
        settings = MqttSettings(host=old.host, port=old.port, version="3.1.1")
        assert "answers MQTT 3.1.1" in probe(settings, "line1").answer


def test_tls_with_certificates_on_both_sides(start_broker, ledger, certify, eventually):
    broker = start_broker(tls=certify("127.0.0.1"), extra="require_certificate true")
    mine = certify("line1")
    tls = TlsSettings(
        ca_file=mine.ca_file, certificate_file=mine.certificate_file, key_file=mine.key_file
    )
    with publishing(with_(broker.settings, tls=tls), ledger) as publisher:
        end(ledger, count=3)
        eventually(lambda: publisher.status().delivered == 3)
    late = certify("late", days=-1)
    expired = TlsSettings(
        ca_file=late.ca_file, certificate_file=late.certificate_file, key_file=late.key_file
    )
    with pytest.raises(BrokerError, match=r"its own certificate .*late\.pem has expired"):
        probe(with_(broker.settings, tls=expired), "line1")
    nameless = with_(broker.settings, tls=TlsSettings(ca_file=mine.ca_file))
    with pytest.raises(BrokerError):
        probe(nameless, "line1")


@leaves_a_socket
@pytest.mark.parametrize(
    ("name", "days", "ours", "reason"),
    [
        ("another.example", 1, True, "certificate is not for '127.0.0.1': set mqtt.host"),
        ("127.0.0.1", -1, True, "certificate has expired"),
        ("127.0.0.1", 1, False, "certificate is not from mqtt.tls.ca_file"),
    ],
)
def test_a_certificate_that_does_not_prove_the_broker_is_refused(
    start_broker, certify, name, days, ours, reason
):
    certificate = certify(name, days=days)
    broker = start_broker(tls=certificate)
    tls = TlsSettings(ca_file=certificate.ca_file if ours else None)
    with pytest.raises(BrokerError, match=reason):
        probe(with_(broker.settings, tls=tls), "line1")


@leaves_a_socket
def test_tls_against_a_broker_without_it_and_the_reverse(start_broker, certify):
    plain, secure = start_broker(), start_broker(tls=certify("127.0.0.1"))
    with pytest.raises(BrokerError):
        probe(with_(plain.settings, tls=TlsSettings()), "line1")
    with pytest.raises(BrokerError, match="connection was lost"):
        probe(secure.settings, "line1")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"user": "a", "password_file": "/does/not/exist"}, "mqtt.password_file"),
        ({"user": "a", "password_variable": "ATAC_NOT_SET"}, "mqtt.password_variable"),
        ({"password_variable": "PATH"}, "mqtt.user"),
        ({"user": "a", "password_file": "x", "password_variable": "PATH"}, "password_variable"),
        ({"tls": {"ca_file": "/does/not/exist"}}, "mqtt.tls.ca_file"),
        ({"tls": {"ca_file": __file__}}, "mqtt.tls.ca_file"),
        ({"tls": {"certificate_file": __file__}}, "mqtt.tls.certificate_file"),
        ({"tls": {"key_file": __file__}}, "mqtt.tls.key_file"),
    ],
)
def test_settings_that_cannot_work_fail_before_the_network_is_touched(ledger, changes, key):
    settings = MqttSettings(host="no.such.host.invalid", **changes)
    with pytest.raises(ConfigurationError) as caught:
        sink_of(settings)
    assert key in caught.value.key


def test_a_host_that_does_not_exist_is_named(ledger):
    with pytest.raises(BrokerError, match=r"no\.such\.host\.invalid:1883: "):
        probe(MqttSettings(host="no.such.host.invalid"), "line1")


def test_a_message_larger_than_the_broker_takes_is_refused_and_the_others_arrive(
    start_broker, ledger, eventually
):
    broker = start_broker(extra="max_packet_size 2000")
    with publishing(broker.settings, ledger) as publisher:
        for size in (1500, 1900, 1000):
            add(ledger, State.NG, thumbnail=b"\xff\xd8" + bytes(size))
        eventually(lambda: publisher.status().delivered == 5)
        eventually(lambda: publisher.status().refused == 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"topic": "atac/line1/al\0arm"},
        {"topic": "atac/#"},
        {"topic": ""},
        {"topic": "a" * 70_000},
        {"topic": "atac/\ud800"},
        {"qos": 7},
        {"properties": (("id", "x" * 70_000),)},
        {"properties": (("id", "a\0b"),)},
        {"content_type": "\ud800"},
        {"payload": bytes(300_000_000)},
    ],
)
def test_a_message_that_cannot_be_sent_is_set_aside_and_named_and_the_others_arrive(
    broker, ledger, hear, eventually, monkeypatch, caplog, wrong
):
    def odd(topics, delivery, event):
        message = delivered(topics, delivery, event)
        return replace(message, **wrong) if event.sequence == 2 else message

    monkeypatch.setattr("agent.sinks.mqtt.sink.delivered", odd)
    heard = hear(broker.settings)
    end(ledger, count=5)
    assert ledger.flush(60)  # what is committed later is a live alarm, and goes first
    with publishing(with_(broker.settings, window=1), ledger) as publisher:
        eventually(lambda: publisher.status().delivered == 4 and ledger.waiting("mqtt") == 0)
        assert publisher.status().refused == 1
        assert publisher.status().is_connected
    assert sequences(heard) == [1, 3, 4, 5]
    assert any("refuses alarm: cannot be sent: " in line for line in caplog.messages)


def test_a_picture_that_cannot_be_one_is_refused_and_the_others_arrive(
    broker, ledger, eventually, caplog
):
    with publishing(broker.settings, ledger) as publisher:
        for picture in (b"GIF89a", b"\xff\xd8" + bytes(70_000), b"\xff\xd8"):
            add(ledger, State.NG, thumbnail=picture)
        eventually(lambda: publisher.status().delivered == 4)
        eventually(lambda: publisher.status().refused == 2)
    assert "refuses thumbnail: cannot be sent: ValueError: not a JPEG" in caplog.text


def test_a_broker_that_stops_acknowledging_is_left(broker, ledger, eventually, monkeypatch):
    monkeypatch.setattr(agent.sinks.delivery, "_ANSWER_S", 1.0)
    with publishing(with_(broker.settings, drain_s=0), ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        broker.pause()
        end(ledger)
        eventually(lambda: "acknowledges nothing" in (publisher.status().fault or ""))
    assert ledger.waiting("mqtt") == 1


def test_two_agents_of_one_name_are_told_apart(broker, ledger, tmp_path, eventually, monkeypatch):
    monkeypatch.setattr(agent.sinks.delivery, "_RETRY_FIRST_S", 0.05)
    with (
        opened(tmp_path / "other.sqlite") as other,
        publishing(broker.settings, ledger) as first,
    ):
        eventually(lambda: first.status().is_connected)
        with publishing(broker.settings, other):
            eventually(lambda: "own agent.id" in (first.status().fault or ""))


def test_health_is_published_past_the_ledger_when_it_is_due(broker, ledger, hear, eventually):
    heard = hear(broker.settings)
    with publishing(with_(broker.settings, health_s=10.0), ledger) as publisher:
        for uptime_s, faults in [
            (1.0, ()),
            (2.0, ()),
            (3.0, ("camera main: unplugged",)),
            (4.0, ("camera main: unplugged",)),
            (13.0, ("camera main: unplugged",)),
            (14.0, ()),
        ]:
            health(publisher, uptime_s=uptime_s, faults=faults)
            eventually(lambda: publisher._newest is None)
        eventually(lambda: len(said(heard)) == 4)
    assert said(heard) == [1.0, 3.0, 13.0, 14.0]
    assert publisher.status().delivered == 0


def test_messages_carry_their_properties_on_mqtt_5(broker, ledger, eventually):
    with alarms(broker) as got, publishing(broker.settings, ledger):
        end(ledger)
        end(ledger)
        eventually(lambda: len(got) == 2)
    assert got[0].qos == 1
    assert got[0].properties.ContentType == "application/json"
    for number, message in enumerate(got):
        properties = dict(message.properties.UserProperty)
        assert properties["id"] == f"line1:{ledger.epoch}:{number + 1}"
        assert properties["previous"] == f"{number}"


def test_nagle_is_off(broker):
    link = Link(broker.settings, "atac-line1")
    with link:
        connection = link._client.socket()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_subscription_that_the_broker_denies_is_an_error():
    with MuteBroker() as mute:
        settings = MqttSettings(host="127.0.0.1", port=mute.port, version="3.1.1")
        denied = Subscriber(settings, "other/#", lambda *_: None)
        with pytest.raises(BrokerError, match="refuses other/#"), denied:
            pass


def test_no_thread_is_left_behind(broker, ledger, eventually):
    before = set(threading.enumerate())
    with publishing(broker.settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
    assert set(threading.enumerate()) == before


class MuteBroker:
    """Speaks just enough MQTT 3.1.1 to accept connections; takes every
    message and acknowledges none."""

    def __enter__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.connections = []
        threading.Thread(target=self._serve).start()
        return self

    def __exit__(self, *_error):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self.connections:
            connection.close()

    def published(self) -> int:
        return sum(len(connection.published) for connection in self.connections)

    def hang_up(self) -> None:
        self.connections[-1].close()

    def _serve(self):
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            self.connections.append(MuteConnection(peer))


class MuteConnection:
    def __init__(self, peer):
        self._peer = peer
        self.published = []
        threading.Thread(target=self._read).start()

    def close(self):
        try:
            self._peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            logging.getLogger(__name__).debug("already closed")

    def _read(self):
        with self._peer, self._peer.makefile("rb") as stream:
            while (packet := self._packet(stream)) is not None:
                kind, content = packet
                if kind == 1:  # CONNECT → CONNACK
                    self._peer.sendall(b"\x20\x02\x00\x00")
                if kind == 8:  # SUBSCRIBE → SUBACK, denied
                    self._peer.sendall(b"\x90\x03" + content[:2] + b"\x80")
                if kind == 3:  # PUBLISH
                    self.published.append(content)

    @staticmethod
    def _packet(stream):
        try:
            if not (head := stream.read(1)):
                return None
            length = shift = 0
            while True:
                (byte,) = stream.read(1)
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return head[0] >> 4, stream.read(length)
        except (OSError, ValueError):
            return None
