"""A line for faults: the agent as it is, behind a camera and an inspector that cost nothing.

As a process, so that it can be killed:

    python -m tests.faults.belt FOLDER PORT PARTS_PER_SECOND

`FOLDER/seen` then holds the number of the newest part that the camera has handed over. It is
written before the agent gets the part, and outlives the process: what the ledger lacks below it was
lost. `FOLDER/halt` stops the belt, not the agent.
"""

import logging
import os
import sys
import threading
from pathlib import Path
from time import monotonic, time_ns

import numpy as np

from agent.cameras.folder import FolderSettings
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model, stopping_on_signals
from engine.frame import Box, Frame, Inspection
from tests.inspections import inspection

AGENT = "line1"
EVERY = 5
"""Each fifth part is NG."""
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
"""Noise, so that a thumbnail of it is larger than an alarm."""


def configured(folder: Path, port: int, **mqtt: object) -> Config:
    """The configuration of the line in `folder`."""
    return Config(
        agent=AgentSettings(id=AGENT),
        bundle=BundleSettings(path=folder),
        cameras=(FolderSettings(type="folder", path=folder),),
        ledger=LedgerSettings(path=folder / "ledger.sqlite"),
        sinks=(MqttSettings(**{"host": "127.0.0.1", "port": port, "every_part": True, **mqtt}),),
    )


class Belt:
    """Parts at a steady rate, `rate` a second, with numbers from `first` on, until `stop`."""

    triggered = True
    silence_s = None
    is_live = False
    fault = None

    def __init__(self, rate: float, stop: threading.Event, first: int = 1, seen: int = -1) -> None:
        self._period_s = 1 / rate
        self._stop = stop
        self._number = first
        self._seen = seen
        self._due = monotonic()
        self.handed_over = 0
        self.is_halted = lambda: False

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def renewed(self):
        return self

    def part_id(self, number: int) -> str:
        return f"part-{number}"

    def source(self, _number: int) -> None:
        return None

    def read(self) -> Frame | None:
        self._due += self._period_s
        while not self._stop.wait(max(0.0, self._due - monotonic())):
            if self.is_halted():
                self._due = monotonic() + 0.1
                continue
            number, self._number = self._number, self._number + 1
            self.handed_over += 1
            if self._seen >= 0:
                os.pwrite(self._seen, number.to_bytes(8, "little"), 0)
            # The number is the picture, for the inspector to see.
            pixels = PICTURE.copy()
            pixels[0, 0] = number % EVERY
            return Frame(pixels=pixels, number=number, captured_ns=time_ns())
        return None


class Eye:
    """Sees at once whether a part is the fifth."""

    def inspect(self, pixels: np.ndarray) -> Inspection:
        return inspection(0.0 if pixels[0, 0, 0] else 2.0, Box.around(pixels))


def seen(folder: Path) -> int:
    """The newest part that the camera has handed over."""
    path = folder / "seen"
    return int.from_bytes(path.read_bytes(), "little") if path.exists() else 0


def main() -> None:
    folder, port, rate = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    stop = threading.Event()
    first = seen(folder) + 1
    file = os.open(folder / "seen", os.O_RDWR | os.O_CREAT)
    belt = Belt(rate, stop, first, file)
    belt.is_halted = (folder / "halt").exists
    with stopping_on_signals(stop):
        run_station(
            configured(folder, port),
            cameras=[belt],
            inspector=Eye(),
            model=Model(threshold=1.0),
            stop=stop,
        )


if __name__ == "__main__":
    main()
