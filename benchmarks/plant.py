"""What the plant costs the line: metrics, Sparkplug, a PLC, OPC UA, and peers that misbehave.

    python -m benchmarks.plant --bundle models/line --out benchmarks/results/plant.json

A line with its ledger and an MQTT sink at a real mosquitto inspects the demo's frames as fast as it
can; a twelfth of the parts is NG. All of the agent's processes share one core, so that whatever one
of them does costs parts. Peers and broker, which in a plant are other machines, have the others.
In each turn the line runs without, then with each kind and with peers that disturb it, and so on;
while something starts the line stands.

    metrics    the service, scraped every second. Disturbed: a peer opens connections without end,
               with a wrong token
    sparkplug  a second sink, which sends each part. Disturbed: a host asks for births without end
    modbus     a PLC that scans every 10 ms and sends up to 20 triggers a second; a thread gives
               each its result. Disturbed: peers open a thousand connections, send garbage, and ask
               without reading the answers
    opcua      the OPC UA server in its process, and a client that hears each part and reads a
               variable ten times a second. Disturbed: as the PLC, and by a stranger with a
               certificate of his own who knocks without end

`ratio` is parts a second with it over those without it just before and after, and `between` the
bounds of 95 % of 2 000 resamplings of the turns. `cpu_ratio` is the same of the parts for each
second of processor time of all processes of the agent. Where the machine itself is now faster and
now slower, neither shows a few percent. `share` does: of the processor time of all the agent's
processes and threads, what those have that were added, and `shares` the smallest and the largest of
the turns; the line has the rest. `alone_ms_per_s` is the processor time while no part is inspected,
in milliseconds a second, and `cost_ms` that of a part's Sparkplug message; `--turns 0` measures
only these.
"""

import argparse
import logging
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agent.bench import FramesCamera
from agent.cameras.conveyor import ConveyorSettings
from agent.clock import SystemClock
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.opcua.identity import Identity
from agent.part import Part, is_alarm
from agent.plc.blocks import ResultCode
from agent.plc.exchange import Exchange
from agent.plc.handshake import Result
from agent.plc.server import ModbusServer
from agent.ports import Watched
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
from agent.sinks.sparkplug.sink import SparkplugSink
from agent.station.controls import Controls
from agent.station.station import Model, Station
from agent.station.threshold import Threshold
from agent.synthetic.flange import part
from benchmarks.broker import free_port, listening, mosquitto
from benchmarks.feed import Spent, Turn, compared, cpu_rate, rate
from benchmarks.machine import cpu_s, described, write_result
from engine.bundle import open_bundle
from engine.frame import Frame, Pixels

_FRAMES = 24
_SETTLE_S = 0.5
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
    urllib.request.urlopen(request, timeout=5).read()
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
from agent.plc.blocks import agent_block, plc_registers
from agent.plc.client import ModbusConnection
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
    while True:
        told = agent_block(connection.read(0, 32))
        connection.write(100, plc_registers(program.scan(told, time.monotonic())))
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
url, folder, server, uri, is_stranger = sys.argv[1:]
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
    while is_stranger == "stranger":
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
async def heard():
    async with await connected() as client:
        ours = await client.get_namespace_index("urn:atac:agent")
        system = await client.nodes.objects.get_child([f"{ours}:VisionSystem"])
        subscription = await client.create_subscription(100, Heard())
        await subscription.subscribe_events(system)
        last = client.get_node(ua.NodeId("Last.PartId", ours))
        print("ready", flush=True)
        while True:
            await last.read_value()
            await asyncio.sleep(0.1)
asyncio.run(main())
"""


class Belt(FramesCamera):
    """Has its frames already, and gives them while it runs."""

    def __init__(self, frames: Sequence[Pixels], stop: threading.Event) -> None:
        super().__init__(frames, seconds=math.inf, interval_s=0.0)
        self.runs = threading.Event()
        self._stop = stop

    def read(self) -> Frame | None:
        while not self.runs.wait(0.1):
            if self._stop.is_set():
                return None
        return super().read()


class Plug:
    """A Sparkplug sink that wants parts only while it is `plugged`."""

    def __init__(self, sink: SparkplugSink) -> None:
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
    plug: Plug
    broker: int

    def spend(self, seconds: float, *beside: int | None) -> Spent:
        """Let it run this long, from one part to another; `beside` are the agent's other pids."""
        began, parts, cpu = self._next(*beside)
        time.sleep(seconds)
        ended, more, later = self._next(*beside)
        return Spent(parts=more - parts, wall_s=ended - began, cpu_s=later - cpu)

    def _next(self, *beside: int | None) -> tuple[float, int, float]:
        number = self.camera.number
        while self.camera.number == number:
            time.sleep(0.001)
        return time.perf_counter(), self.camera.number, cpu_s("self", self.child, *beside)

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
    parser.add_argument("--turns", type=int, default=8, help="turns of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="the length of a part of a turn")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    load = os.getloadavg()[0]
    turns: dict[str, list[Turn]] = {}
    shares: dict[str, Shares] = {}
    cost = costs()
    with running_line(options.bundle) as line:
        alone = {kind: spent_alone(line, kind) for kind in options.kinds}
        for _ in range(options.turns):
            for kind, found in turn(line, options.kinds, options.seconds, shares).items():
                turns.setdefault(kind, []).append(found)
    manifest = open_bundle(options.bundle).manifest
    result = {
        "machine": described(),
        "command": " ".join(["python -m benchmarks.plant", *sys.argv[1:]]),
        "backbone": manifest.training.backbone,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "cost_ms": cost,
        "alone_ms_per_s": alone,
        "parts_per_second_without": (
            round(rate([each.without for found in turns.values() for each in found]), 2)
            if turns
            else None
        ),
        "kinds": {
            kind: {
                **compared("ratio", "between", found, rate),
                **compared("cpu_ratio", "cpu_between", found, cpu_rate),
                **shares[kind].described(),
                "turns": [
                    [round(rate([one.without]), 2), round(rate([one.beside]), 2)] for one in found
                ],
            }
            for kind, found in turns.items()
        },
    }
    write_result(result, options.out)


@dataclass(slots=True)
class Shares:
    """Processor time while something is beside the line, in nanoseconds: of it, and of all."""

    own: list[int] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)

    def described(self) -> dict[str, object]:
        """The share of it, and the smallest and the largest of all turns."""
        each = [own / whole for own, whole in zip(self.own, self.whole, strict=True)]
        share = sum(self.own) / sum(self.whole)
        return {"share": round(share, 4), "shares": [round(min(each), 4), round(max(each), 4)]}


def turn(
    line: Line, kinds: Sequence[str], seconds: float, shares: dict[str, Shares]
) -> dict[str, Turn]:
    """The line without, with each kind and with each that is disturbed, and without between."""
    found: dict[str, Turn] = {}
    before = line.spend(seconds)
    for kind in random.sample(kinds, len(kinds)):
        with ExitStack() as beside:
            with line.standing():
                known = set(run_ns("self"))
                pids, disturbed = beside.enter_context(KINDS[kind](line))
            with shared(line, shares.setdefault(kind, Shares()), known, pids):
                calm = line.spend(seconds, *pids)
            with line.standing():
                beside.enter_context(disturbed())
            with shared(line, shares.setdefault(f"{kind}, disturbed", Shares()), known, pids):
                rough = line.spend(seconds, *pids)
            stack = beside.pop_all()
        with line.standing():
            stack.close()
        after = line.spend(seconds)
        found[kind] = Turn(without=before + after, beside=calm)
        found[f"{kind}, disturbed"] = Turn(without=before + after, beside=rough)
        before = after
    return found


@contextmanager
def shared(
    line: Line, shares: Shares, known: set[str], pids: Sequence[int | None]
) -> Iterator[None]:
    """Note what is spent meanwhile, by threads that are not `known` and by these processes."""

    def spent() -> tuple[int, int]:
        threads = run_ns("self")
        own = sum(ns for name, ns in threads.items() if name not in known)
        own += sum(sum(run_ns(pid).values()) for pid in pids)
        rest = sum(ns for name, ns in threads.items() if name in known)
        return own, own + rest + sum(run_ns(line.child).values())

    own, whole = spent()
    yield
    own_after, whole_after = spent()
    shares.own.append(own_after - own)
    shares.whole.append(whole_after - whole)


def run_ns(process: int | str | None) -> dict[str, int]:
    """How long each thread of a process has run, in nanoseconds."""
    found = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):
            found[task.name] = int((task / "schedstat").read_text().split()[0])
    return found


def spent_alone(line: Line, kind: str) -> float:
    """Milliseconds of processor time a second while no part is inspected."""

    def spent(*beside: int | None) -> float:
        time.sleep(_SETTLE_S)
        before, began = cpu_s("self", line.child, *beside), time.perf_counter()
        time.sleep(_ALONE_S)
        return (cpu_s("self", line.child, *beside) - before) / (time.perf_counter() - began)

    with line.standing():
        nothing = spent()
        with KINDS[kind](line) as (pids, _):
            return round(1e3 * (spent(*pids) - nothing), 1)


def costs() -> dict[str, float]:
    """Milliseconds of processor time for one Sparkplug message of a part."""
    values = metrics.part(None)
    began = time.thread_time()
    for number in range(100 * _TIMES):
        encoded(metrics.at(values, number), time_ms=number, seq=number % 256, has_types=False)
    return {"sparkplug part": round((time.thread_time() - began) / (100 * _TIMES) * 1e3, 3)}


# ---- the line


@contextmanager
def running_line(bundle: Path) -> Iterator[Line]:
    """A line at full rate on one core, in this process and its child."""
    frames = [part(0, number, 0.1).pixels for number in range(_FRAMES)]
    setup = Setup(bundle=bundle, bundle_id=open_bundle(bundle).id)
    stop = threading.Event()
    camera = Belt(frames, stop)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.sched_setaffinity(0, others())
        broker = stack.enter_context(mosquitto(folder))
        os.sched_setaffinity(0, {first()})
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

        node = SparkplugSettings(host="127.0.0.1", port=broker, group="bench")
        plug = Plug(SparkplugSink(node, agent_id="bench", is_alarm=is_reported))
        sink = open_sink(mqtt, agent_id="bench", is_alarm=is_reported)
        ledger = stack.enter_context(
            Ledger(config.ledger.path, agent_id="bench", sinks=(sink, plug))
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
                plug=plug,
                broker=broker,
            )
        finally:
            stop.set()
            thread.join()


def first() -> int:
    """The core of the agent."""
    return 0


def others() -> set[int]:
    """The cores of peers; the same where there is but one."""
    return set(range(1, os.cpu_count() or 1)) or {0}


# ---- what is put beside it: each gives the agent's pids that it adds, and those who disturb it

Beside = tuple[Sequence[int | None], Callable[[], AbstractContextManager[None]]]


@contextmanager
def with_metrics(line: Line) -> Iterator[Beside]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        token = Path(folder) / "token"
        token.write_text("right")
        port = free_port()
        settings = MetricsSettings(port=port, token_file=token)
        stack.enter_context(MetricsServer(settings, line.watched))
        stack.enter_context(peer(_SCRAPE, str(port)))
        yield (), lambda: peer(_CONNECT, str(port))


@contextmanager
def with_sparkplug(line: Line) -> Iterator[Beside]:
    leaving = threading.Event()
    outlet = Deliverer(line.plug.sink, line.ledger, drain_s=1)

    def report() -> None:
        while not leaving.wait(1.0):
            outlet.report(line.watched.status())

    thread = threading.Thread(target=report)
    with outlet:
        outlet.report(line.watched.status())
        thread.start()
        line.plug.plugged = True
        try:
            yield (), lambda: peer(_ASK, str(line.broker))
        finally:
            line.plug.plugged = False
            leaving.set()
            thread.join()


@contextmanager
def with_modbus(line: Line) -> Iterator[Beside]:
    exchange = Answering(line.watched)
    server = ModbusServer(
        exchange, listen=("127.0.0.1", 0), allowed=["127.0.0.1"], agent_at=0, plc_at=100
    )
    with server, exchange, peer(_PLC, str(server.port)):
        yield (), lambda: peer(_FLOOD, str(server.port))


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
def with_opcua(line: Line) -> Iterator[Beside]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, port = Path(name), free_port()
        for who in ("friend", "stranger"):
            Identity(folder / who, _URI).prepare()
        (folder / "trusted").mkdir()
        shutil.copy(folder / "friend" / "own" / "certificate.der", folder / "trusted" / "one.der")
        settings = OpcuaSettings(listen="127.0.0.1", port=port, folder=folder)
        service = stack.enter_context(OpcuaService(settings, line.watched))
        listening(port, _START_S)

        def client(who: str) -> AbstractContextManager[None]:
            certificate = folder / "own" / "certificate.der"
            url = f"opc.tcp://127.0.0.1:{port}/atac"
            return peer(_CLIENT, url, str(folder / who), str(certificate), _URI, who)

        @contextmanager
        def disturbed() -> Iterator[None]:
            with peer(_FLOOD, str(port)), client("stranger"):
                yield

        stack.enter_context(client("friend"))
        yield (service.pid,), disturbed


KINDS: dict[str, Callable[[Line], AbstractContextManager[Beside]]] = {
    "metrics": with_metrics,
    "sparkplug": with_sparkplug,
    "modbus": with_modbus,
    "opcua": with_opcua,
}


@contextmanager
def peer(code: str, *arguments: str) -> Iterator[None]:
    """A process at the other end, once it says that it is ready."""
    apart = f"import os\nos.sched_setaffinity(0, {others()})\n"
    with subprocess.Popen(
        [sys.executable, "-c", apart + code, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
