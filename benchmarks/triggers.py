"""From a trigger to its verdict, for each kind of trigger source, beside the bare protocol.

    python -m benchmarks.triggers --out benchmarks/results/triggers.json

A sender announces `--parts` parts, one every `--every-ms`. `bare` is how long the protocol's own
client takes to hear of one. Then the real station hears the same parts: `announced` is when the
part begins, `frame` when its frame has come from a camera that exposes at once on the agent's word,
`verdict` when it is decided. The inspector compares brightness, so that all of this is the agent's
own; a network's time comes on top. Serial ports name parts and announce none. All ends are in this
process but the broker; milliseconds, nearest rank. GPIO is not here: there is no chip.
"""

import argparse
import asyncio
import logging
import os
import pty
import queue
import socket
import tempfile
import threading
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import paho.mqtt.client as paho
import serial
from asyncua import Client, Server, ua
from paho.mqtt.enums import CallbackAPIVersion

from agent.cameras.conveyor import ConveyorSettings
from agent.clock import SystemClock
from agent.opcua.settings import PlcServerSettings
from agent.part import Part
from agent.plc.client import ModbusConnection
from agent.plc.modbus import Frame as ModbusFrame
from agent.plc.modbus import answer, frames
from agent.registry import open_trigger
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from agent.triggers.modbus import ModbusSettings
from agent.triggers.mqtt import MqttTriggerSettings
from agent.triggers.opcua import OpcuaSettings
from agent.triggers.serial import SerialSettings
from agent.triggers.settings import WindowSettings
from agent.triggers.software import SoftwareSettings, SoftwareTriggers
from benchmarks.broker import mosquitto
from benchmarks.machine import described, write_result
from engine.frame import Frame
from engine.scripted_inspector import BrightnessInspector

KINDS = ("software", "mqtt", "modbus", "opcua", "serial")
_WINDOW = {"min_ms": 0, "max_ms": 95}
"""Narrower than the time between two parts, so that a frame fits one part alone."""
_SETTLE_S = 3.0
_POLL_S = 0.005
_TOPIC = "line/part"

Heard = dict[int, float]
"""When each part was heard, by its number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """One kind of source: `send(number)` announces a part, `bare` hears as its own client does."""

    settings: WindowSettings
    send: Callable[[int], object]
    bare: Callable[[Heard, threading.Event], None]


class FiredCamera:
    """Exposes at once when it is told to; notes when its frames were read."""

    triggered = fires = True
    silence_s = fault = None
    is_live = False

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._number = 0
        self.read_at: dict[int, float] = {}

    def fire(self) -> None:
        frame = Frame(
            pixels=np.full((8, 10), 40, np.uint8),
            number=self._number,
            captured_ns=time.time_ns(),
        )
        self._number += 1
        self._frames.put(frame)

    def renewed(self) -> "FiredCamera":
        return self

    def read(self) -> Frame | None:
        while not self._stop.is_set():
            with suppress(queue.Empty):
                frame = self._frames.get(timeout=0.1)
                self.read_at[frame.number] = time.monotonic()
                return frame
        return None

    def part_id(self, _number: int) -> None: ...

    def source(self, _number: int) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


# ---- rigs


@contextmanager
def software(_folder: Path) -> Iterator[Rig]:
    bare: queue.SimpleQueue[int] = queue.SimpleQueue()

    def hear(heard: Heard, stop: threading.Event) -> None:
        while not stop.is_set():
            with suppress(queue.Empty):
                number = bare.get(timeout=0.1)
                heard[number] = time.monotonic()

    yield Rig(settings=SoftwareSettings(**_WINDOW), send=bare.put, bare=hear)


@contextmanager
def mqtt(folder: Path) -> Iterator[Rig]:
    with mosquitto(folder) as port:
        sender = paho.Client(CallbackAPIVersion.VERSION2, "sender")
        sender.connect("127.0.0.1", port)
        sender.loop_start()

        def hear(heard: Heard, stop: threading.Event) -> None:
            client = paho.Client(CallbackAPIVersion.VERSION2, "bare")
            client.on_message = lambda *told: heard.setdefault(
                int(told[2].payload), time.monotonic()
            )
            client.connect("127.0.0.1", port)
            client.subscribe(_TOPIC, qos=1)
            client.loop_start()
            stop.wait()
            client.loop_stop()

        yield Rig(
            settings=MqttTriggerSettings(host="127.0.0.1", port=port, topic=_TOPIC, **_WINDOW),
            send=lambda number: sender.publish(_TOPIC, str(number)),
            bare=hear,
        )
        sender.disconnect()
        sender.loop_stop()


class Registers:
    """The registers of a PLC: the count is at 0."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, _start: int, count: int) -> bytes:
        return self.count.to_bytes(2) + bytes(2 * count - 2)

    def write(self, _start: int, _data: bytes) -> None: ...


def serve_modbus(listener: socket.socket, registers: Registers) -> None:
    def converse(peer: socket.socket) -> None:
        received = bytearray()
        with suppress(OSError):
            while data := peer.recv(4096):
                received += data
                for asked in frames(received):
                    reply = ModbusFrame(
                        transaction=asked.transaction,
                        unit=asked.unit,
                        pdu=answer(asked.pdu, registers),
                    )
                    peer.sendall(bytes(reply))

    with suppress(OSError):
        while True:
            peer, _ = listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=converse, args=(peer,), daemon=True).start()


@contextmanager
def modbus(_folder: Path) -> Iterator[Rig]:
    registers = Registers()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=serve_modbus, args=(listener, registers), daemon=True).start()

        def hear(heard: Heard, stop: threading.Event) -> None:
            with ModbusConnection("127.0.0.1", port, 1) as connection:
                while not stop.wait(_POLL_S):
                    (count,) = connection.read(0, 1)
                    heard.setdefault(count, time.monotonic())

        yield Rig(
            settings=ModbusSettings(
                host="127.0.0.1", port=port, count_at=0, poll_ms=_POLL_S * 1e3, **_WINDOW
            ),
            send=lambda number: setattr(registers, "count", number),
            bare=hear,
        )


@contextmanager
def opcua(folder: Path) -> Iterator[Rig]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"opc.tcp://127.0.0.1:{probe.getsockname()[1]}/plc"
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), {}

    async def serve() -> None:
        server = found["server"] = Server()
        await server.init()
        server.set_endpoint(url)
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        space = await server.register_namespace("urn:plc")
        node = found["node"] = await server.nodes.objects.add_variable(
            ua.NodeId("Count", space), "Count", ua.Variant(0, ua.VariantType.Int32)
        )
        async with server:
            found["name"], found["left"] = node.nodeid.to_string(), asyncio.Event()
            ready.set()
            await found["left"].wait()

    serving = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    serving.start()
    ready.wait(60)

    def write(number: int) -> None:
        value = ua.DataValue(ua.Variant(number, ua.VariantType.Int32))
        asyncio.run_coroutine_threadsafe(
            found["server"].write_attribute_value(found["node"].nodeid, value), loop
        )

    def hear(heard: Heard, stop: threading.Event) -> None:
        class Noting:
            def datachange_notification(self, _node: Any, value: int, _data: Any) -> None:
                heard.setdefault(value, time.monotonic())

        async def listen() -> None:
            async with Client(url) as client:
                subscription = await client.create_subscription(10, Noting())
                await subscription.subscribe_data_change(client.get_node(found["name"]))
                await asyncio.to_thread(stop.wait)

        asyncio.run(listen())

    server = PlcServerSettings(url=url, security="none", folder=folder / "opcua")
    yield Rig(
        settings=OpcuaSettings(server=server, count_node=found["name"], **_WINDOW),
        send=write,
        bare=hear,
    )
    loop.call_soon_threadsafe(found["left"].set)
    serving.join()


@contextmanager
def serial_port(_folder: Path) -> Iterator[Rig]:
    end, port = pty.openpty()
    tty.setraw(port)
    device = os.ttyname(port)

    def hear(heard: Heard, stop: threading.Event) -> None:
        line = b""
        with serial.Serial(device, timeout=0.1) as reader:
            while not stop.is_set():
                line += reader.read_until(b"\r")
                if line.endswith(b"\r"):
                    heard.setdefault(int(line), time.monotonic())
                    line = b""

    yield Rig(
        settings=SerialSettings(device=Path(device)),
        send=lambda number: os.write(end, b"%d\r" % number),
        bare=hear,
    )
    os.close(end)
    os.close(port)


RIGS: Mapping[str, Any] = {
    "software": software,
    "mqtt": mqtt,
    "modbus": modbus,
    "opcua": opcua,
    "serial": serial_port,
}


# ---- measurements


def sent(send: Callable[[int], object], first: int, parts: int, every_s: float) -> Heard:
    """Announce the parts; when each was sent."""
    at: Heard = {}
    due = time.monotonic()
    for number in range(first, first + parts):
        due += every_s
        time.sleep(max(0.0, due - time.monotonic()))
        at[number] = time.monotonic()
        send(number)
    return at


def heard_by_itself(
    rig: Rig, hear: Callable[[Heard, threading.Event], None], first: int, parts: int, every_s: float
) -> dict[str, float]:
    heard: Heard = {}
    stop = threading.Event()
    thread = threading.Thread(target=hear, args=(heard, stop))
    thread.start()
    time.sleep(_SETTLE_S)
    at = sent(rig.send, first, parts, every_s)
    time.sleep(1)
    stop.set()
    thread.join()
    return summary([heard[number] - at[number] for number in at if number in heard])


def through_the_station(
    rig: Rig, folder: Path, first: int, parts: int, every_s: float
) -> dict[str, object]:
    stop = threading.Event()
    camera, ended = FiredCamera(stop), dict[int, Part]()
    config = Config(
        agent=AgentSettings(id="triggers"),
        bundle=BundleSettings(path=folder),
        cameras=(ConveyorSettings(trigger=rig.settings),),
        sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
        ledger=LedgerSettings(path=folder / f"ledger-{rig.settings.type}.sqlite"),
    )
    send, sources = rig.send, {}
    if isinstance(rig.settings, SoftwareSettings):
        source = SoftwareTriggers(stop, SystemClock())
        send, sources = (lambda number: source.fire(str(number))), {"main": source}

    def note(part: Part) -> None:
        ended[part.trigger.count or int(part.part_id or 0)] = part

    def run() -> None:
        run_station(
            config,
            cameras=[camera],
            triggers=sources,
            inspector=BrightnessInspector(),
            model=Model(threshold=0.5),
            parts=parts,
            stop=stop,
            observers=[note],
        )

    running = threading.Thread(target=run)
    running.start()
    time.sleep(_SETTLE_S + 3 * isinstance(rig.settings, OpcuaSettings))
    at = sent(send, first, parts, every_s)
    running.join(20)
    stop.set()
    running.join()
    found = {number: part for number, part in ended.items() if number in at and part.frame}
    verdicts = {
        number: part.received + (part.ended.decided_ns - part.trigger.triggered_ns) / 1e9
        for number, part in found.items()
    }
    return {
        "parts": len(ended),
        "states": {
            state: sum(part.ended.state == state for part in ended.values())
            for state in sorted({part.ended.state for part in ended.values()})
        },
        "announced_ms": summary([part.received - at[number] for number, part in found.items()]),
        "frame_ms": summary(
            [
                camera.read_at[part.frame.number] - at[number]
                for number, part in found.items()
                if part.frame
            ]
        ),
        "verdict_ms": summary([verdicts[number] - at[number] for number in found]),
    }


def names(rig: Rig, first: int, parts: int, every_s: float) -> dict[str, float]:
    """How long the agent's own source of part ids takes."""

    def hear(heard: Heard, stop: threading.Event) -> None:
        source = open_trigger(rig.settings, stop, SystemClock(), camera="main", sinks={})
        assert source is not None
        with source:
            while (announcement := source.read()) is not None:
                heard[int(announcement.part_id or 0)] = announcement.at

    return heard_by_itself(rig, hear, first, parts, every_s)


def summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {"parts": 0}
    at = {"p50": 0.5, "p99": 0.99}
    return {"parts": len(ordered)} | {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 3)
        for name, share in at.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--every-ms", type=float, default=100.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    parts, every_s = options.parts, options.every_ms / 1e3
    found: dict[str, object] = {}
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            rig: Rig = stack.enter_context(RIGS[kind](folder))
            one: dict[str, object] = {"bare_ms": heard_by_itself(rig, rig.bare, 1, parts, every_s)}
            if kind == "serial":
                one["named_ms"] = names(rig, parts + 1, parts, every_s)
            else:
                one |= through_the_station(rig, folder, parts + 1, parts, every_s)
            found[kind] = one
    write_result(
        {
            "machine": described(),
            "load_average": os.getloadavg()[1],
            "parts": parts,
            "every_ms": options.every_ms,
            "sources": found,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
