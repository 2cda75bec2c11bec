"""How long alarms take while others flood the agent with requests.

    python -m benchmarks.flood --out benchmarks/results/flood.json

Twenty alarms a second go from a ledger over mosquitto to a consumer; another process publishes
0, 50, 400 and 10 000 requests a second. Latencies are from the call that records a part to the
consumer, in milliseconds; the four rates take turns.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from agent.mqtt.link import Subscriber
from agent.part import Part, State, Trigger, Verdict
from agent.record.ledger import Ledger
from agent.requests import Requests
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.mqtt.sink import MqttSink
from agent.station.threshold import Threshold
from benchmarks.broker import mosquitto
from benchmarks.machine import described, write_result

RATES = (0, 50, 400, 10_000)
_ALARMS_PER_S = 20
_FLOOD = """
import signal, sys, time
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
port, rate = int(sys.argv[1]), float(sys.argv[2])
client = paho.Client(paho.CallbackAPIVersion.VERSION2, "flood", protocol=paho.MQTTv5)
client.max_queued_messages_set(1000)
client.connect("127.0.0.1", port)
client.loop_start()
properties = Properties(PacketTypes.PUBLISH)
properties.ResponseTopic = "atac/line1/response/flood"
begun, sent, over = time.monotonic(), 0, []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
while not over:
    while sent < (time.monotonic() - begun) * rate:
        payload = b'{"command": "ping", "nonce": "n%09d", "expires": "%s"}' % (
            sent, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 60)).encode())
        client.publish("atac/line1/request", payload, 0, properties=properties)
        sent += 1
        if over or sent % 100 == 0 and client._out_packet and len(client._out_packet) > 5000:
            break
    time.sleep(0.001)
print(sent / (time.monotonic() - begun), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate in each round")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[int, list[float]] = {rate: [] for rate in RATES}
    came: dict[int, list[float]] = {rate: [] for rate in RATES}
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder)) as port:
        for number in range(options.rounds):
            for rate in RATES:
                path = Path(folder) / f"{number}-{rate}.sqlite"
                latencies, sent = latencies_ms(path, port, rate, options.seconds)
                found[rate] += latencies
                came[rate].append(sent)
    result = {
        "machine": described(),
        "command": f"python -m benchmarks.flood --rounds {options.rounds}",
        "requests_per_s": {
            str(rate): {
                "sent_per_s": round(float(np.median(came[rate]))),
                "alarms": len(each),
                "p50_ms": round(float(np.percentile(each, 50)), 1),
                "p99_ms": round(float(np.percentile(each, 99)), 1),
                "max_ms": round(max(each), 1),
            }
            for rate, each in found.items()
        },
    }
    write_result(result, options.out)


def latencies_ms(path: Path, port: int, rate: float, seconds: float) -> tuple[list[float], float]:
    """Of every alarm, in one run with so many requests a second, and how many there were."""
    settings = MqttSettings(host="127.0.0.1", port=port)
    sink = MqttSink(settings, agent_id="line1", is_alarm=lambda _part: True)
    begun: dict[int, float] = {}
    heard: dict[int, float] = {}

    def hear(_topic: str, payload: bytes) -> None:
        heard.setdefault(json.loads(payload)["sequence"], time.perf_counter())

    with Ledger(path, agent_id="line1", sinks=[sink]) as ledger:
        requests = Requests(
            ledger,
            agent_id="line1",
            threshold=Threshold(ledger, calibrated=1.0, calibration_id=""),
            paused=threading.Event(),
        )
        with (
            Deliverer(sink, ledger, requests=requests) as deliverer,
            Subscriber(settings, "atac/line1/alarm", hear),
        ):
            while not deliverer.status().is_connected:
                time.sleep(0.01)
            flood = subprocess.Popen(
                [sys.executable, "-c", _FLOOD, str(port), str(rate)], stdout=subprocess.PIPE
            )
            try:
                time.sleep(2.0)
                for _ in range(round(seconds * _ALARMS_PER_S)):
                    part = an_alarm(ledger)
                    begun[part.trigger.sequence] = time.perf_counter()
                    ledger.record(part)
                    time.sleep(1 / _ALARMS_PER_S)
            finally:
                flood.terminate()
                sent, _ = flood.communicate()
            until = time.monotonic() + 60
            while len(heard) < len(begun) and time.monotonic() < until:
                time.sleep(0.01)
    assert heard.keys() == begun.keys()
    return [(heard[n] - begun[n]) * 1e3 for n in begun], float(sent)


def an_alarm(ledger: Ledger) -> Part:
    trigger = Trigger(
        sequence=ledger.next_sequence("main"), camera="main", triggered_ns=time.time_ns()
    )
    part = Part(trigger=trigger, received=0.0, part_id="part")
    ledger.expect(part)
    part.verdict = Verdict(state=State.NG, decided_ns=time.time_ns(), threshold=1.0)
    return part


if __name__ == "__main__":
    main()
