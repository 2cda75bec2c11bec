"""What the plant costs the line: metrics that are scraped, Sparkplug, and peers that misbehave.

    python -m benchmarks.plant --bundle models/line --out benchmarks/results/plant.json

A line with its ledger and an MQTT sink at a real mosquitto inspects the demo's frames as fast as it
can, in blocks: without, with, with, without. A twelfth of the parts is NG. With means

    metrics          the service, scraped every second
    metrics, flood   the same, while a peer opens connections without end, with a wrong token
    sparkplug        a second sink, which sends each part
    sparkplug, flood the same, while a host asks for births without end

Peers are processes of priority nice 19. `ratio` is parts a second with it over without it, and
`between` the bounds of 95 % of 2 000 resamplings of the turns. `cpu_ratio` is the same of the parts
for each second of processor time of agent and child, which other work on the machine changes less.
`--bundle` names one of the size that a line has; the demo's is so small that all else counts.

`cost_ms` is the processor time of the agent's own thread for one scrape, for one connection that is
refused, and for a part's Sparkplug message; `--turns 0` measures only this.
"""

import argparse
import logging
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from agent.bench import FramesCamera
from agent.cameras.conveyor import ConveyorSettings
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.part import State
from agent.services.metrics import MetricsSettings
from agent.services.metrics.server import MetricsServer
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.sparkplug import SparkplugSettings, metrics
from agent.sinks.sparkplug.payload import encoded
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.status import (
    BOUNDS_S,
    CameraStatus,
    Histogram,
    LedgerStatus,
    SinkStatus,
    Status,
)
from agent.synthetic.flange import part
from benchmarks.broker import mosquitto
from benchmarks.feed import Spent, Turn, compared, cpu_rate, rate
from benchmarks.machine import cpu_s, described, write_result
from engine.bundle import open_bundle
from engine.frame import Pixels

KINDS = ("metrics", "metrics, flood", "sparkplug", "sparkplug, flood")
_FRAMES = 24
_ORDER = (False, True, True, False)
_PORT = 19_464
_TIMES = 100

_SCRAPE = """
import os, sys, time, urllib.request
os.nice(19)
while True:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=5).read()
    except OSError:
        pass
    time.sleep(1.0)
"""
_CONNECT = """
import os, socket, sys, time
os.nice(19)
request = b"GET /metrics HTTP/1.1\\r\\nAuthorization: Bearer wrong\\r\\n\\r\\n"
open_ones = []
while True:
    try:
        open_ones.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=0.1))
        open_ones[-1].sendall(request[: len(open_ones) % len(request)])
    except OSError:
        pass
    open_ones = open_ones[-1000:]
    time.sleep(0.001)
"""
_ASK = """
import os, sys, time
os.nice(19)
import paho.mqtt.client as paho
client = paho.Client(paho.CallbackAPIVersion.VERSION2)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_start()
rebirth = b"\\x12\\x1a\\x0a\\x14Node Control/Rebirth\\x20\\x0b\\x70\\x01"
while True:
    client.publish("spBv1.0/bench/NCMD/bench", rebirth)
    time.sleep(0.001)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="by default the demo's")
    parser.add_argument("--turns", type=int, default=6, help="turns of each kind")
    parser.add_argument("--seconds", type=float, default=4.0, help="the length of a block")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    frames = [part(0, number, 0.1).pixels for number in range(_FRAMES)]
    turns: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
    cost = costs()
    setup = Setup(bundle=options.bundle, bundle_id=open_bundle(options.bundle).id)
    with (
        tempfile.TemporaryDirectory() as folder,
        mosquitto(Path(folder)) as port,
        ChildInspector(setup) as inspector,
    ):
        scores = [inspector.inspect(frame).score for frame in frames]
        model = Model(threshold=float(np.quantile(scores, 11 / 12))).on(inspector)
        block(inspector, model, frames, port, 1.0, "")  # warms up
        for _ in range(options.turns):
            for kind in random.sample(KINDS, len(KINDS)):
                spent = {True: Spent(parts=0, wall_s=0, cpu_s=0)}
                spent[False] = spent[True]
                for is_beside in _ORDER:
                    spent[is_beside] += block(
                        inspector, model, frames, port, options.seconds, kind if is_beside else ""
                    )
                turns[kind].append(Turn(without=spent[False], beside=spent[True]))
    without = [one.without for found in turns.values() for one in found]
    result = {
        "machine": described(),
        "command": " ".join(["python -m benchmarks.plant", *sys.argv[1:]]),
        "cost_ms": cost,
        "network_mb": round((options.bundle / "network.onnx").stat().st_size / 1e6, 1),
        "parts_per_second_without": round(rate(without), 1) if without else None,
        "kinds": {
            kind: {
                **compared("ratio", "between", found, rate),
                **compared("cpu_ratio", "cpu_between", found, cpu_rate),
                "turns": [
                    [round(rate([one.without]), 1), round(rate([one.beside]), 1)] for one in found
                ],
            }
            for kind, found in turns.items()
            if found
        },
    }
    write_result(result, options.out)


class Well:
    """What a service watches: an agent with one camera and one sink."""

    def status(self) -> Status:
        nothing = Histogram(counts=(0,) * (len(BOUNDS_S) + 1), total_s=0.0)
        return Status(
            time_ns=0,
            uptime_s=0.0,
            agent_id="bench",
            epoch="0" * 12,
            bundle_id="b" * 64,
            calibration_id="c" * 64,
            backend="",
            threshold=1.0,
            calibrated_threshold=1.0,
            cameras={"main": CameraStatus(triggers=0, counts=dict.fromkeys(State, 0))},
            latencies=dict.fromkeys(("wait", "inspect", "end_to_end"), nothing),
            sinks={"mqtt": SinkStatus(is_connected=True)},
            ledger=LedgerStatus(),
        )

    def age_s(self) -> float:
        return 0.0


def costs() -> dict[str, float]:
    """Milliseconds of processor time, by what is done."""
    found = {}
    with MetricsServer(MetricsSettings(port=_PORT), Well()):
        thread = next(each for each in threading.enumerate() if each.name == "atac-metrics")
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        for name, request in (
            ("scrape", b"GET /metrics HTTP/1.1\r\n\r\n"),
            ("refused", b"x\r\n\r\n"),
        ):
            began = time.clock_gettime(clock)
            for _ in range(_TIMES):
                with socket.create_connection(("127.0.0.1", _PORT)) as connection:
                    connection.sendall(request)
                    while connection.recv(65_536):
                        pass
            found[name] = (time.clock_gettime(clock) - began) / _TIMES * 1e3
    values = metrics.part(None)
    began = time.thread_time()
    for number in range(100 * _TIMES):
        encoded(metrics.at(values, number), time_ms=number, seq=number % 256, has_types=False)
    found["sparkplug part"] = (time.thread_time() - began) / (100 * _TIMES) * 1e3
    return {name: round(cost, 3) for name, cost in found.items()}


def block(
    inspector: ChildInspector,
    model: Model,
    frames: list[Pixels],
    port: int,
    seconds: float,
    kind: str,
) -> Spent:
    """What the line did in `seconds`, with what `kind` names beside it."""
    sink = MqttSettings(host="127.0.0.1", port=port, drain_s=0)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            agent=AgentSettings(id="bench"),
            bundle=BundleSettings(path=Path(folder)),
            cameras=(ConveyorSettings(),),
            sinks=(sink,),
            ledger=LedgerSettings(path=Path(folder) / "ledger.sqlite"),
        )
        if kind.startswith("sparkplug"):
            plug = SparkplugSettings(host="127.0.0.1", port=port, group="bench", drain_s=0)
            config = replace(config, sinks=(sink, plug))
        if kind.startswith("metrics"):
            token = Path(folder) / "token"
            token.write_text("right" if kind.endswith("flood") else "")
            settings = MetricsSettings(port=_PORT, token_file=token if token.read_text() else None)
            config = replace(config, services=(settings,))
        with peer(kind, port):
            cpu = cpu_s("self", inspector.pid)
            summary = run_station(
                config,
                cameras=[FramesCamera(frames, seconds=seconds, interval_s=0.0)],
                inspector=inspector,
                model=model,
                stop=threading.Event(),
            )
            cpu = cpu_s("self", inspector.pid) - cpu
    return Spent(parts=summary.triggers, wall_s=summary.seconds, cpu_s=cpu)


@contextmanager
def peer(kind: str, port: int) -> Iterator[None]:
    """The process at the other end."""
    code = {
        "metrics": _SCRAPE,
        "metrics, flood": _CONNECT,
        "sparkplug, flood": _ASK,
    }.get(kind)
    if code is None:
        yield
        return
    at = _PORT if kind.startswith("metrics") else port
    with subprocess.Popen([sys.executable, "-c", code, str(at)]) as process:
        time.sleep(0.5)
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
