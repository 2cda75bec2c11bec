"""A line whose parts a PLC announces: its camera, and the PLC as a Modbus client of another make.

A part's number shows in its frame as brightness, so that its score tells which part was inspected.
"""

import itertools
import queue
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

from agent.plc.blocks import ResultCode, agent_block, plc_registers
from agent.plc.simulated import Ended, PlcProgram
from engine.frame import Frame

BRIGHTEST = 200
THRESHOLD = 1.5
MOST = 5
"""Parts under way, so that a busy machine drops none."""


def brightness(number: int) -> int:
    """A frame of part `number`; a quarter of them are NG."""
    return 37 * number % BRIGHTEST


def score(number: int) -> int:
    """What the PLC is told of part `number` (`BrightnessInspector`, thousandths)."""
    return brightness(number) * 10


class BeltCamera:
    """Sees the parts that the PLC triggers; `waits`: each frame comes once it was `released`.

    A real camera is slower than a trigger's way into the agent; with `waits` that does not depend
    on how busy the machine is.
    """

    triggered = True
    silence_s = None
    is_live = False
    fault = None

    def __init__(self, stop, *, waits=False):
        self._stop = stop
        self._waits = waits
        self._shown = {}
        self._idle = threading.Event()
        self._frames = queue.SimpleQueue()
        self._numbers = itertools.count()

    def show(self, number, count):
        """The part is there, and the PLC has sent its trigger of this count."""
        pixels = np.full((8, 10, 3), brightness(number), np.uint8)
        frame = Frame(pixels=pixels, number=next(self._numbers), captured_ns=time.time_ns())
        if self._waits:
            self._shown[count] = frame
        else:
            self._frames.put(frame)

    def released(self, count):
        """The agent knows of the trigger; waits until it has the frame, too."""
        until = time.monotonic() + 60
        while count not in self._shown and not self._stop.is_set():
            assert time.monotonic() < until, "the PLC has shown no part"
            time.sleep(0.001)
        self._idle.clear()
        self._frames.put(self._shown.pop(count, None))
        self._idle.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_: object): ...

    def renewed(self):
        return self

    def read(self):
        if self._frames.empty():
            self._idle.set()
        while not self._stop.is_set():
            try:
                return self._frames.get(timeout=0.05)
            except queue.Empty:
                self._idle.set()
        return None

    def part_id(self, _number):
        return None

    def source(self, _number):
        return None


@dataclass(kw_only=True)
class Told:
    """What the PLC was told."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    twice: int = 0
    latencies_s: list[float] = field(default_factory=list)
    restarts: int = 0


class Plc(threading.Thread):
    """Runs the PLC's program against the agent at `port` until `parts` have ended.

    `faults` are chances per scan: "slow", "lost reading", "lost writing", "restart", "reconnect".
    The agent's block is at `agent_at` of the server at `port`, the PLC's at `plc_at`.
    """

    def __init__(self, port, parts, show, *, scan_s=0.01, faults=None, seed=0, every_s=0.0):
        super().__init__(name="plc", daemon=True)
        self.port, self.parts, self.show = port, parts, show
        self.scan_s, self.faults, self.every_s = scan_s, faults or {}, every_s
        self.rng = random.Random(seed)
        self.told = Told()
        self.number = 0
        self.next_at = 0.0
        self.began: dict[int, float] = {}
        self.ended: set[int] = set()
        self.stopping = threading.Event()
        self.program = self.started()
        self.shown = 0

    def started(self):
        return PlcProgram(arrive=self.arrive, ended=self.end)

    def arrive(self):
        under_way = len(self.program._waiting)
        if self.number == self.parts or time.monotonic() < self.next_at or under_way >= MOST:
            return None
        self.number += 1
        self.next_at = time.monotonic() + self.every_s
        return self.number, f"part-{self.number}" if self.number % 2 else ""

    def end(self, ended: Ended):
        told = self.told
        told.twice += ended.number in self.ended
        self.ended.add(ended.number)
        told.ends[ended.reason or ended.code.name] += 1
        if ended.reason or ended.code > ResultCode.NG:
            told.wrong += ended.ok
            return
        told.wrong += ended.score != score(ended.number)
        told.wrong += ended.ok != (score(ended.number) <= THRESHOLD * 1000)
        told.latencies_s.append(time.monotonic() - self.began[ended.number])

    def happens(self, fault):
        return self.rng.random() < self.faults.get(fault, 0.0)

    def run(self):
        # Patient, so that no trigger is written of which it does not know, and shows no part.
        client = ModbusTcpClient("127.0.0.1", port=self.port, timeout=60, retries=0)
        while len(self.ended) < self.parts and not self.stopping.is_set():
            begun = time.monotonic()
            if self.happens("restart"):
                self.told.restarts += 1
                self.program.stop("the PLC was restarted")
                self.program = self.started()
            if self.happens("reconnect"):
                client.close()
            self.scan(client)
            wait_s = self.scan_s + self.rng.uniform(0.05, 0.3) * self.happens("slow")
            self.stopping.wait(max(0.0, begun + wait_s - time.monotonic()))
        client.close()

    def scan(self, client):
        try:
            told = None
            if client.connected or client.connect():
                reply = client.read_holding_registers(0, count=32, device_id=1)
                if not reply.isError() and not self.happens("lost reading"):
                    told = agent_block(reply.registers)
            block = self.program.scan(told, time.monotonic())
            if not client.connected or self.happens("lost writing"):
                return
            client.write_registers(100, plc_registers(block), device_id=1)
            if block.trigger and self.shown < self.number:
                self.shown = self.number
                self.began[self.number] = time.monotonic()
                self.show(self.number, block.count)
        except (ModbusException, OSError):
            client.close()
