"""G4: a broker comes back to a backlog of more messages than MQTT has packet ids."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest

from agent.part import State
from agent.record.ledger import Ledger
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.mqtt.sink import MqttSink
from tests import records
from tests.faults.wire import Wire

pytestmark = pytest.mark.broker

ROOT = Path(__file__).parents[2]
RECEIVE_MAXIMUM = 15
LIVE_PER_S = 10


def sink_of(settings: MqttSettings) -> MqttSink:
    return MqttSink(settings, agent_id="line1", is_alarm=lambda _part: True)


def sending(settings: MqttSettings, ledger: Ledger) -> Deliverer:
    return Deliverer(sink_of(settings), ledger, drain_s=settings.drain_s)


def end(ledger: Ledger, part_id: str) -> None:
    part = records.begin(ledger, part_id, triggered_ns=time.time_ns())
    records.end(ledger, part, State.ERROR)


def listen(port: int, path: Path) -> None:
    """Note when each live alarm arrives, and how many have arrived in all."""
    heard = 0
    with path.open("w") as file:

        def hear(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
            nonlocal heard
            heard += 1
            now = time.time_ns()
            _, _, after = message.payload.partition(b'"part_id":"live-')
            if after:
                file.write(f"{after.partition(b'-')[0].decode()} {now}\n")
                file.flush()

        client = paho.Client(paho.CallbackAPIVersion.VERSION2, "listener", protocol=paho.MQTTv5)
        client.on_message = hear
        client.on_connect = lambda *_: client.subscribe("atac/line1/alarm", qos=0)
        client.connect("127.0.0.1", port)
        client.loop_forever()


def test_a_backlog_drains_within_the_window_and_behind_live_alarms(
    start_broker, tmp_path, eventually, is_full, record
):
    waiting = 66_000 if is_full else 1_500
    broker = start_broker(extra=f"max_inflight_messages {RECEIVE_MAXIMUM}")
    broker.kill()
    sinks = [sink_of(broker.settings)]
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1", sinks=sinks) as ledger:
        for n in range(waiting):
            end(ledger, f"part-{n}")
            if n % 5_000 == 0:
                assert ledger.flush(60)
        assert ledger.flush(60)
        assert ledger.waiting("mqtt") == waiting
        assert not ledger.lost

        # The window, on connections that break while it is full.
        with Wire(broker.port, hold_s=0.002) as wire:
            settings = MqttSettings(host="127.0.0.1", port=wire.port, window=500, drain_s=0)
            with sending(settings, ledger) as publisher:
                for n in range(1, 4):
                    broker.start()
                    eventually(lambda n=n: publisher.status().delivered > 100 * n)
                    broker.kill()
            peak, connections = wire.peak, wire.connections

        # The pace, with live alarms and a consumer that hears everything.
        broker.start()
        left = ledger.waiting("mqtt")
        path = tmp_path / "live"
        listener = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.test_g4_backlog", str(broker.port), path],
            cwd=ROOT,
        )
        try:
            eventually(path.exists)
            time.sleep(0.5)
            settings = MqttSettings(host="127.0.0.1", port=broker.port)
            live = 0
            with sending(settings, ledger) as publisher:
                began = time.monotonic()
                eventually(lambda: publisher.status().is_connected)
                while publisher.status().delivered < left + live:
                    end(ledger, f"live-{time.time_ns()}-")
                    live += 1
                    time.sleep(1 / LIVE_PER_S)
                    assert time.monotonic() - began < 600
                seconds = time.monotonic() - began
                eventually(lambda: len(path.read_text().splitlines()) >= live)
        finally:
            listener.kill()
            listener.wait()
        assert ledger.waiting("mqtt") == 0
        assert ledger.refused("mqtt") == 0
    pairs = np.array([line.split() for line in path.read_text().splitlines()], np.int64)
    latencies_s = (pairs[:, 1] - pairs[:, 0]) / 1e9
    rate = (left + live) / seconds
    p50, p99 = np.percentile(latencies_s, (50, 99))
    record(
        "g4",
        "backlog",
        waited=waiting,
        receive_maximum=RECEIVE_MAXIMUM,
        most_unacknowledged=peak,
        reconnections=connections - 1,
        drained_per_s=round(rate),
        live_alarms=live,
        live_alarm_p50_s=round(float(p50), 4),
        live_alarm_p99_s=round(float(p99), 4),
    )
    assert peak == RECEIVE_MAXIMUM
    assert connections >= 3
    if is_full:
        assert rate >= 1000
        assert p99 < 1


if __name__ == "__main__":
    listen(int(sys.argv[1]), Path(sys.argv[2]))
