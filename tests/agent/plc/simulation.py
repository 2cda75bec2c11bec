"""A PLC program and a handshake with known truth, in simulated time.

    python -m tests.agent.plc.simulation 100000

runs so many parts over each kind of connection and prints what came of them as JSON. The score of
a part is its number, so a result that is read for another part shows. Trigger counts begin again
with each restart of the PLC, and parts have no ids but for one in four: nothing else tells them
apart. `server`: the PLC reads and writes the agent's registers. `client`: the agent reads and
writes those of the PLC, in between the two halves of what its program writes, or the other way
round, and they keep what they had when the agent is restarted.
"""

import heapq
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from agent.plc.blocks import (
    AgentBlock,
    PlcBlock,
    ResultCode,
    agent_block,
    agent_registers,
    plc_block,
    plc_registers,
)
from agent.plc.handshake import ENDED, Announced, Handshake, Result, Settled
from agent.plc.simulated import Ended, PlcProgram
from benchmarks.machine import described

SCAN_S = 0.010
POLL_S = 0.010
DUE_S = 0.4
TORN_S = 0.004
FORGOTTEN_S = 10.0
"""Longer than the slowest scans: a part without an end by then has been forgotten."""
RATES = {
    "scan slow, to 0.3 s": 0.005,
    "scan stops, to 4 s": 0.0002,
    "reading lost": 0.01,
    "writing lost": 0.01,
    "agent restarts": 0.0002,
    "PLC restarts": 0.0002,
    "result late": 0.01,
    "no result": 0.005,
    "torn": 0.2,  # of what is written over `client`: a register is behind by up to 4 ms
}
STRESS = RATES | {
    "scan slow, to 0.3 s": 0.02,
    "reading lost": 0.1,
    "writing lost": 0.1,
    "agent restarts": 0.005,
    "PLC restarts": 0.001,
    "result late": 0.05,
    "torn": 0.5,
}
"""What a short run needs to meet all of it."""
_FORGOTTEN = "nobody has answered"


@dataclass(kw_only=True)
class Seen:
    """What came of the parts: see `is_right` for what has to be 0."""

    parts: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    announced: int = 0
    wrong: int = 0
    announced_twice: int = 0
    ended_twice: int = 0
    never_ended: int = 0
    unsettled: int = 0
    settled_twice: int = 0
    delivered_unread: int = 0
    strays: int = 0
    agent_restarts: int = 0
    plc_restarts: int = 0
    simulated_s: float = 0.0

    @property
    def is_right(self) -> bool:
        return not (
            self.wrong
            or self.announced_twice
            or self.ended_twice
            or self.never_ended
            or self.unsettled
            or self.ends[_FORGOTTEN]
            or self.settled_twice
            or self.delivered_unread
            or self.strays
        )


class Memory:
    """Registers of a PLC: each takes its new value at a time of its own."""

    def __init__(self, registers: list[int]) -> None:
        self.old = self.new = registers
        self.whens = [0.0] * len(registers)

    def read(self, now: float) -> list[int]:
        places = zip(self.old, self.new, self.whens, strict=True)
        return [new if when <= now else old for old, new, when in places]

    def write(self, registers: list[int], whens: list[float], now: float) -> None:
        self.old, self.new, self.whens = self.read(now), registers, whens


class World:
    """One PLC, one agent, and what goes wrong between them; `torn`: the agent is the client."""

    def __init__(
        self, parts: int, seed: int, *, kind: str, rates: dict[str, float] = RATES
    ) -> None:
        self.rates = rates
        self.rng = random.Random(seed)
        self.is_client = kind == "client"
        self.parts = parts
        self.seen = Seen()
        self.now = 1000.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.announced: set[int] = set()
        self.delivered: set[int] = set()
        self.results: set[int] = set()
        self.arrived: dict[int, float] = {}
        self.ended: set[int] = set()
        self.number = 0
        self.next_at = self.now
        self.plc_memory = Memory(plc_registers(PlcBlock()))
        self.agent_memory = Memory(agent_registers(AgentBlock()))
        self.start_agent()
        self.start_plc()

    def run(self) -> Seen:
        self.later(0.0, self.scan)
        if self.is_client:
            self.later(0.0, self.poll)
        until = float("inf")
        while self.events:
            self.now, _, act = heapq.heappop(self.events)
            act()
            if self.number == self.parts and self.now < until:
                # What the PLC has read last, the agent has yet to hear of.
                until = min(until, self.now + (5 if len(self.ended) == self.parts else 60))
            if self.now > until:
                break
        self.plc.stop(_FORGOTTEN)
        seen = self.seen
        seen.parts = self.number
        seen.strays += self.plc.strays
        seen.never_ended = self.number - len(self.ended)
        seen.delivered_unread = len(self.delivered - self.results)
        seen.unsettled = len(self.offered - self.settled)
        seen.simulated_s = round(self.now - 1000.0, 1)
        return seen

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), act))

    def happens(self, name: str) -> bool:
        return self.rng.random() < self.rates[name]

    # ---- the agent

    def start_agent(self) -> None:
        self.handshake = Handshake(due_s=DUE_S)
        self.before = PlcBlock()
        self.offered, self.settled = set(), set()
        self.truth: dict[int, int] = {}  # the numbers of this agent's tokens

    def restart_agent(self) -> None:
        self.seen.agent_restarts += 1
        self.start_agent()

    def hear(self, plc: PlcBlock) -> None:
        self.do(self.handshake.heard(plc, self.now))

    def do(self, actions: list[Announced | Settled]) -> None:
        for action in actions:
            if isinstance(action, Announced):
                self.announce(action)
            else:
                self.seen.settled_twice += action.token in self.settled
                self.settled.add(action.token)
                if action.refused is None:
                    self.delivered.add(self.truth[action.token])
                why = (action.refused or "read").partition(" ")[0]
                assert action.refused is None or action.refused == ENDED or why == "came"

    def announce(self, action: Announced) -> None:
        """The part that is at the camera now is the newest that the PLC has triggered."""
        self.seen.announced += 1
        self.seen.announced_twice += self.number in self.announced
        self.announced.add(self.number)
        self.truth[action.token] = self.number
        if self.happens("no result"):
            return
        slow = self.rng.uniform(0.3, 1.0) if self.happens("result late") else 0.0
        handshake, token, number = self.handshake, action.token, self.number
        self.later(
            self.rng.uniform(0.005, 0.15) + slow, lambda: self.offer(handshake, token, number)
        )

    def offer(self, handshake: Handshake, token: int, number: int) -> None:
        if handshake is not self.handshake:
            return  # the agent that inspected it is no more
        self.offered.add(token)
        code = ResultCode.OK if number % 3 else ResultCode.NG
        result = Result(code=code, score=number, threshold=0)
        self.do(self.handshake.offer(token, result, self.now))

    def poll(self) -> None:
        """The agent as client: read, perhaps twice, write."""
        self.later(POLL_S * self.rng.uniform(0.8, 1.5), self.poll)
        if self.happens("agent restarts"):
            self.restart_agent()
        if self.happens("reading lost"):
            self.handshake.passed(self.now)
            return
        heard = plc_block(self.plc_memory.read(self.now))
        if heard.trigger and not self.before.trigger:
            again = plc_block(self.plc_memory.read(self.now + 0.001))
            if replace(again, heartbeat=heard.heartbeat) != heard:
                return
        self.before = heard
        self.hear(heard)
        self.handshake.passed(self.now)
        block = self.handshake.block(self.now)
        if self.happens("writing lost"):
            if self.rng.random() < 0.5:  # or its answer alone
                self.write(self.agent_memory, agent_registers(block))
            return
        self.write(self.agent_memory, agent_registers(block))
        handshake = self.handshake
        self.later(
            self.rng.uniform(0.0, 0.004),
            lambda: handshake.seen(block) if handshake is self.handshake else None,
        )

    def write(self, memory: "Memory", registers: list[int]) -> None:
        if self.happens("torn"):
            whens = [self.now + self.rng.uniform(0.0, TORN_S) for _ in registers]
            memory.write(registers, whens, self.now)
        else:
            memory.write(registers, [self.now] * len(registers), self.now)

    # ---- the PLC

    def start_plc(self) -> None:
        self.plc = PlcProgram(arrive=self.arrive, ended=self.end)

    def restart_plc(self) -> None:
        self.seen.plc_restarts += 1
        self.seen.strays += self.plc.strays
        self.plc.stop("the PLC was restarted")
        self.start_plc()
        if self.is_client:
            self.plc_memory = Memory(plc_registers(PlcBlock()))
            self.agent_memory = Memory(agent_registers(AgentBlock()))

    def arrive(self) -> tuple[int, str] | None:
        if self.now < self.next_at or self.number == self.parts:
            return None
        self.number += 1
        self.arrived[self.number] = self.now
        self.next_at = self.now + self.rng.expovariate(1 / 0.05)
        return self.number, f"id-{self.number}" if self.number % 4 == 0 else ""

    def end(self, ended: Ended) -> None:
        self.seen.ended_twice += ended.number in self.ended
        self.ended.add(ended.number)
        if self.now - self.arrived[ended.number] > FORGOTTEN_S:
            self.seen.ends[_FORGOTTEN] += 1
        if ended.reason:
            self.seen.ends[ended.reason] += 1
            return
        self.seen.ends[ended.code.name] += 1
        self.results.add(ended.number)
        if ended.code is ResultCode.LATE:
            self.seen.wrong += ended.ok
        else:
            self.seen.wrong += ended.score != ended.number
            self.seen.wrong += ended.ok and ended.number % 3 == 0

    def scan(self) -> None:
        wait_s = SCAN_S * self.rng.uniform(0.9, 1.2)
        if self.happens("scan slow, to 0.3 s"):
            wait_s += self.rng.uniform(0.02, 0.3)
        if self.happens("scan stops, to 4 s"):
            wait_s += self.rng.uniform(0.3, 4.0)
        self.later(wait_s, self.scan)
        if self.happens("PLC restarts"):
            self.restart_plc()
        if self.is_client:
            told = agent_block(self.agent_memory.read(self.now))
            self.write(self.plc_memory, plc_registers(self.plc.scan(told, self.now)))
            return
        told = None
        self.handshake.passed(self.now)
        # The request may reach the agent although its answer is lost.
        block = self.handshake.block(self.now)
        self.handshake.seen(block)
        if not self.happens("reading lost"):
            told = agent_block(agent_registers(block))
        written = self.plc.scan(told, self.now)
        if not self.happens("writing lost"):
            # An agent that has just started may hear the PLC before the PLC hears it.
            self.later(self.rng.uniform(0.0, 0.8) * SCAN_S, lambda: self.hear(written))
        if self.happens("agent restarts"):
            self.later(self.rng.uniform(0.0, 0.8) * SCAN_S, self.restart_agent)


def simulated(parts: int, seed: int, *, kind: str, rates: dict[str, float] = RATES) -> Seen:
    """This number of parts, in runs of 5000."""
    found = Seen()
    for first in range(0, parts, 5000):
        seen = World(min(5000, parts - first), seed + first, kind=kind, rates=rates).run()
        for name, value in vars(seen).items():
            setattr(found, name, getattr(found, name) + value)
    return found


def main() -> None:
    parts = int(sys.argv[1])
    result: dict[str, object] = {
        "machine": described(),
        "parts": parts,
        "rates": RATES,
        "scan_s": SCAN_S,
        "due_s": DUE_S,
    }
    found = {}
    for kind in ("server", "client"):
        began = time.perf_counter()
        found[kind] = simulated(parts, 1, kind=kind)
        result[kind] = vars(found[kind]) | {"seconds": round(time.perf_counter() - began, 1)}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.exit(not all(seen.is_right for seen in found.values()))


if __name__ == "__main__":
    main()
