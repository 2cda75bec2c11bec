"""Brokers that are reached or built differently, and Home Assistant."""

import json

import pytest
from jinja2 import Environment

from agent.mqtt.settings import TlsSettings
from agent.sinks.mqtt.home_assistant import discovery
from agent.sinks.mqtt.messages import Topics, health
from agent.sinks.mqtt.probe import probe
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.status import SinkStatus
from tests.agent.sinks.mqtt.test_sink import end, leaves_a_socket, opened, publishing, sequences
from tests.agent.statuses import status
from tests.ports import free_port


@pytest.fixture
def ledger(tmp_path):
    with opened(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


@pytest.fixture
def websockets(start_broker):
    """A mosquitto that takes websockets beside plain MQTT; `websockets()` gives its settings."""
    port = free_port()
    broker = start_broker(extra=f"listener {port} 127.0.0.1\nprotocol websockets\n")

    def settings(**changes):
        return MqttSettings(host="127.0.0.1", port=port, transport="websockets", **changes)

    settings.broker = broker
    return settings


@pytest.mark.broker
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_alarms_go_over_websockets(websockets, ledger, hear, eventually, version):
    heard = hear(websockets.broker.settings)
    settings = websockets(version=version)
    assert f"answers MQTT {version}" in probe(settings, "line1").answer
    with publishing(settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
        end(ledger, count=50)
        eventually(lambda: publisher.status().delivered == 50)
    eventually(lambda: heard.on("/state")[-1:] == [b"offline"])
    assert sequences(heard) == list(range(1, 51))


@pytest.mark.broker
def test_a_websocket_that_breaks_is_opened_again(websockets, ledger, hear, eventually, monkeypatch):
    monkeypatch.setattr("agent.sinks.delivery._RETRY_FIRST_S", 0.05)
    with publishing(websockets(), ledger) as publisher:
        end(ledger, count=5)
        eventually(lambda: publisher.status().delivered == 5)
        websockets.broker.kill()
        eventually(lambda: not publisher.status().is_connected)
        end(ledger, count=5)
        websockets.broker.start()
        eventually(lambda: publisher.status().delivered == 10)


@pytest.mark.broker
@leaves_a_socket
def test_a_port_without_websockets_is_said(broker, ledger, eventually):
    settings = MqttSettings(host=broker.host, port=broker.port, transport="websockets")
    with publishing(settings, ledger) as publisher:
        eventually(lambda: publisher.status().fault)
        assert publisher.status().fault.endswith("WebSocket handshake error")


@pytest.mark.broker
def test_a_broker_with_qos_0_only_is_refused_until_that_is_wanted(
    start_broker, ledger, hear, eventually
):
    broker = start_broker(extra="max_qos 0")
    with publishing(MqttSettings(host=broker.host, port=broker.port), ledger) as publisher:
        end(ledger, count=3)
        eventually(lambda: "set mqtt.max_qos: 0" in (publisher.status().fault or ""))
        assert publisher.status().delivered == 0
    settings = MqttSettings(host=broker.host, port=broker.port, max_qos=0)
    heard = hear(settings)
    assert not probe(settings, "line1").refused
    with publishing(settings, ledger) as publisher:
        eventually(lambda: publisher.status().delivered == 3)
    eventually(lambda: heard.on("/state")[-1:] == [b"offline"])
    assert sequences(heard) == [1, 2, 3]


@pytest.mark.broker
def test_home_assistant_is_told_once_where_that_is_wanted(broker, ledger, hear, eventually):
    topic = "homeassistant/device/atac_line1/config"
    with publishing(broker.settings, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
    wanted = MqttSettings(host=broker.host, port=broker.port, home_assistant=True)
    heard = hear(broker.settings)
    with publishing(wanted, ledger) as publisher:
        eventually(lambda: publisher.status().is_connected)
    eventually(lambda: heard.on("/state")[-1:] == [b"offline"])
    assert [name for name, _ in heard.messages].count(topic) == 1
    late = hear(broker.settings, "homeassistant/#")  # it is retained
    eventually(
        lambda: late.messages == [message for message in heard.messages if "home" in message[0]]
    )


def test_its_entities_read_what_is_said_anyway():
    topics = Topics(agent_id="line 3", template="plant/{agent}/{what}")
    message = discovery(topics)
    told = json.loads(message.payload)
    assert message.retain
    (node,) = told["device"]["identifiers"]
    assert message.topic == f"homeassistant/device/{node}/config"
    assert " " not in message.topic
    assert told["availability"] == [{"topic": "plant/line 3/state"}]
    topics_of = {entity["platform"]: entity for entity in told["components"].values()}
    assert topics_of["sensor"]["state_topic"] == "plant/line 3/health"
    assert topics_of["image"]["image_topic"] == "plant/line 3/thumbnail"
    sinks = {"mqtt": SinkStatus(is_connected=True)}
    content = json.loads(health(topics, "mqtt", status(sinks=sinks)).payload)
    read = {
        key.rpartition("atac_")[2]: Environment(autoescape=True)
        .from_string(entity["value_template"])
        .render(value_json=content)
        for key, entity in told["components"].items()
        if "value_template" in entity
    }
    assert len(read) == 8
    assert {"OFF", "0", "0.0"} <= set(read.values())
    unique = [entity["unique_id"] for entity in told["components"].values()]
    assert len(set(unique)) == len(unique) == 9
    other = discovery(Topics(agent_id="line_3"))
    assert other.topic != message.topic


def test_the_keys_of_a_connection_are_checked():
    for changes in ({"path": "mqtt"}, {"path": "/a b"}, {"transport": "ws"}, {"max_qos": 2}):
        with pytest.raises(ValueError, match=r"path|transport|max_qos"):
            MqttSettings(host="h", **changes)
    assert MqttSettings(host="h", tls=TlsSettings(), transport="websockets").path == "/mqtt"
