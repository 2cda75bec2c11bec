"""Ten minutes of the OPC UA server with two foreign clients: killed, frozen, and a client away.

    python -m benchmarks.opcua_soak --out benchmarks/results/opcua_soak.json

A line makes four parts a second, without a network, so that it takes little of the machine. One
client is asyncua's, the other npm's `node-opcua-client`; each hears events, asks for what it has
missed, and says each part once. The server's process is killed at a quarter and at two thirds of
the time, and stopped (SIGSTOP) at four fifths. asyncua's client is away from a tenth of the time
on, until it has missed 1 000 parts. Wanted: each client has every part, once.

`back_s` is the time from each blow until the clients that are there had a part of after it;
`memory_mb` that of the server's process at the beginning and at the end.
"""

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import numpy as np
import psutil

from agent.bench import FramesCamera
from agent.cameras.conveyor import ConveyorSettings
from agent.opcua.identity import Identity
from agent.services.opcua import OpcuaSettings
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from benchmarks.broker import free_port, listening
from benchmarks.machine import described, resident_mb, write_result
from engine.frame import Frame, Pixels
from engine.scripted_inspector import BrightnessInspector

_NODE = Path(__file__).parents[1] / "tests" / "node"
_URI = "urn:soak:client"
_EVERY_S = 0.25
_LOOK_S = 0.05
_LATEST_S = 240.0

_ASYNCUA = """
import asyncio, json, sys
from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
url, certificate, key, uri, server = sys.argv[1:]
epoch, newest = "", 0
def tell(sequence):
    global newest
    if sequence > newest:
        newest = sequence
        print("part", sequence, flush=True)
class Heard:
    def __init__(self):
        self.queue = asyncio.Queue()
    def event_notification(self, event):
        self.queue.put_nowait(event.Sequence)
    def status_change_notification(self, status):
        self.queue.put_nowait(None)
async def missed(agent, ours):
    global epoch
    while True:
        rows = await agent.call_method(f"{ours}:ResultsAfter", epoch,
            ua.Variant(newest, ua.VariantType.UInt64), ua.Variant(500, ua.VariantType.UInt32))
        if not rows:
            return
        for row in map(json.loads, rows):
            epoch = row["epoch"]
            tell(row["sequence"])
async def follow():
    client = Client(url, timeout=20)
    client.application_uri = uri
    await client.set_security(SecurityPolicyBasic256Sha256, certificate=certificate,
        private_key=key, server_certificate=server)
    async with client:
        ours = await client.get_namespace_index("urn:atac:agent")
        vision = await client.get_namespace_index("http://opcfoundation.org/UA/MachineVision")
        system = await client.nodes.objects.get_child([f"{ours}:VisionSystem"])
        agent = await client.nodes.objects.get_child([f"{ours}:Agent"])
        ready = client.get_node(ua.NodeId(1024, vision))
        (kind,) = await ready.get_children(refs=ua.ObjectIds.HasSubtype)
        heard = Heard()
        subscription = await client.create_subscription(200, heard)
        await subscription.subscribe_events(system, kind)
        await missed(agent, ours)
        print("connected", flush=True)
        while True:
            try:
                sequence = await asyncio.wait_for(heard.queue.get(), 2)
            except TimeoutError:
                await client.check_connection()
                await missed(agent, ours)
                continue
            if sequence is None:
                raise ConnectionError("the subscription has ended")
            if sequence > newest + 1:
                await missed(agent, ours)
            tell(sequence)
async def main():
    while True:
        try:
            await follow()
        except (OSError, asyncio.TimeoutError, ua.UaError) as error:
            print("again", type(error).__name__, error, flush=True)
        await asyncio.sleep(0.5)
asyncio.run(main())
"""


class Follower:
    """A client in a process of its own, which says what it has; a context manager."""

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self._command = command
        self.parts: list[int] = []
        self.connections = 0
        self.newest = 0
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            kind, _, rest = line.strip().partition(" ")
            if kind == "part":
                self.parts.append(int(rest))
                self.newest = self.parts[-1]
            elif kind == "connected":
                self.connections += 1
            elif kind == "again" and rest not in self._said:
                self._said.add(rest)
                print(f"{self.name}: {rest}", file=sys.stderr)

    def freeze(self) -> None:
        """As if its network cable were out."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def described(self, parts: int) -> dict[str, int]:
        """What it has of `parts`."""
        return {
            "parts": len(self.parts),
            "missing": len(set(range(1, parts + 1)) - set(self.parts)),
            "twice": len(self.parts) - len(set(self.parts)),
            "connections": self.connections,
        }


class Belt(FramesCamera):
    """Gives frames until it is `full`, and then waits for the end."""

    def __init__(self, frames: Sequence[Pixels], stop: threading.Event) -> None:
        super().__init__(frames, seconds=math.inf, interval_s=_EVERY_S)
        self.full = threading.Event()
        self._stop = stop

    def read(self) -> Frame | None:
        if not self.full.is_set():
            return super().read()
        self._stop.wait()
        return None


class Line:
    """Four parts a second through a station with ledger and OPC UA server; a context manager."""

    def __init__(self, folder: Path, port: int) -> None:
        self._stop = threading.Event()
        shades = np.random.default_rng(0).integers(0, 255, 24)
        frames = [np.full((64, 64), shade, np.uint8) for shade in shades]
        self.camera = Belt(frames, self._stop)
        self._config = Config(
            agent=AgentSettings(id="soak"),
            bundle=BundleSettings(path=folder),
            cameras=(ConveyorSettings(),),
            sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
            services=(OpcuaSettings(listen="127.0.0.1", port=port, folder=folder),),
            ledger=LedgerSettings(path=folder / "ledger.sqlite"),
        )
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        run_station(
            self._config,
            cameras=[self.camera],
            inspector=BrightnessInspector(),
            model=Model(threshold=2.0),
            stop=self._stop,
        )

    @property
    def server(self) -> psutil.Process | None:
        """The process of the OPC UA server, where there is one."""
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if "agent.opcua.main" in child.cmdline():
                    return child
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--missed", type=int, default=1000, help="parts that a client misses")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soaked(Path(folder), 60 * options.minutes, options.missed)
    command = " ".join(["python -m benchmarks.opcua_soak", *sys.argv[1:]])
    write_result({"machine": described(), "command": command, **result}, options.out)


def soaked(folder: Path, seconds: float, missed: int) -> dict[str, object]:
    """What became of it."""
    port, load = free_port(), os.getloadavg()[0]
    with ExitStack() as stack:
        line = stack.enter_context(Line(folder, port))
        listening(port, _LATEST_S)
        clients = [stack.enter_context(each) for each in followers(folder, port)]
        wait(lambda: all(each.connections for each in clients))
        began, first, memory = time.monotonic(), line.camera.number, memory_mb(line)
        blows = [
            (seconds / 4, signal.SIGKILL),
            (2 * seconds / 3, signal.SIGKILL),
            (0.8 * seconds, signal.SIGSTOP),
        ]
        back: list[dict[str, object]] = []
        away_until = 0
        away = clients[0]
        while time.monotonic() - began < seconds:
            time.sleep(_LOOK_S)
            passed = time.monotonic() - began
            if not away_until and passed > seconds / 10:
                away.freeze()
                away_until = away.newest + missed
            if away_until and line.camera.number > away_until:
                away.thaw()
                away_until = sys.maxsize
            if blows and passed > blows[0][0]:
                _, blow = blows.pop(0)
                others = [
                    each for each in clients if away_until in {0, sys.maxsize} or each is not away
                ]
                back.append({"signal": blow.name, "s": round(recovered(line, others, blow), 1)})
        memory_at_end = memory_mb(line)
        away.thaw()
        line.camera.full.set()
        time.sleep(1.0)
        parts = line.camera.number
        with suppress(TimeoutError):
            wait(lambda: all(each.newest == parts for each in clients))
        return {
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "seconds": round(time.monotonic() - began),
            "parts": parts,
            "parts_per_second": round((parts - first) / (time.monotonic() - began), 2),
            "missed_while_away": missed,
            "clients": {each.name: each.described(parts) for each in clients},
            "back_s": back,
            "memory_mb": [memory, memory_at_end],
        }


def followers(folder: Path, port: int) -> Sequence[Follower]:
    """Both clients, whose certificate the server trusts."""
    ours, url = Identity(folder / "client", _URI), f"opc.tcp://127.0.0.1:{port}/atac"
    ours.prepare()
    shutil.copy(ours.certificate_file, folder / "trusted" / "client.der")
    pem = folder / "client.pem"
    pem.write_bytes(ours.pem())
    server = folder / "own" / "certificate.der"
    mine = [url, ours.certificate_file, ours.key_file, _URI]
    node = shutil.which("node")
    if node is None or not (_NODE / "node_modules" / "node-opcua-client").is_dir():
        raise SystemExit("needs node and: npm install --prefix tests/node --no-package-lock")
    theirs = [url, pem, ours.key_file, _URI, folder / "pki"]
    return (
        Follower("asyncua", [sys.executable, "-c", _ASYNCUA, *mine, server]),
        Follower("node-opcua-client", [node, _NODE / "opcua_follow.js", *theirs]),
    )


def recovered(line: Line, clients: Sequence[Follower], blow: signal.Signals) -> float:
    """Strike the server; the time until these clients have a part of after that."""
    server = line.server
    assert server is not None, "it was there before"
    began, number = time.monotonic(), line.camera.number + 1
    server.send_signal(blow)
    wait(lambda: all(each.newest > number for each in clients))
    return time.monotonic() - began


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _LATEST_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the clients have not come back")
        time.sleep(_LOOK_S)


def memory_mb(line: Line) -> float | None:
    server = line.server
    return None if server is None else round(resident_mb(server.pid), 1)


if __name__ == "__main__":
    main()
