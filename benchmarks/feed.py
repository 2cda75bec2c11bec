"""What readers of the feed cost the line: none, slow, stalled and dead ones in turns, in one run.

    python -m benchmarks.feed --out benchmarks/results/feed.json

The line inspects the demo's frames in its child process and records every part. Each reader is a
process at the end of a socket: `live` takes all that comes, `slow` waits after each part and so
falls behind and catches up, `stalled` reads nothing, `dead` is killed before the line begins.
`ratio` is the median over all rounds of parts/s with a reader over parts/s without, of the block
beside it. `cpu_ratio` is the same of the processor time of agent and child for each part, which
other work on the machine changes less.
"""

import argparse
import logging
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.bench import FramesCamera
from agent.cameras.conveyor import ConveyorSettings
from agent.clock import SystemClock
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.record.ledger import Ledger
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.controls import Controls
from agent.station.station import Model, Station
from agent.station.threshold import Threshold
from agent.synthetic.flange import part
from benchmarks.machine import cpu_s, described, write_result
from engine.bundle import open_bundle
from engine.frame import Pixels

READERS = ("live", "slow", "stalled", "dead")
_FRAMES = 20
_ROOM = 50

_READER = """
import socket, sys, time
from agent.record.feed import FeedClient, follow
kind, connection = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
print("ready", flush=True)
if kind == "stalled":
    time.sleep(3600)
for event in follow(FeedClient(connection)):
    if kind == "slow":
        time.sleep(0.05)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each kind")
    parser.add_argument("--seconds", type=float, default=4.0, help="the length of a block")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    frames = [part(0, number, 0.1).pixels for number in range(_FRAMES)]
    ratios: dict[str, list[float]] = {kind: [] for kind in READERS}
    cpu_ratios: dict[str, list[float]] = {kind: [] for kind in READERS}
    without: list[float] = []
    with ChildInspector(Setup(bundle=BUNDLE, bundle_id=open_bundle(BUNDLE).id)) as inspector:
        rate(inspector, frames, 1.0, "none")  # warms up
        for _ in range(options.rounds):
            for kind in random.sample(READERS, len(READERS)):
                pair = {}
                for each in random.sample(("none", kind), 2):
                    pair[each] = rate(inspector, frames, options.seconds, each)
                (rate_with, cpu_with), (rate_without, cpu_without) = pair[kind], pair["none"]
                without.append(rate_without)
                ratios[kind].append(rate_with / rate_without)
                cpu_ratios[kind].append(cpu_without / cpu_with)
    result = {
        "machine": described(),
        "command": f"python -m benchmarks.feed --rounds {options.rounds}",
        "block_s": options.seconds,
        "parts_per_second_without": round(statistics.median(without), 1),
        "readers": {
            kind: {
                "ratio": round(statistics.median(found), 4),
                "cpu_ratio": round(statistics.median(cpu_ratios[kind]), 4),
                "ratios": [round(one, 4) for one in found],
                "cpu_ratios": [round(one, 4) for one in cpu_ratios[kind]],
            }
            for kind, found in ratios.items()
        },
    }
    write_result(result, options.out)


def rate(
    inspector: ChildInspector, frames: list[Pixels], seconds: float, kind: str
) -> tuple[float, float]:
    """Parts a second of one block, and seconds of processor time for each part."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            agent=AgentSettings(id="bench"),
            bundle=BundleSettings(path=Path(folder)),
            cameras=(ConveyorSettings(),),
            sinks=(MqttSettings(host="127.0.0.1", port=1),),
            ledger=LedgerSettings(path=Path(folder) / "ledger.sqlite"),
        )
        with (
            Ledger(config.ledger.path, agent_id="bench") as ledger,
            reader(ledger, kind),
        ):
            before = cpu_s("self", inspector.pid)
            threshold = Threshold(ledger, calibrated=1e9, calibration_id="")
            summary = Station(
                config,
                cameras=[FramesCamera(frames, seconds=seconds, interval_s=0.0)],
                inspector=inspector,
                model=Model(threshold=1e9).on(inspector),
                record=ledger,
                outlets=(),
                controls=Controls(threshold=threshold),
                clock=SystemClock(),
                stop=threading.Event(),
            ).run()
            spent = cpu_s("self", inspector.pid) - before
    return summary.parts_per_second, spent / summary.triggers


@contextmanager
def reader(ledger: Ledger, kind: str) -> Iterator[None]:
    """A process of this kind reads the feed."""
    if kind == "none":
        yield
        return
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", _READER, kind, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
    )
    theirs.close()
    assert process.stdout is not None
    process.stdout.readline()
    if kind == "dead":
        process.send_signal(signal.SIGKILL)
        process.wait()
    try:
        with ledger.feed.serve(ours, room=_ROOM):
            yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main()
