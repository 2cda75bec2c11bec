"""A line whose parts a PLC announces, as a process that can be killed.

    python -m tests.faults.plc_line FOLDER MODBUS_PORT CAMERA

The camera sees the part whose number comes as a datagram to the socket `CAMERA`, a file descriptor
that outlives the process so that no other program takes its port; with the number comes its own
count of its triggers: parts come faster than their windows end, and only such a count tells which
of them a late frame belongs to.
"""

import logging
import socket
import sys
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import time_ns

import numpy as np

from agent.cameras.conveyor import ConveyorSettings
from agent.cameras.settings import LineSettings
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.modbus import ModbusSettings
from agent.station.run import run_station
from agent.station.station import Model, stopping_on_signals
from agent.triggers.plc import PlcSettings
from engine.frame import Frame
from engine.scripted_inspector import BrightnessInspector
from tests.agent.plc.line import THRESHOLD, brightness

DUE_MS = 1500.0


class DatagramCamera:
    """Gives a frame for each datagram."""

    triggered = True
    silence_s = None
    is_live = False
    fault = None

    def __init__(self, descriptor: int, stop: threading.Event) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while self._socket.recv(100):  # what came while there was no agent was not seen
                pass
        self._socket.settimeout(0.2)
        self._stop = stop
        self._numbers = count()

    def __enter__(self):
        return self

    def __exit__(self, *_: object): ...

    def renewed(self):
        return self

    def read(self) -> Frame | None:
        while not self._stop.is_set():
            try:
                number, triggers = map(int, self._socket.recv(100).split())
            except TimeoutError:
                continue
            pixels = np.full((8, 10, 3), brightness(number), np.uint8)
            return Frame(
                pixels=pixels,
                number=next(self._numbers),
                captured_ns=time_ns(),
                trigger_count=triggers,
            )
        return None

    def part_id(self, _number: int) -> None:
        return None

    def source(self, _number: int) -> None:
        return None


def main(folder: Path, modbus_port: int, camera: int) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    config = Config(
        agent=AgentSettings(id="line1"),
        bundle=BundleSettings(path=folder),
        cameras=(ConveyorSettings(trigger=PlcSettings(max_ms=1000.0)),),
        line=LineSettings(deadline_ms=DUE_MS - 500),
        ledger=LedgerSettings(path=folder / "ledger.sqlite"),
        sinks=(ModbusSettings(allow=("127.0.0.1",), port=modbus_port, due_ms=DUE_MS),),
    )
    stop = threading.Event()
    with stopping_on_signals(stop):
        run_station(
            config,
            cameras=[DatagramCamera(camera, stop)],
            inspector=BrightnessInspector(),
            model=Model(threshold=THRESHOLD),
            stop=stop,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
