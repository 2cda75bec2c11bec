"""What readers of the feed cost the line: a running line with and without each of them in turns.

    python -m benchmarks.feed --out benchmarks/results/feed.json

The line inspects the demo's frames in its child process as fast as it can and records every part.
While it runs, a reader is attached for a moment and detached for a moment, in the order without,
with, with, without. Each reader is a process of priority nice 10, as the agent's own are, at the
end of a socket: `live` takes all that comes, `behind` catches up with all that the ledger has,
`slow` waits after each part and so falls behind, `stalled` reads nothing, `dead` was killed before.

`ratio` is parts with it over parts without it, `between` the bounds of 95 % of 2 000 resamplings of
the turns. `cpu_ratio` is the same of the parts for each second of processor time of agent and
child, which other work on the machine changes less.
"""

import argparse
import logging
import math
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.bench import FramesCamera
from agent.cameras.conveyor import ConveyorSettings
from agent.clock import SystemClock
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.ports import Watched
from agent.record.ledger import Ledger
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.controls import Controls
from agent.station.station import Model, Station
from agent.station.threshold import Threshold
from agent.synthetic.flange import part
from benchmarks.machine import cpu_s, described, write_result
from engine.bundle import open_bundle

READERS = ("live", "behind", "slow", "stalled", "dead")
_FRAMES = 20
_ROOM = 50
_RESAMPLINGS = 2000
_SETTLE_S = 0.2
_OPEN = 50
"""More parts than can have begun and not be recorded."""
_ORDER = (False, True, True, False)

_READER = """
import os, socket, sys, time
os.nice(10)
from agent.record.feed import FeedClient, follow
kind, connection = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
print("ready", flush=True)
if kind == "stalled":
    time.sleep(3600)
epoch, sequence = sys.stdin.readline().split()
for event in follow(FeedClient(connection), (epoch, int(sequence))):
    if kind == "slow":
        time.sleep(0.05)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the line did in a time: parts, seconds, and seconds of processor time."""

    parts: int
    wall_s: float
    cpu_s: float

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            parts=self.parts + other.parts,
            wall_s=self.wall_s + other.wall_s,
            cpu_s=self.cpu_s + other.cpu_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a reader: the line without it and with it, the same time each."""

    without: Spent
    beside: Spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=16, help="turns of each kind")
    parser.add_argument("--seconds", type=float, default=1.0, help="the length of a part of a turn")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    turns: dict[str, list[Turn]] = {kind: [] for kind in READERS}
    with running_line() as line:
        time.sleep(options.seconds)
        for _ in range(options.turns):
            for kind in random.sample(READERS, len(READERS)):
                turns[kind].append(turn(line, kind, options.seconds))
    without = [one.without for found in turns.values() for one in found]
    result = {
        "machine": described(),
        "command": f"python -m benchmarks.feed --turns {options.turns}",
        "parts_per_second_without": round(rate(without), 1),
        "readers": {
            kind: {
                **compared("ratio", "between", found, rate),
                **compared("cpu_ratio", "cpu_between", found, cpu_rate),
                "turns": [
                    [round(rate([one.without]), 1), round(rate([one.beside]), 1)] for one in found
                ],
            }
            for kind, found in turns.items()
        },
    }
    write_result(result, options.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningLine:
    """A line that inspects in another thread; `camera` counts its parts."""

    camera: FramesCamera
    ledger: Ledger
    watched: Watched
    child: int | None

    def spend(self, seconds: float) -> Spent:
        """Let it run this long."""
        parts, cpu, start = self.camera.number, cpu_s("self", self.child), time.perf_counter()
        time.sleep(seconds)
        return Spent(
            parts=self.camera.number - parts,
            wall_s=time.perf_counter() - start,
            cpu_s=cpu_s("self", self.child) - cpu,
        )


@contextmanager
def running_line() -> Iterator[RunningLine]:
    """A line at full rate in this process, with its inspection in a child."""
    frames = [part(0, number, 0.1).pixels for number in range(_FRAMES)]
    camera = FramesCamera(frames, seconds=math.inf, interval_s=0.0)
    stop = threading.Event()
    setup = Setup(bundle=BUNDLE, bundle_id=open_bundle(BUNDLE).id)
    with tempfile.TemporaryDirectory() as folder, ChildInspector(setup) as inspector:
        config = Config(
            agent=AgentSettings(id="bench"),
            bundle=BundleSettings(path=Path(folder)),
            cameras=(ConveyorSettings(),),
            sinks=(MqttSettings(host="127.0.0.1", port=1),),
            ledger=LedgerSettings(path=Path(folder) / "ledger.sqlite"),
        )
        with Ledger(config.ledger.path, agent_id="bench") as ledger:
            station = Station(
                config,
                cameras=[camera],
                inspector=inspector,
                model=Model(threshold=1e9).on(inspector),
                record=ledger,
                outlets=(),
                controls=Controls(threshold=Threshold(ledger, calibrated=1e9, calibration_id="")),
                clock=SystemClock(),
                stop=stop,
            )
            thread = threading.Thread(target=station.run)
            thread.start()
            try:
                yield RunningLine(
                    camera=camera, ledger=ledger, watched=station.monitor, child=inspector.pid
                )
            finally:
                stop.set()
                thread.join()


def turn(line: RunningLine, kind: str, seconds: float) -> Turn:
    """The line without a reader of this kind, with it twice, and without."""
    spent = {
        True: Spent(parts=0, wall_s=0.0, cpu_s=0.0),
        False: Spent(parts=0, wall_s=0.0, cpu_s=0.0),
    }
    with started(kind) as (connection, start), ExitStack() as attached:
        for has_reader in _ORDER:
            if has_reader and not spent[True].parts:
                attached.enter_context(line.ledger.feed.serve(connection, room=_ROOM))
                start(line.ledger)
            if not has_reader:
                attached.close()
            time.sleep(_SETTLE_S)
            spent[has_reader] += line.spend(seconds)
    return Turn(without=spent[False], beside=spent[True])


@contextmanager
def started(kind: str) -> Iterator[tuple[socket.socket, Callable[[Ledger], None]]]:
    """A new process that reads the feed in this way: our end of its socket, and what starts it."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", _READER, kind, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    assert process.stdin is not None
    assert process.stdout is not None
    stdin = process.stdin

    def start(ledger: Ledger) -> None:
        if kind in {"live", "slow"}:
            print(ledger.epoch, ledger.last_sequence - _OPEN, file=stdin, flush=True)
        elif kind == "behind":
            print(ledger.epoch, 0, file=stdin, flush=True)

    process.stdout.readline()
    if kind == "dead":
        process.send_signal(signal.SIGKILL)
        process.wait()
    try:
        yield ours, start
    finally:
        process.kill()
        process.wait()
        stdin.close()
        process.stdout.close()


def compared(
    name: str, between: str, turns: Sequence[Turn], speed: Callable[[Sequence[Spent]], float]
) -> dict[str, object]:
    def ratio(some: Sequence[Turn]) -> float:
        return speed([one.beside for one in some]) / speed([one.without for one in some])

    draw = random.Random(0)
    drawn = sorted(ratio(draw.choices(turns, k=len(turns))) for _ in range(_RESAMPLINGS))
    low, high = (drawn[round(share * (_RESAMPLINGS - 1))] for share in (0.025, 0.975))
    return {name: round(ratio(turns), 4), between: [round(low, 4), round(high, 4)]}


def rate(spent: Sequence[Spent]) -> float:
    return sum(one.parts for one in spent) / sum(one.wall_s for one in spent)


def cpu_rate(spent: Sequence[Spent]) -> float:
    return sum(one.parts for one in spent) / sum(one.cpu_s for one in spent)


if __name__ == "__main__":
    main()
