"""An edge node at a real broker, held to the specification by the ids of its test kit.

`tck-id-…` names are those of Sparkplug 3.0; each stands where it is asserted.
"""

import contextlib
import itertools
import json
import re
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import paho.mqtt.client as paho
import pytest

import agent.sinks.sparkplug.sink as module
from agent.mqtt.settings import TlsSettings
from agent.part import State, is_alarm
from agent.record.ledger import Ledger
from agent.requests import Requests
from agent.sinks.delivery import Deliverer
from agent.sinks.sparkplug import SparkplugSettings
from agent.sinks.sparkplug.probe import probe
from agent.sinks.sparkplug.sink import SparkplugSink
from agent.station.status import SinkStatus
from engine.errors import BrokerError
from tests.agent.parts import ended
from tests.agent.sinks.mqtt.test_sink import leaves_a_socket
from tests.agent.sinks.sparkplug.schema import command, decoded
from tests.agent.sinks.sparkplug.test_payload import decoded_by_javascript
from tests.agent.statuses import camera_status, status
from tests.records import add

pytestmark = pytest.mark.broker

NODE = "spBv1.0/Plant/{}/line1"
TYPES = {4, 10, 11, 12, 13}


class Host:
    """Hears the plant, in order, with QoS and whether it is retained; a context manager."""

    def __init__(self, broker):
        self.heard = []
        self._broker = broker
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)

    def __enter__(self):
        subscribed = threading.Event()
        self._client.on_message = lambda _client, _data, message: self.heard.append(message)
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect(self._broker.host, self._broker.port)
        self._client.subscribe("spBv1.0/#", qos=1)
        self._client.loop_start()
        assert subscribed.wait(60)
        return self

    def __exit__(self, *_):
        self._client.disconnect()
        self._client.loop_stop()

    def say(self, kind, payload, device=None, *, retain=False):
        topic = NODE.format(kind) + (f"/{device}" if device else "")
        self._client.publish(topic, payload, qos=0).wait_for_publish(10)

    def state(self, name="scada", *, online, later_s=0):
        at = time.time_ns() // 1_000_000 + later_s * 1000
        self.state_is(json.dumps({"online": online, "timestamp": at}), name)

    def state_is(self, said, name="scada"):
        self._client.publish(f"spBv1.0/STATE/{name}", said, qos=1, retain=True).wait_for_publish(10)

    def kinds(self):
        return [message.topic.split("/")[2] for message in self.heard]

    def payloads(self, kind):
        return [decoded(m.payload) for m in self.heard if m.topic.split("/")[2] == kind]

    def parts(self):
        """The sequences of all parts that were told, and whether each was historical."""
        told = [metrics_of(each).get("Part/Sequence") for each in self.payloads("DDATA")]
        return [(each.long_value, each.is_historical) for each in told if each is not None]


def metrics_of(payload):
    return {metric.name: metric for metric in payload.metrics}


@pytest.fixture
def host(broker):
    with Host(broker) as host:
        yield host


def settings_of(broker, **changes):
    return SparkplugSettings(host=broker.host, port=broker.port, group="Plant", **changes)


def sink_of(settings):
    return SparkplugSink(
        settings, agent_id="line1", is_alarm=lambda part: is_alarm(part.ended.state, "reject")
    )


@pytest.fixture
def ledger(tmp_path, broker):
    sink = sink_of(settings_of(broker))
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1", sinks=[sink]) as ledger:
        yield ledger


@pytest.fixture
def deliver(ledger):
    """Deliver with these settings; requests are counted, and none can be more than that."""

    def make(settings):
        requests = Requests(ledger, agent_id="line1", threshold=None, paused=threading.Event())
        return Deliverer(sink_of(settings), ledger, drain_s=2, requests=requests)

    return make


def told(**changes):
    cameras = {"main": camera_status(OK=3), "side/2": camera_status(NG=1)}
    return status(
        **{"cameras": cameras, "sinks": {"mqtt": SinkStatus(is_connected=True)}, **changes}
    )


def end(ledger, *states):
    add(ledger, *states, reason="test")


def test_a_session_from_its_birth_to_its_death(broker, host, ledger, deliver, eventually):
    with deliver(settings_of(broker)) as delivering:
        delivering.report(told())
        eventually(lambda: host.kinds() == ["NBIRTH", "DBIRTH", "DBIRTH"])
        end(ledger, State.OK, State.NG)
        eventually(lambda: len(host.parts()) == 2)
        delivering.report(told(uptime_s=70.0, faults=("camera main: gone",)))
        eventually(lambda: "NDATA" in host.kinds())
    eventually(lambda: "NDEATH" in host.kinds())

    nbirth, ndeath = host.payloads("NBIRTH")[0], host.payloads("NDEATH")[0]
    for message in host.heard:
        kind = message.topic.split("/")[2]
        # tck-id-topic-structure, tck-id-topics-nbirth-topic, tck-id-topics-dbirth-topic, …
        own = NODE.format(kind)
        assert message.topic in {own, f"{own}/main", f"{own}/side%2F2"}
        assert (message.topic == own) == (kind in {"NBIRTH", "NDATA", "NDEATH"})
        # tck-id-payloads-nbirth-qos, -dbirth-qos, -ndata-qos, -ddata-qos; -ndeath-will-message-qos
        assert message.qos == (kind == "NDEATH")
        # tck-id-payloads-nbirth-retain, -dbirth-retain, -ndata-retain, -ddata-retain
        assert not message.retain
        payload = decoded(message.payload)
        # tck-id-payloads-nbirth-timestamp, -dbirth-, -ndata-, -ddata-timestamp
        assert abs(payload.timestamp - time.time() * 1000) < 60_000
        # tck-id-payloads-name-requirement: without aliases every metric has its name
        assert all(metric.name and not metric.HasField("alias") for metric in payload.metrics)
        # tck-id-case-sensitivity-metric-names
        assert len({metric.name.lower() for metric in payload.metrics}) == len(payload.metrics)
        # tck-id-payloads-name-birth-data-requirement, tck-id-payloads-metric-timestamp-in-UTC
        times = [metric.timestamp for metric in payload.metrics]
        assert all(abs(at - time.time() * 1000) < 60_000 for at in times)
        # tck-id-operational-behavior-data-publish-nbirth-order, -dbirth-order
        assert times == sorted(times)
        # tck-id-payloads-metric-datatype-req, and -not-req: types in births alone
        if kind.endswith("BIRTH"):
            assert {metric.datatype for metric in payload.metrics} <= TYPES
        elif kind != "NDEATH":
            assert not any(metric.HasField("datatype") for metric in payload.metrics)
        # tck-id-operational-behavior-data-publish-nbirth-values, -dbirth-values
        for metric in payload.metrics:
            values = [f.name for f, _ in metric.ListFields() if f.name.endswith("_value")]
            assert len(values) == (not metric.is_null)

    # tck-id-payloads-sequence-num-zero-nbirth, tck-id-payloads-sequence-num-req-nbirth,
    # tck-id-payloads-sequence-num-incrementing; -nbirth-seq, -ddata-seq-inc, …
    numbers = [decoded(m.payload).seq for m in host.heard if "NDEATH" not in m.topic]
    assert numbers == list(range(len(numbers)))
    # tck-id-payloads-dbirth-order, -ndata-order, -ddata-order; -birth-certificates-order
    assert host.kinds()[:3] == ["NBIRTH", "DBIRTH", "DBIRTH"]
    assert host.kinds()[-1] == "NDEATH"
    # tck-id-topics-ddeath-seq-num, tck-id-operational-behavior-device-ddeath
    assert host.kinds()[-3:-1] == ["DDEATH", "DDEATH"]
    # tck-id-topics-nbirth-bdseq-included, -bdseq-matching; tck-id-topics-ndeath-seq
    assert metrics_of(nbirth)["bdSeq"].long_value == metrics_of(ndeath)["bdSeq"].long_value == 0
    assert metrics_of(nbirth)["bdSeq"].datatype == 4
    assert not ndeath.HasField("seq")
    # tck-id-payloads-ndeath-bdseq: and nothing else
    assert list(metrics_of(ndeath)) == ["bdSeq"]
    # tck-id-topics-nbirth-rebirth-metric, …-rebirth-name, -datatype, -value
    rebirth = metrics_of(nbirth)["Node Control/Rebirth"]
    assert (rebirth.datatype, rebirth.boolean_value) == (11, False)
    # tck-id-operational-behavior-data-publish-nbirth, -dbirth: births have every metric
    births = [metrics_of(each) for each in (*host.payloads("NBIRTH"), *host.payloads("DBIRTH"))]
    for kind, birth in (("NDATA", births[0]), ("DDATA", births[1])):
        assert {metric for each in host.payloads(kind) for metric in metrics_of(each)} <= set(birth)
    # tck-id-operational-behavior-data-publish-nbirth-change: what has not changed is not told
    (ndata,) = host.payloads("NDATA")
    assert set(metrics_of(ndata)) == {"Health/Degraded", "Health/Reasons"}


def test_what_a_part_was_can_be_read(broker, host, ledger, deliver, eventually):
    with deliver(settings_of(broker, types_in_data=True)) as delivering:
        delivering.report(told())
        eventually(lambda: delivering.status().is_connected)
        end(ledger, State.ERROR)
        eventually(host.parts)
    eventually(lambda: host.kinds()[-1] == "NDEATH")
    session = decoded_by_javascript(*(message.payload for message in host.heard))
    for kind, read in zip(host.kinds(), session, strict=True):
        assert ("seq" in read) == (kind != "NDEATH")
        assert all(metric["type"] for metric in read["metrics"])
    (part,) = [each for each, kind in zip(session, host.kinds(), strict=True) if kind == "DDATA"]
    values = {metric["name"]: metric["value"] for metric in part["metrics"]}
    assert values["Part/Id"] == f"line1:{ledger.epoch}:1"
    assert (values["Part/State"], values["Part/OK"]) == ("ERROR", False)
    assert (values["Part/Reason"], values["Part/Score"]) == ("test", None)


def test_alarms_alone_where_that_is_configured(broker):
    sink = sink_of(settings_of(broker, parts="alarms"))
    assert sink.items(ended(1, State.NG)) == ("part",)
    assert sink.items(ended(2, State.OK)) == ()


def test_a_broken_connection_is_a_death_by_will_and_the_next_birth_has_the_next_number(
    broker, host, ledger, deliver, eventually, monkeypatch
):
    monkeypatch.setattr("agent.sinks.delivery._RETRY_FIRST_S", 0.05)
    with deliver(settings_of(broker)) as delivering:
        delivering.report(told())
        eventually(lambda: len(host.payloads("DBIRTH")) == 2)
        delivering._sink._link.close(says_farewell=False)
        end(ledger, State.NG)  # while there is no connection
        eventually(lambda: len(host.payloads("DBIRTH")) == 4)
        eventually(host.parts)
    # tck-id-message-flow-edge-node-birth-publish-will-message, tck-id-payloads-ndeath-bdseq
    assert host.kinds().index("NDEATH") < host.kinds().index("NBIRTH", 1)
    # tck-id-topics-nbirth-bdseq-increment: by one with every CONNECT, the will's first
    bd_seqs = [metrics_of(each)["bdSeq"].long_value for each in host.payloads("NBIRTH")]
    deaths = [metrics_of(each)["bdSeq"].long_value for each in host.payloads("NDEATH")]
    assert bd_seqs == deaths == [0, 1]
    # tck-id-payloads-name-birth-data-requirement, is_historical: it tells of earlier
    assert host.parts() == [(1, True)]


def test_an_attempt_without_connect_has_no_number(broker, host, ledger, deliver, eventually):
    settings = settings_of(broker)
    broker.kill()
    sink = sink_of(settings)
    for _ in range(2):
        with pytest.raises(BrokerError, match="refused"):
            sink.connect()
    broker.start()
    sink.connect()
    # tck-id-topics-nbirth-bdseq-increment: zero in the first CONNECT
    assert sink._bd_seq == 0
    sink.disconnect(is_stopping=True)


def connect_packet(settings):
    """What a node sends first, as a broker that never answers reads it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = sink_of(replace(settings, port=server.getsockname()[1]))

        def connect():
            with contextlib.suppress(BrokerError):
                sink.connect()

        thread = threading.Thread(target=connect)
        thread.start()
        server.settimeout(20)
        connection, _ = server.accept()
        with connection:
            packet = connection.recv(4096)
        thread.join(20)
    return packet


@pytest.mark.parametrize(("version", "level"), [("3.1.1", 4), ("5", 5)])
def test_the_first_packet_asks_for_a_clean_session_and_leaves_a_will(broker, version, level):
    packet = connect_packet(settings_of(broker, version=version))
    name = packet.index(b"\0\4MQTT") + 6
    flags = packet[name + 1]
    assert packet[name] == level
    # tck-id-principles-persistence-clean-session-311, -50: and no session outlives its connection
    assert flags & 0x02
    if version == "5":
        assert packet[name + 4 :][: 1 + packet[name + 4]].count(0x11) == 0  # no session expiry
    # tck-id-payloads-ndeath-will-message, -qos, -retain
    assert flags & 0x04
    assert (flags >> 3) & 3 == 1
    assert not flags & 0x20
    # tck-id-message-flow-edge-node-birth-publish-will-message-topic, -payload, -payload-bdSeq
    topic = NODE.format("NDEATH").encode()
    at = packet.index(topic) + len(topic)
    size = int.from_bytes(packet[at : at + 2])
    assert metrics_of(decoded(packet[at + 2 :][:size]))["bdSeq"].long_value == 0


def test_with_mqtt_5_the_farewell_leaves_the_will(broker, host, ledger, deliver, eventually):
    with deliver(settings_of(broker, version="5")) as delivering:
        delivering.report(told())
        eventually(lambda: delivering.status().is_connected and host.payloads("DBIRTH"))
    # tck-id-payloads-ndeath-will-message-publisher-disconnect-mqtt50: its own, and the will
    eventually(lambda: host.kinds()[-2:] == ["NDEATH", "NDEATH"])


def test_numbers_go_from_255_to_0(broker, host, ledger, deliver, eventually):
    delivering = deliver(settings_of(broker))
    delivering._sink._bd_seq = 254
    with delivering:
        delivering.report(told())
        eventually(lambda: delivering.status().is_connected)
        end(ledger, *[State.OK] * 300)
        eventually(lambda: len(host.parts()) == 300)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.sinks.delivery._RETRY_FIRST_S", 0.05)
            delivering._sink._link.close(says_farewell=False)
            eventually(lambda: len(host.payloads("NBIRTH")) == 2)
    numbers = [decoded(m.payload).seq for m in host.heard if "DDATA" in m.topic]
    # tck-id-payloads-sequence-num-incrementing
    assert numbers[:254] == [*range(3, 256), 0]
    bd_seqs = [metrics_of(each)["bdSeq"].long_value for each in host.payloads("NBIRTH")]
    assert bd_seqs == [255, 0]


def test_a_host_may_ask_for_births_and_for_nothing_else(
    broker, host, ledger, deliver, eventually, monkeypatch
):
    monkeypatch.setattr(module, "_REBIRTH_S", 0.0)
    with deliver(settings_of(broker)) as delivering:
        delivering.report(told())
        eventually(lambda: len(host.payloads("DBIRTH")) == 2)
        end(ledger, State.OK)
        eventually(host.parts)
        refused = (
            *(b"", b"\xff" * 40, b"x" * 20_000),
            *(command(value=False), command("Node Control/Reboot")),
        )
        for payload in refused:
            host.say("NCMD", payload)
        host.say("DCMD", command(), "main")
        eventually(lambda: delivering.status().requests_refused == len(refused) + 1)
        assert len(host.payloads("NBIRTH")) == 1
        # tck-id-operational-behavior-data-commands-rebirth-action-1, -2, -3
        host.say("NCMD", command())
        eventually(lambda: len(host.payloads("DBIRTH")) == 4)
        assert delivering.status().requests == 1
    births = host.payloads("NBIRTH")
    # tck-id-payloads-nbirth-bdseq-repeat: no new CONNECT, so no new number
    assert [metrics_of(each)["bdSeq"].long_value for each in births] == [0, 0]
    assert [each.seq for each in births] == [0, 0]
    # The birth has the newest part.
    assert metrics_of(host.payloads("DBIRTH")[2])["Part/Sequence"].long_value == 1


def test_between_a_request_for_births_and_the_births_there_is_no_data(
    broker, host, ledger, deliver, eventually
):
    with deliver(settings_of(broker)) as delivering:
        delivering.report(told())
        eventually(lambda: len(host.payloads("DBIRTH")) == 2)
        host.say("NCMD", command())
        eventually(lambda: delivering.status().requests == 1)
        end(ledger, State.OK)
        delivering.report(told(uptime_s=70.0, faults=("camera main: gone",)))
        eventually(host.parts)
    # tck-id-operational-behavior-data-commands-rebirth-action-1
    again = host.kinds().index("NBIRTH", 1)
    assert host.kinds()[:again] == ["NBIRTH", "DBIRTH", "DBIRTH", "NCMD"]


@pytest.mark.parametrize("changes", [{"group": "a/b"}, {"node": "a+"}, {"primary_host": "a#"}])
def test_a_name_that_is_no_level_of_a_topic_is_refused(changes):
    with pytest.raises(ValueError, match="without / "):
        SparkplugSettings(**{"host": "broker", "group": "Plant"} | changes)


def test_the_document_names_each_statement_once_and_tests_that_exist():
    told = (Path(__file__).parents[4] / "docs" / "sparkplug.md").read_text()
    rows = [line.split("|") for line in told.splitlines() if line.startswith("| `")]
    rows = [row for row in rows if "-" in row[1]]
    named = [name for row in rows for name in re.findall(r"`(test_\w+)`", row[2])]
    assert named
    assert not set(named) - set(globals())
    ids = [
        each for row in rows for text in re.findall(r"`([^`]+)`", row[1]) for each in spread(text)
    ]
    assert len(ids) == len(set(ids))
    held = re.findall(r"tck-id-([a-z][\w-]+\w)", Path(__file__).read_text())
    assert not {each for each in held if each not in ids}


def spread(text):
    """`a-{b,c}` is `a-b` and `a-c`."""
    parts = re.split(r"\{([^}]*)\}", text)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(each) for each in itertools.product(*choices)]


def test_a_flood_of_rebirths_is_answered_by_few(broker, host, deliver, eventually):
    with deliver(settings_of(broker)) as delivering:
        delivering.report(told())
        eventually(lambda: len(host.payloads("DBIRTH")) == 2)
        for _ in range(120):
            host.say("NCMD", command())
        eventually(lambda: delivering.status().requests_refused > 20)
        assert len(host.payloads("NBIRTH")) < 10


def test_with_a_primary_host_parts_wait_until_it_is_online(
    broker, host, ledger, deliver, eventually, monkeypatch
):
    monkeypatch.setattr("agent.sinks.delivery._RETRY_FIRST_S", 0.05)
    monkeypatch.setattr(module, "_HOST_S", 0.2)
    with deliver(settings_of(broker, primary_host="scada")) as delivering:
        delivering.report(told())
        end(ledger, State.NG)
        eventually(lambda: "scada is not online" in (delivering.status().fault or ""))
        # tck-id-message-flow-edge-node-birth-publish-phid-wait-id, -online
        host.state("other", online=True)
        for said in (b"", b"ONLINE", b'{"online": 1, "timestamp": 1}', b'{"online": true}'):
            host.state_is(said)
        eventually(lambda: delivering.status().requests_refused == 4)
        # tck-id-operational-behavior-edge-node-birth-sequence-wait
        assert not {"NBIRTH", "NDEATH"} & set(host.kinds())  # it waits, and connects but once
        # tck-id-message-flow-edge-node-birth-publish-phid-wait-timestamp: the same time will do
        now = time.time_ns() // 1_000_000
        for online in (False, True):
            host.state_is(json.dumps({"online": online, "timestamp": now}))
        eventually(host.parts)
        assert metrics_of(host.payloads("NBIRTH")[0])["bdSeq"].long_value == 0
        # tck-id-operational-behavior-edge-node-termination-host-offline-timestamp
        host.state(online=False, later_s=-60)
        eventually(lambda: delivering.status().requests_refused == 5)
        assert "NDEATH" not in host.kinds()
        host.state(online=False)
        # tck-id-message-flow-edge-node-birth-publish-phid-offline
        eventually(lambda: "NDEATH" in host.kinds())
        eventually(lambda: not delivering.status().is_connected)
        births = len(host.payloads("NBIRTH"))
        end(ledger, State.NG)
        # tck-id-message-flow-edge-node-birth-publish-phid-wait-timestamp
        host.state(online=True, later_s=-60)
        host.state(online=True)
        eventually(lambda: len(host.payloads("NBIRTH")) > births and len(host.parts()) == 2)
    assert {sequence for sequence, _ in host.parts()} == {1, 2}


def test_a_new_camera_is_born_and_a_part_of_an_unknown_one_is_refused(
    broker, host, ledger, deliver, eventually
):
    with deliver(settings_of(broker)) as delivering:
        delivering.report(replace(told(), cameras={"side": camera_status()}))
        eventually(lambda: delivering.status().is_connected and host.payloads("DBIRTH"))
        end(ledger, State.OK)
        eventually(lambda: delivering.status().refused == 1)
        assert "there is no camera main now" in delivering.status().fault
        delivering.report(told())
        eventually(lambda: len(host.payloads("NBIRTH")) == 2)


@leaves_a_socket
def test_a_broker_whose_certificate_is_another_s_hears_nothing(
    start_broker, certify, ledger, deliver, eventually
):
    certificate = certify("localhost")
    broker = start_broker(tls=certificate)
    settings = settings_of(broker, tls=TlsSettings(ca_file=certificate.ca_file))
    with deliver(settings) as delivering:  # 127.0.0.1 is not in it
        end(ledger, State.NG)
        eventually(lambda: "certificate" in (delivering.status().fault or ""))
    assert ledger.waiting("sparkplug") == 1


def test_a_broker_that_reads_nothing_holds_up_nobody(broker, ledger, deliver, eventually):
    with deliver(settings_of(broker)) as delivering:
        delivering.report(told())
        eventually(lambda: delivering.status().is_connected)
        broker.pause()
        began = time.monotonic()
        end(ledger, *[State.NG] * 2000)
        assert time.monotonic() - began < 10
        broker.kill()
    assert ledger.waiting("sparkplug") + delivering.status().delivered == 2000


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_both_versions_of_mqtt_do(broker, host, ledger, deliver, eventually, version):
    with deliver(settings_of(broker, version=version)) as delivering:
        delivering.report(told())
        eventually(lambda: delivering.status().is_connected)
        end(ledger, State.OK)
        eventually(host.parts)
    eventually(lambda: "NDEATH" in host.kinds())


RIGHTS = """user a
topic write spBv1.0/Plant/+/line1/#
topic read spBv1.0/Plant/NCMD/line1
topic read spBv1.0/Plant/DCMD/line1/#
topic read spBv1.0/STATE/scada
"""


def test_a_broker_is_asked_before_the_line_needs_it(start_broker, tmp_path):
    broker = start_broker(users={"a": "b"}, acl=RIGHTS)
    (tmp_path / "password").write_text("b")
    settings = settings_of(broker, user="a", password_file=tmp_path / "password")
    said, missing = probe(settings, "line1", ["main"])
    assert said.endswith("answers MQTT 3.1.1; spBv1.0/Plant/…/line1 may read commands and write")
    assert not missing
    acl = RIGHTS.replace("line1/#\ntopic read", "line1\ntopic read", 1)
    settings = replace(settings, port=start_broker(users={"a": "b"}, acl=acl).port)
    with pytest.raises(BrokerError, match=r"refuses spBv1.0/Plant/DBIRTH/line1/main, .*; check"):
        probe(settings, "line1", ["main"])
    with pytest.raises(BrokerError, match="Not authori"):
        probe(settings_of(broker), "line1", [])


def test_a_primary_host_that_is_away_is_said_before_the_line_needs_it(broker, host, monkeypatch):
    monkeypatch.setattr("agent.sinks.sparkplug.probe._HOST_S", 0.2)
    settings = settings_of(broker, primary_host="scada")
    assert "scada is not online" in probe(settings, "line1", [])[1][0]
    host.state(online=True)
    assert not probe(settings, "line1", [])[1]
