"""What the plant costs the line: metrics, Sparkplug, PLC, OPC UA, log, and peers that misbehave.

    python -m benchmarks.plant --bundle models/line --out benchmarks/results/plant.json

A line with its ledger and an MQTT sink at a real mosquitto inspects the demo's frames as fast as it
can; a twelfth of the parts is NG. All of the agent's processes share one core, so that whatever one
of them does costs parts. Peers and broker, which in a plant are other machines, have the others.
What is put beside the line and its peers are started while the line stands. Then it runs for blocks
of under a second, in which they rest (their processes are stopped) or work; then peers that disturb
it come too, and rest as well. A machine is faster in one minute than in the next: blocks that
follow each other see the same machine. Then it works without rest.

    metrics    the service, scraped every second. Disturbed: a peer opens connections without end,
               with a wrong token
    sparkplug  a second sink, which sends each part. Disturbed: a host asks for births without end
    websockets a second MQTT sink, over websockets, which sends each part. Disturbed: a peer opens
               connections to the broker without end
    logs       the log as JSON, ten events a second, many more than an agent has. Disturbed: one
               event comes a hundred times a second
    modbus     a PLC that scans every 10 ms, with two requests each, and sends up to 20 triggers a
               second; a thread gives each its result. Disturbed: peers open a thousand connections,
               send garbage, and ask without reading the answers
    modbus-23  the same with function 23: one request in each scan
    opcua      the OPC UA server in its process, and a client that hears each part and reads a
               variable ten times a second. Disturbed: as the PLC, and by a stranger with a
               certificate of his own who knocks without end
    opcua-events  the same, and the client only hears each part

Of a kind that has a process of its own, `starts` says how many it had in these blocks: 1 where none
was replaced.

`ratio` is parts a second in blocks with work over those in the blocks of rest beside them, and
`between` the bounds of 95 % of 2 000 resamplings of the pairs. What the OPC UA server has missed
while it rested it does when it works, so that its `ratio` holds twice as many parts; where it is
disturbed, its own process does not rest.
`share` does not feel the machine at all: of the processor time of all the agent's processes and
threads, in the blocks without rest, what those have that were added; the line has the rest. Of the
processor time that the cores have it is `ms_per_s` / (1 000 × cores). `ms_per_s` is that
processor time itself, which also holds where other work takes the line's. `alone_ms_per_s` is
the processor time while no part is inspected, in milliseconds a second, and `cost_ms` that of a
part's Sparkplug message; `--seconds 0` measures only these.
"""

import argparse
import itertools
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from agent import child
from agent.bench import FramesCamera
from agent.cameras.conveyor import ConveyorSettings
from agent.clock import SystemClock
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.logs import JsonLines, RateLimit
from agent.opcua.identity import Identity
from agent.part import Part, is_alarm
from agent.plc.blocks import ResultCode
from agent.plc.exchange import Exchange
from agent.plc.handshake import Result
from agent.plc.server import ModbusServer
from agent.ports import Sink, Watched
from agent.record.ledger import Ledger
from agent.registry import open_sink
from agent.services.metrics import MetricsSettings
from agent.services.metrics.server import MetricsServer
from agent.services.opcua import OpcuaService, OpcuaSettings
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.delivery import Deliverer
from agent.sinks.mqtt.settings import MqttSettings
from agent.sinks.sparkplug import SparkplugSettings, metrics
from agent.sinks.sparkplug.payload import encoded
from agent.station.controls import Controls
from agent.station.station import Model, Station
from agent.station.threshold import Threshold
from agent.synthetic.flange import part
from benchmarks.broker import free_port, listening, mosquitto
from benchmarks.feed import Spent, Turn, compared, rate
from benchmarks.machine import described, write_result
from engine.bundle import open_bundle
from engine.frame import Frame, Pixels

_FRAMES = 24
_SETTLE_S = 0.5
_BLOCK_S = 0.8
_STEADY = 0.25
"""Of the time of each kind, without rests."""
_START_S = 120
_ALONE_S = 4.0
_TIMES = 100
_URI = "urn:benchmark:client"

_SCRAPE = """
import sys, time, urllib.request
print("ready", flush=True)
while True:
    request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/metrics")
    request.add_header("Authorization", "Bearer right")
    try:
        urllib.request.urlopen(request, timeout=5).read()
    except OSError:
        pass
    time.sleep(1.0)
"""
_CONNECT = """
import socket, sys, time
request = b"GET /metrics HTTP/1.1\\r\\nAuthorization: Bearer wrong\\r\\n\\r\\n"
open_ones = []
print("ready", flush=True)
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
import sys, time
import paho.mqtt.client as paho
client = paho.Client(paho.CallbackAPIVersion.VERSION2)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_start()
rebirth = b"\\x12\\x1a\\x0a\\x14Node Control/Rebirth\\x20\\x0b\\x70\\x01"
print("ready", flush=True)
while True:
    client.publish("spBv1.0/bench/NCMD/bench", rebirth)
    time.sleep(0.001)
"""
_PLC = """
import sys, time
from agent.plc.blocks import agent_block, plc_registers, words
from agent.plc.client import ModbusConnection
from agent.plc.modbus import reading, writing
from agent.plc.simulated import PlcProgram
number, due = 0, 0.0
def arrive():
    global number, due
    if time.monotonic() < due:
        return None
    number, due = number + 1, time.monotonic() + 0.05
    return number, f"part-{number}"
ended = []
program = PlcProgram(arrive=arrive, ended=ended.append)
with ModbusConnection("127.0.0.1", int(sys.argv[1]), 1) as connection:
    written = [0] * 20
    while True:
        if sys.argv[2] == "23":
            both = bytes((23,)) + reading(0, 32)[1:] + writing(100, written)[1:]
            told = agent_block(words(connection._asked(both)[2:]))
        else:
            told = agent_block(connection.read(0, 32))
        written = plc_registers(program.scan(told, time.monotonic()))
        if sys.argv[2] != "23":
            connection.write(100, written)
        if len(ended) == 1:
            print("ready", flush=True)
        time.sleep(0.01)
"""
_FLOOD = """
import os, socket, sys, time
os.nice(10)
at = ("127.0.0.1", int(sys.argv[1]))
asked = bytes.fromhex("000100000006010300000020")
open_ones = []
print("ready", flush=True)
while True:
    one = socket.socket()
    one.settimeout(0.05)
    try:
        one.connect(at)
        one.sendall((asked * 200, os.urandom(200), b"")[len(open_ones) % 3])
    except OSError:
        pass
    open_ones.append(one)
    if len(open_ones) > 1000:
        open_ones.pop(0).close()
    time.sleep(0.001)
"""
_CLIENT = """
import asyncio, os, sys
from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
url, folder, server, uri, who, every_s = sys.argv[1:]
class Heard:
    def event_notification(self, event): pass
async def connected():
    client = Client(url, timeout=60)
    client.application_uri = uri
    await client.set_security(SecurityPolicyBasic256Sha256,
        certificate=f"{folder}/own/certificate.der", private_key=f"{folder}/own/key.pem",
        server_certificate=server)
    return client
async def main():
    while who == "stranger":
        print("ready", flush=True)
        try:
            async with await connected():
                pass
        except Exception:
            pass
    while True:
        try:
            await heard()
        except (ConnectionError, TimeoutError, ua.UaError) as error:
            print("again", error, file=sys.stderr)
            await asyncio.sleep(1)
async def heard():
    async with await connected() as client:
        ours = await client.get_namespace_index("urn:atac:agent")
        system = await client.nodes.objects.get_child([f"{ours}:VisionSystem"])
        subscription = await client.create_subscription(100, Heard())
        await subscription.subscribe_events(system)
        last = client.get_node(ua.NodeId("Last.PartId", ours))
        print("ready", flush=True)
        while True:
            await asyncio.sleep(float(every_s) or 3600)
            await last.read_value()
asyncio.run(main())
"""


class Belt(FramesCamera):
    """Has its frames already, and gives them while it runs."""

    def __init__(self, frames: Sequence[Pixels], stop: threading.Event) -> None:
        super().__init__(frames, seconds=math.inf, interval_s=0.0)
        self.runs = threading.Event()
        self.times: list[float] = []
        """When each part was taken."""
        self._stop = stop

    def read(self) -> Frame | None:
        while not self.runs.wait(0.1):
            if self._stop.is_set():
                return None
        self.times.append(time.perf_counter())
        return super().read()


class Plugged(Protocol):
    """What does something only while it is plugged."""

    plugged: bool


class Plug:
    """A sink that wants parts only while it is `plugged`."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.plugged = False
        self.name = sink.name

    def items(self, one: Part) -> tuple[str, ...]:
        return self.sink.items(one) if self.plugged else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line that inspects in other threads, and what can be put beside it."""

    camera: Belt
    ledger: Ledger
    watched: Watched
    child: int | None
    sparkplug: Plug
    websockets: Plug
    broker: int

    def spend(self, seconds: float) -> Spent:
        """Let it run this long; counted from its first part to its last."""
        known, began = len(self.camera.times), time.thread_time()
        time.sleep(seconds)
        taken = self.camera.times[known:]
        wall_s = taken[-1] - taken[0] if taken else 0.0
        return Spent(parts=max(0, len(taken) - 1), wall_s=wall_s, cpu_s=time.thread_time() - began)

    @contextmanager
    def standing(self) -> Iterator[None]:
        """No part begins."""
        self.camera.runs.clear()
        try:
            yield
        finally:
            self.camera.runs.set()
            time.sleep(_SETTLE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="by default the demo's")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--seconds",
        type=float,
        default=150.0,
        help="for each kind, and again where it is disturbed",
    )
    parser.add_argument("--disturbed", type=float, help="seconds for each kind where it is")
    parser.add_argument("--cores", type=int, default=1, help="of the agent; by default one")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    load = os.getloadavg()[0]
    disturbed_s = options.seconds if options.disturbed is None else options.disturbed
    turns: dict[str, Sequence[Turn]] = {}
    kinds: dict[str, object] = {}
    cost = costs()
    with running_line(options.bundle, options.cores) as line:
        alone = {kind: spent_alone(line, kind) for kind in options.kinds}
        for kind in options.kinds if options.seconds else ():
            for name, found, share in measured(line, kind, options.seconds, disturbed_s):
                turns[name] = found
                kinds[name] = {
                    **compared("ratio", "between", found, rate),
                    **share.described(),
                    "pairs": len(found),
                    "parts_per_second": [
                        round(rate([one.without for one in found]), 2),
                        round(rate([one.beside for one in found]), 2),
                    ],
                }
                print(name, kinds[name], file=sys.stderr)
    manifest = open_bundle(options.bundle).manifest
    result = {
        "machine": described(),
        "command": " ".join(["python -m benchmarks.plant", *sys.argv[1:]]),
        "cores": options.cores,
        "backbone": manifest.training.backbone,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "cost_ms": cost,
        "alone_ms_per_s": alone,
        "parts_per_second_without": (
            round(rate([each.without for found in turns.values() for each in found]), 2)
            if turns
            else None
        ),
        "kinds": kinds,
    }
    write_result(result, options.out)


@dataclass(slots=True)
class Shares:
    """Processor time while something works beside the line, in nanoseconds: of it, and of all."""

    own: list[int] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    seconds: float = 0.0
    pids: set[int] = field(default_factory=set)

    def described(self) -> dict[str, object]:
        """The share of it, and the bounds of nine in ten blocks."""
        each = sorted(own / whole for own, whole in zip(self.own, self.whole, strict=True))
        low, high = (each[round(place * (len(each) - 1))] for place in (0.05, 0.95))
        share = sum(self.own) / sum(self.whole)
        starts = {"starts": len(self.pids)} if self.pids else {}
        return starts | {
            "share": round(share, 4),
            "shares": [round(low, 4), round(high, 4)],
            "ms_per_s": round(sum(self.own) / 1e6 / self.seconds, 1),
        }


def measured(
    line: Line, kind: str, seconds: float, disturbed_s: float
) -> Iterator[tuple[str, Sequence[Turn], Shares]]:
    """Pairs of blocks with this kind beside the line, then with what disturbs it too."""
    with ExitStack() as beside:
        with line.standing():
            known = set(run_ns("self"))
            one = beside.enter_context(KINDS[kind](line))
        yield kind, *pairs(line, one, known, seconds)
        if disturbed_s:
            with line.standing():
                peers = beside.enter_context(one.disturbed())
            rough = replace(one, processes=(*one.processes, *peers), stops=False)
            yield f"{kind}, disturbed", *pairs(line, rough, known, disturbed_s)
        stack = beside.pop_all()
    with line.standing():
        stack.close()


def pairs(
    line: Line, beside: "Beside", known: set[str], seconds: float
) -> tuple[Sequence[Turn], Shares]:
    """Blocks with and without, in an order that is drawn for each two; then blocks with alone."""
    found: list[Turn] = []
    shares = Shares()
    draw, until = random.Random(0), time.monotonic() + (1 - _STEADY) * seconds
    while time.monotonic() < until:
        shares.pids |= {pid for pid in (beside.process(),) if pid}
        spent: dict[bool, Spent] = {}
        for works in draw.sample([True, False], 2):
            with nullcontext() if works else beside.resting():
                spent[works] = line.spend(_BLOCK_S)
        if all(one.parts for one in spent.values()):
            found.append(Turn(without=spent[False], beside=spent[True]))
    line.spend(2 * _BLOCK_S)
    until = time.monotonic() + _STEADY * seconds
    while time.monotonic() < until:
        shares.pids |= {pid for pid in (beside.process(),) if pid}
        with shared(line, shares, known, beside):
            line.spend(_BLOCK_S)
    return found, shares


@contextmanager
def shared(line: Line, shares: Shares, known: set[str], beside: "Beside") -> Iterator[None]:
    """Note what is spent meanwhile, by threads that are not `known` and by its processes."""

    process = beside.process()

    def spent() -> tuple[int, int]:
        threads = run_ns("self")
        own = sum(ns for name, ns in threads.items() if name not in known)
        own += sum(run_ns(process).values()) if process else 0
        rest = sum(ns for name, ns in threads.items() if name in known)
        return own, own + rest + sum(run_ns(line.child).values())

    (own, whole), began = spent(), time.perf_counter()
    yield
    if beside.process() != process:
        return  # it was replaced meanwhile
    shares.seconds += time.perf_counter() - began
    own_after, whole_after = spent()
    shares.own.append(own_after - own)
    shares.whole.append(whole_after - whole)


def run_ns(process: int | str | None) -> dict[str, int]:
    """How long each thread of a process has run, in nanoseconds."""
    found = {}
    for task in Path("/proc").glob(f"{process}/task/*"):
        with suppress(OSError):
            found[task.name] = int((task / "schedstat").read_text().split()[0])
    return found


def spent_alone(line: Line, kind: str) -> float:
    """Milliseconds of processor time a second while no part is inspected."""

    def spent(*beside: int | None) -> float:
        def all_ns() -> int:
            return sum(sum(run_ns(pid).values()) for pid in ("self", line.child, *beside))

        time.sleep(_SETTLE_S)
        before, began = all_ns(), time.perf_counter()
        time.sleep(_ALONE_S)
        return (all_ns() - before) / 1e9 / (time.perf_counter() - began)

    with line.standing():
        nothing = spent()
        with KINDS[kind](line) as one:
            return round(1e3 * (spent(one.process()) - nothing), 1)


def costs() -> dict[str, float]:
    """Milliseconds of processor time for one Sparkplug message of a part."""
    values = metrics.part(None)
    began = time.thread_time()
    for number in range(100 * _TIMES):
        encoded(metrics.at(values, number), time_ms=number, seq=number % 256, has_types=False)
    return {"sparkplug part": round((time.thread_time() - began) / (100 * _TIMES) * 1e3, 3)}


# ---- the line


@contextmanager
def running_line(bundle: Path, cores: int) -> Iterator[Line]:
    """A line at full rate on so many cores, in this process and its child."""
    frames = [part(0, number, 0.1).pixels for number in range(_FRAMES)]
    setup = Setup(bundle=bundle, bundle_id=open_bundle(bundle).id)
    stop = threading.Event()
    camera = Belt(frames, stop)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.sched_setaffinity(0, others())
        web = free_port()
        extra = f"listener {web} 127.0.0.1\nprotocol websockets\n"
        broker = stack.enter_context(mosquitto(folder, extra))
        os.sched_setaffinity(0, range(cores))
        inspector = stack.enter_context(ChildInspector(setup))
        scores = [inspector.inspect(frame).score for frame in frames]
        threshold = float(np.quantile(scores, 11 / 12))
        mqtt = MqttSettings(host="127.0.0.1", port=broker, drain_s=0)
        config = Config(
            agent=AgentSettings(id="bench"),
            bundle=BundleSettings(path=Path(folder)),
            cameras=(ConveyorSettings(),),
            sinks=(mqtt,),
            ledger=LedgerSettings(path=folder / "ledger.sqlite"),
        )

        def is_reported(one: Part) -> bool:
            return is_alarm(one.ended.state, "reject")

        sink, sparkplug, websockets = (
            open_sink(settings, agent_id="bench", is_alarm=is_reported)
            for settings in (
                mqtt,
                SparkplugSettings(host="127.0.0.1", port=broker, group="bench"),
                replace(mqtt, name="websockets", port=web, transport="websockets", every_part=True),
            )
        )
        plugs = Plug(sparkplug), Plug(websockets)
        ledger = stack.enter_context(
            Ledger(config.ledger.path, agent_id="bench", sinks=(sink, *plugs))
        )
        station = Station(
            config,
            cameras=[camera],
            inspector=inspector,
            model=Model(threshold=threshold).on(inspector),
            record=ledger,
            outlets=[stack.enter_context(Deliverer(sink, ledger, drain_s=0))],
            controls=Controls(threshold=Threshold(ledger, calibrated=threshold, calibration_id="")),
            clock=SystemClock(),
            stop=stop,
        )
        thread = threading.Thread(target=station.run)
        thread.start()
        camera.runs.set()
        try:
            yield Line(
                camera=camera,
                ledger=ledger,
                watched=station.monitor,
                child=inspector.pid,
                sparkplug=plugs[0],
                websockets=plugs[1],
                broker=broker,
            )
        finally:
            stop.set()
            thread.join()


def others() -> set[int]:
    """The cores of peers; the same where there is but one."""
    return set(range(1, os.cpu_count() or 1)) or {0}


# ---- what is put beside it

Process = subprocess.Popen[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What works beside the line, and who talks to it."""

    disturbed: Callable[[], AbstractContextManager[Sequence[Process]]]
    processes: Sequence[Process] = ()
    """Peers; stopped for a rest, as are its own."""
    process: Callable[[], int | None] = lambda: None
    """The process that the agent has for it, which may be replaced."""
    stops: bool = True
    """Whether these rest too."""
    plug: Plugged | None = None

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is asked of it, and it does nothing."""
        pids = [each.pid for each in self.processes]
        pids += [pid for pid in (self.process(),) if pid and self.stops]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        if self.plug is not None:
            self.plug.plugged = False
        try:
            yield
        finally:
            if self.plug is not None:
                self.plug.plugged = True
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@contextmanager
def with_metrics(line: Line) -> Iterator[Beside]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        token = Path(folder) / "token"
        token.write_text("right")
        port = free_port()
        settings = MetricsSettings(port=port, token_file=token)
        stack.enter_context(MetricsServer(settings, line.watched))
        scraper = stack.enter_context(peers((_SCRAPE, str(port))))
        yield Beside(processes=scraper, disturbed=lambda: peers((_CONNECT, str(port))))


@contextmanager
def delivering(line: Line, plug: Plug, *, reports: bool) -> Iterator[None]:
    """The sink has each part; with `reports` it has the status each second."""
    leaving = threading.Event()
    outlet = Deliverer(plug.sink, line.ledger, drain_s=1)

    def report() -> None:
        while reports and not leaving.wait(1.0):
            outlet.report(line.watched.status())

    thread = threading.Thread(target=report)
    with outlet:
        if reports:
            outlet.report(line.watched.status())
        thread.start()
        plug.plugged = True
        try:
            yield
        finally:
            plug.plugged = False
            leaving.set()
            thread.join()


@contextmanager
def with_sparkplug(line: Line) -> Iterator[Beside]:
    with delivering(line, line.sparkplug, reports=True):
        yield Beside(plug=line.sparkplug, disturbed=lambda: peers((_ASK, str(line.broker))))


@contextmanager
def with_websockets(line: Line) -> Iterator[Beside]:
    with delivering(line, line.websockets, reports=False):
        yield Beside(plug=line.websockets, disturbed=lambda: peers((_CONNECT, str(line.broker))))


class Log:
    """Writes ten events a second, of so many kinds that none is held back; a context manager."""

    def __init__(self, handler: logging.Handler) -> None:
        self.plugged = True
        self.every_s, self.kinds = 0.1, 120
        self._handler = handler
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def _write(self) -> None:
        values: dict[str, object] = {"name": "atac_agent", "levelname": "WARNING"}
        for number in itertools.count():
            if self._leaving.wait(self.every_s):
                return
            if self.plugged:
                values |= {"msg": f"{number % self.kinds} camera %s: no frames", "args": ("top",)}
                self._handler.handle(logging.makeLogRecord(values))


@contextmanager
def with_logs(_line: Line) -> Iterator[Beside]:
    with tempfile.TemporaryFile("w") as file:
        handler = logging.StreamHandler(file)
        handler.addFilter(RateLimit())
        handler.setFormatter(JsonLines())
        with Log(handler) as log:

            @contextmanager
            def disturbed() -> Iterator[Sequence[Process]]:
                log.every_s, log.kinds = 0.01, 1
                yield ()

            yield Beside(plug=log, disturbed=disturbed)


@contextmanager
def with_modbus(line: Line, function: str = "") -> Iterator[Beside]:
    exchange = Answering(line.watched)
    server = ModbusServer(
        exchange, listen=("127.0.0.1", 0), allowed=["127.0.0.1"], agent_at=0, plc_at=100
    )
    with server, exchange, peers((_PLC, str(server.port), function)) as plc:
        yield Beside(processes=plc, disturbed=lambda: peers((_FLOOD, str(server.port))))


class Answering(Exchange):
    """An exchange whose parts are all good, as a thread says at once."""

    def __init__(self, watched: Watched) -> None:
        super().__init__(due_s=None, clock=SystemClock())
        self._watched = watched
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._answer)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def _answer(self) -> None:
        good = Result(code=ResultCode.OK, score=1000, threshold=2000)
        while not self._leaving.is_set():
            status = self._watched.status()
            self.report(status, next(iter(status.cameras)))
            announcement = self.announcement(0.1)
            if announcement is not None:
                with self._lock:
                    token = self._taken.pop((announcement.at, announcement.count))
                    self._do(self._handshake.offer(token, good, self._clock.now()))


@contextmanager
def with_opcua(line: Line, every_s: float = 0.1) -> Iterator[Beside]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, port = Path(name), free_port()
        for who in ("friend", "stranger"):
            Identity(folder / who, _URI).prepare()
        (folder / "trusted").mkdir()
        shutil.copy(folder / "friend" / "own" / "certificate.der", folder / "trusted" / "one.der")
        settings = OpcuaSettings(listen="127.0.0.1", port=port, folder=folder)
        service = stack.enter_context(OpcuaService(settings, line.watched))
        listening(port, _START_S)

        def client(who: str) -> tuple[str, ...]:
            certificate = folder / "own" / "certificate.der"
            url = f"opc.tcp://127.0.0.1:{port}/atac"
            return _CLIENT, url, str(folder / who), str(certificate), _URI, who, str(every_s)

        friend = stack.enter_context(peers(client("friend")))
        child._LOOKED_AT_S = 10.0  # noqa: SLF001 - that it is stopped is no fault here
        yield Beside(
            processes=friend,
            process=lambda: service.pid,
            disturbed=lambda: peers((_FLOOD, str(port)), client("stranger")),
        )


KINDS: dict[str, Callable[[Line], AbstractContextManager[Beside]]] = {
    "metrics": with_metrics,
    "sparkplug": with_sparkplug,
    "websockets": with_websockets,
    "logs": with_logs,
    "modbus": with_modbus,
    "modbus-23": partial(with_modbus, function="23"),
    "opcua": with_opcua,
    "opcua-events": partial(with_opcua, every_s=0.0),
}


@contextmanager
def peers(*codes: tuple[str, ...]) -> Iterator[Sequence[Process]]:
    """Processes at the other end, each with its arguments, once they say that they are ready."""
    apart = f"import os\nos.sched_setaffinity(0, {others()})\n"
    with ExitStack() as stack:
        started = []
        for code, *arguments in codes:
            command = [sys.executable, "-c", apart + code, *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        yield started


if __name__ == "__main__":
    main()
