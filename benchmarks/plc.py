"""What a PLC and an OPC UA server cost the line: a running line with and without each, in turns.

    python -m benchmarks.plc --out benchmarks/results/plc.json

The line is that of `benchmarks.feed`: the demo's frames as fast as it can, in the order without,
with, with, without. With means

    modbus         the handshake's server in the agent's process, and a PLC that scans every 10 ms
                   and sends up to 20 triggers a second; a thread gives each its result
    modbus, flood  the same, while peers open a thousand connections, send garbage, and ask without
                   reading the answers
    opcua          the OPC UA server in its process, and a client that hears each part and reads
                   variables ten times a second
    opcua, flood   the same, while a stranger with a certificate of his own knocks without end, and
                   a thousand connections say nothing

Peers are processes on the same cores as the line, those that disturb of priority nice 10. `ratio`,
`between`, `cpu_ratio` and `cpu_between` are those of `benchmarks.feed`. `cpu_ms_per_s` is what the
agent's process spends on it without a line, in milliseconds for each second;
`load` the machine's load average before and after.
"""

import argparse
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.clock import SystemClock
from agent.opcua.identity import Identity
from agent.plc.blocks import ResultCode
from agent.plc.exchange import Exchange
from agent.plc.handshake import Result
from agent.plc.server import ModbusServer
from agent.services.opcua import OpcuaService, OpcuaSettings
from agent.station.status import Status
from benchmarks.feed import RunningLine, Spent, Turn, compared, cpu_rate, rate, running_line
from benchmarks.machine import described, write_result

KINDS = ("modbus", "modbus, flood", "opcua", "opcua, flood")
_ORDER = (False, True, True, False)
_SETTLE_S = 0.5
_START_S = 300
_ALONE_S = 8.0
_URI = "urn:benchmark:client"

_PLC = """
import os, sys, time
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=8, help="turns of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seconds", type=float, default=2.0, help="the length of a part of a turn")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    load = os.getloadavg()[0]
    turns: dict[str, list[Turn]] = {kind: [] for kind in options.kinds}
    with running_line() as line:
        time.sleep(options.seconds)
        for _ in range(options.turns):
            for kind in random.sample(options.kinds, len(options.kinds)):
                turns[kind].append(turn(line, kind, options.seconds))
        status = line.watched.status()
    without = [one.without for found in turns.values() for one in found]
    result = {
        "machine": described(),
        "command": " ".join(["python -m benchmarks.plc", *sys.argv[1:]]),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "cpu_ms_per_s": {
            kind: spent_alone(status, kind) for kind in options.kinds if kind.startswith("modbus")
        },
        "parts_per_second_without": round(rate(without), 1),
        "kinds": {
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


def spent_alone(status: Status, kind: str) -> float:
    """What a PLC costs the agent's process while no part is inspected."""
    with modbus(lambda: status, is_flooded=kind.endswith("flood")):
        time.sleep(_SETTLE_S)
        before, begun = time.process_time(), time.monotonic()
        time.sleep(_ALONE_S)
        spent = time.process_time() - before
        return round(1e3 * spent / (time.monotonic() - begun), 1)


def turn(line: RunningLine, kind: str, seconds: float) -> Turn:
    """The line without this, with it twice, and without."""
    spent = {True: Spent(parts=0, wall_s=0.0, cpu_s=0.0)}
    spent[False] = spent[True]
    with ExitStack() as beside:
        for is_beside in _ORDER:
            if is_beside and not spent[True].parts:
                is_flooded = kind.endswith("flood")
                beside.enter_context(
                    modbus(line.watched.status, is_flooded=is_flooded)
                    if kind.startswith("modbus")
                    else opcua(line, is_flooded=is_flooded)
                )
            if not is_beside:
                beside.close()
            time.sleep(_SETTLE_S)
            spent[is_beside] += line.spend(seconds)
    return Turn(without=spent[False], beside=spent[True])


@contextmanager
def modbus(status: Callable[[], Status], *, is_flooded: bool) -> Iterator[None]:
    """The handshake, its PLC, and perhaps those who disturb it."""
    exchange = Answering(status)
    server = ModbusServer(
        exchange, listen=("127.0.0.1", 0), allowed=["127.0.0.1"], agent_at=0, plc_at=100
    )
    with ExitStack() as stack:
        stack.enter_context(server)
        stack.enter_context(exchange)
        stack.enter_context(peer(_PLC, str(server.port)))
        if is_flooded:
            stack.enter_context(peer(_FLOOD, str(server.port)))
        yield


class Answering(Exchange):
    """An exchange whose parts are all good, as a thread says at once."""

    def __init__(self, status: Callable[[], Status]) -> None:
        super().__init__(due_s=None, clock=SystemClock())
        self._status = status
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._answer)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def _answer(self) -> None:
        good = Result(code=ResultCode.OK, score=1000, threshold=2000)
        (camera,) = self._status().cameras
        while not self._leaving.is_set():
            self.report(self._status(), camera)
            announcement = self.announcement(0.1)
            if announcement is not None:
                with self._changed:
                    token = self._taken.pop((announcement.at, announcement.count))
                    self._do(self._handshake.offer(token, good, self._clock.now()))


@contextmanager
def opcua(line: RunningLine, *, is_flooded: bool) -> Iterator[None]:
    """The server, its client, and perhaps those who disturb it."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe, ExitStack() as stack:
        folder = Path(name)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        clients = {}
        for who in ("friend", "stranger"):
            clients[who] = Identity(folder / who, _URI)
            clients[who].prepare()
        (folder / "trusted").mkdir()
        shutil.copy(clients["friend"].certificate_file, folder / "trusted" / "friend.der")
        settings = OpcuaSettings(listen="127.0.0.1", port=port, folder=folder)
        stack.enter_context(OpcuaService(settings, line.watched))
        listening(port)
        url, server = f"opc.tcp://127.0.0.1:{port}/atac", folder / "own" / "certificate.der"
        stack.enter_context(peer(_CLIENT, url, str(folder / "friend"), str(server), _URI, "friend"))
        if is_flooded:
            stack.enter_context(peer(_FLOOD, str(port)))
            stack.enter_context(
                peer(_CLIENT, url, str(folder / "stranger"), str(server), _URI, "stranger")
            )
        yield


def listening(port: int) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("the OPC UA server does not listen")


@contextmanager
def peer(code: str, *arguments: str) -> Iterator[None]:
    """A process at the other end, once it says that it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
