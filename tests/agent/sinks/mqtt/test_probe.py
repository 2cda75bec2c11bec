"""Brokers that allow less than others: what the agent does there, and what `agent doctor` says."""

import socket
import threading

import pytest

from agent.mqtt.link import Link
from agent.part import State, is_alarm
from agent.record.ledger import Ledger
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.probe import probe
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.mqtt.sink import MqttSink
from engine.errors import BrokerError
from tests.records import add

pytestmark = pytest.mark.broker

NO_RETAIN = "retain_available false"
NO_QOS = "max_qos 0"
TOPICS = ("state", "health", "alarm", "thumbnail")


def version(broker, number, **more):
    return MqttSettings(host=broker.host, port=broker.port, version=number, **more)


def sink_of(settings):
    return MqttSink(
        settings, agent_id="line1", is_alarm=lambda part: is_alarm(part.ended.state, "reject")
    )


@pytest.mark.parametrize("number", ["5", "3.1.1"])
def test_a_broker_that_allows_all_is_well(broker, hear, number):
    heard = hear(broker.settings)
    found = probe(version(broker, number), "line1")
    assert (found.refused, found.missing) == ((), ())
    assert {topic.rpartition("/")[2] for topic, _ in heard.messages} <= {"doctor"}


@pytest.mark.parametrize("number", ["5", "3.1.1"])
def test_without_retained_messages_alarms_come_all_the_same(
    start_broker, tmp_path, hear, eventually, caplog, number
):
    broker = start_broker(extra=NO_RETAIN)
    settings = version(broker, number)
    (missing,) = probe(settings, "line1").missing
    assert missing.startswith("keeps no retained messages")
    heard, sink = hear(broker.settings), sink_of(settings)
    with (
        Ledger(tmp_path / "ledger.sqlite", agent_id="line1", sinks=[sink]) as ledger,
        Deliverer(sink, ledger) as deliverer,
    ):
        add(ledger, State.NG)
        eventually(lambda: deliverer.status().delivered == 1)
        assert deliverer.status().fault is None
    eventually(lambda: heard.messages[-1:] == [("atac/line1/state", b"offline")])
    assert sum("keeps no retained" in record.message for record in caplog.records) == 1


def test_without_qos_1_nothing_is_delivered_and_the_reason_is_named(start_broker):
    broker = start_broker(extra=NO_QOS)
    with pytest.raises(
        BrokerError, match="takes no message with QoS 1; let the broker take"
    ) as caught:
        probe(broker.settings, "line1")
    assert caught.value.is_refusal
    with pytest.raises(BrokerError, match="QoS not supported; let the broker take"):
        sink_of(broker.settings).connect()


@pytest.mark.parametrize("denied", [*TOPICS, "verdict"])
def test_the_topic_that_may_not_be_written_is_named_and_no_other(
    start_broker, hear, eventually, denied
):
    allowed = [topic for topic in (*TOPICS, "verdict") if topic != denied]
    rules = [f"topic write atac/line1/{topic}" for topic in allowed]
    rules += ["topic write atac/line1/response/#", "topic read atac/line1/request"]
    broker = start_broker(acl="\n".join([*rules, "topic read #", ""]))
    heard = hear(broker.settings)
    found = probe(version(broker, "5", every_part=True), "line1")
    (refused,) = found.refused
    assert f"atac/line1/{denied} (Not authorized)" in refused
    assert found.missing == ()
    eventually(lambda: heard.messages)
    assert {topic for topic, _ in heard.messages} == {"atac/line1/response/doctor"}


def test_a_broker_that_carries_no_answers_is_one_without_requests(start_broker):
    rules = [f"topic write atac/line1/{topic}" for topic in TOPICS]
    broker = start_broker(acl="\n".join([*rules, "topic read atac/line1/request", ""]))
    (missing,) = probe(broker.settings, "line1").missing
    assert missing.startswith("requests are not answered")
    assert probe(version(broker, "5", commands=()), "line1").missing == ()


@pytest.mark.parametrize(
    "packet",
    ["4000", "400100", "900101", "5000", "e00300ffff", "0000"],
)
def test_a_packet_that_no_broker_sends_ends_the_connection_and_no_thread(packet, eventually):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            peer, _ = server.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"\x20\x03\x00\x00\x00")
                peer.sendall(bytes.fromhex(packet))
                while peer.recv(1000):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        settings = MqttSettings(host="127.0.0.1", port=server.getsockname()[1])
        with Link(settings, "line1") as link:
            eventually(lambda: link.acknowledged(0.1))
        thread.join(60)
    assert not thread.is_alive()
