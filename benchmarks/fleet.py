"""Two hundred agents of a fleet on one machine, and what goes wrong with them.

    python -m benchmarks.fleet --out benchmarks/results/fleet.json

A simulated agent has no camera and no network. Its desired-state client, its shipper and what it
says over MQTT are the product's own, against one mosquitto, one docker-registry and moto's S3.

`cost` is in real time: every agent says its health each five seconds, has a part a second of which
2 % are alarms, and asks the registry as often as it does by default; what brokers, registry and the
fleet's page need of the processor. `scenario` runs `speed` times as fast as time: a bundle rolls
out while the registry is killed and S3 is away for an hour; then states and bundles come that must
not be taken; then a second bundle rolls out, and a third that must stop at the ring of 1 %.
`parquet` is an hour of one line at a part a second, `pictures` what thumbnails and kept frames are.
"""

import argparse
import asyncio
import json
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import boto3
import duckdb
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import TypeAdapter

from agent.demo import BUNDLE
from agent.fleet.bundles import push_bundle
from agent.fleet.desired import LINE, Desired, publish, repository_of
from agent.fleet.follower import Follower
from agent.fleet.goal import InForce, Rules, Shadowed
from agent.fleet.kept import Ends
from agent.fleet.oci import Registry
from agent.fleet.plan import FleetPlan
from agent.fleet.reports import heard
from agent.fleet.rollout import RollOut
from agent.fleet.settings import TrialSettings
from agent.mqtt.message import Message
from agent.part import State
from agent.record.feed import Cursor
from agent.record.rows import THUMBNAIL_MAX_BYTES, Event
from agent.services.shipper.names import Shipped, missing
from agent.services.shipper.parquet import to_parquet
from agent.services.shipper.serving import Rounds
from agent.services.shipper.shipper import Shipper
from agent.services.shipper.store import S3Address, S3Store
from agent.sinks.mqtt.messages import Topics, alarm, fleet, health, state
from agent.station.status import (
    BOUNDS_S,
    CameraStatus,
    FleetStatus,
    Histogram,
    LedgerStatus,
    Promise,
    SinkStatus,
    Status,
)
from agent.station.summary import STAGES
from agent.synthetic.flange import part
from benchmarks.machine import cpu_s, described, resident_mb, write_result
from engine.backends.opening import open_inspector
from engine.bundle import Bundle, open_bundle, replace_file
from engine.errors import AtacError
from engine.frame import Box, Pass
from engine.image import read_image
from engine.picture import annotated, captioned, jpeg
from engine.signature import SIGNATURE, sign
from tests.conftest import Mosquitto
from tests.ports import free_port
from tests.registry import Keys, RealRegistry
from tests.tiny_bundle import tiny_bundle

_LOG: Final = logging.getLogger("fleet")
AGENTS: Final = 200
SPEED: Final = 20.0
_SEED: Final = 7
_FROZEN_S: Final = 1.0
"""The clock is asked many times a second; what is longer was no time of this process."""
_OLD: Final = "0" * 64
_PART_S: Final = 10.0
"""From part to part of a line, in the scenario."""
_HEALTH_S: Final = 60.0
_POLL_S: Final = 90.0
_LISTEN_S: Final = 10.0
_PICTURES: Final = 30
_TRIAL: Final = TrialSettings(parts=20, most_ng=0.2)
_THRESHOLD: Final = 1.0
_NO_TIMES: Final = Histogram(counts=(0,) * (len(BOUNDS_S) + 1), total_s=0.0)
_PROMISE: Final = Promise(
    max_false_reject=0.01, confidence=0.95, is_proved=True, calibrated_at="2026-11-01T00:00:00Z"
)


class FastClock:
    """A clock that runs `speed` times as fast as time, but for times in which nobody could run."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._passed, self._last, self._utc_ns = 0.0, time.monotonic(), time.time_ns()
        self._lock = threading.Lock()

    def now(self) -> float:
        with self._lock:
            now = time.monotonic()
            self._passed += min(now - self._last, _FROZEN_S)
            self._last = now
            return self._passed * self.speed

    def utc_ns(self) -> int:
        return self._utc_ns + round(self.now() * 1e9)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(max(0.0, timeout_s) / self.speed)


class SimulatedLine:
    """A line: what its parts are like follows from its bundle; read by any thread."""

    def __init__(self, number: int, clock: FastClock, bad: Callable[[], str]) -> None:
        self.agent_id = f"line-{number:03d}"
        self.epoch = f"{number:012x}"
        self.bundle_id, self._before = _OLD, _OLD
        self.applied: list[str] = []
        self.decided_ns: list[int] = []
        self.is_ng: list[bool] = []
        self.clock_off = timedelta()
        self.fleet = FleetStatus()
        self.states: list[tuple[str, str | None]] = []
        self._number, self._clock, self._bad = number, clock, bad
        self._chance = random.Random(_SEED + number)

    def part(self) -> Event:
        """One more part."""
        share = 0.5 if self.bundle_id == self._bad() and self._number else 0.02
        self.is_ng.append(self._chance.random() < share)
        self.decided_ns.append(self._clock.utc_ns())
        return self.event(len(self.is_ng))

    def event(self, position: int) -> Event:
        is_ng, at = self.is_ng[position - 1], self.decided_ns[position - 1]
        score = 1.5 if is_ng else 0.25 + position % 97 / 200
        return replace(
            _EVENT,
            agent_id=self.agent_id,
            epoch=self.epoch,
            sequence=position,
            position=position,
            triggered_ns=at - 40_000_000,
            decided_ns=at,
            state=State.NG if is_ng else State.OK,
            score=score,
            bundle_id=self.bundle_id,
        )

    def told(self, status: FleetStatus) -> None:
        self.fleet = status
        self.states.append((status.state, status.reason))

    # ---- what the follower asks

    def now(self) -> InForce:
        return InForce(bundle_id=self.bundle_id, ends=self._ends())

    def promise(self) -> Promise | None:
        return _PROMISE

    def calibrate(
        self,
        bundle: Bundle,  # noqa: ARG002
        *,
        is_own: bool,  # noqa: ARG002
        meanwhile: Callable[[], None],  # noqa: ARG002
    ) -> Promise:
        return _PROMISE

    def shadow(
        self,
        bundle: Bundle,  # noqa: ARG002
        *,
        meanwhile: Callable[[], None],  # noqa: ARG002
    ) -> Shadowed | None:
        return Shadowed(judged=200, changed=self._chance.randrange(4))

    def change(self, kind: str, bundle: Bundle | None, why: str) -> None:  # noqa: ARG002
        now = self._before if bundle is None else bundle.id
        self.bundle_id, self._before = now, self.bundle_id
        self.applied.append(now)

    # ---- what the shipper asks

    def rows_after(self, after: Cursor) -> list[Event] | None:
        first = after[1] if after[0] == self.epoch else 0
        return [
            self.event(each)
            for each in range(first + 1, min(len(self.decided_ns), first + 500) + 1)
        ]

    def labels_after(self, known: int) -> None: ...

    def frame(self, epoch: str, sequence: int) -> None: ...

    def status(self) -> Status:
        ends = self._ends()
        counts = dict.fromkeys(State, 0) | {State.OK: ends.ended - ends.ng, State.NG: ends.ng}
        return Status(
            time_ns=self._clock.utc_ns() + round(self.clock_off.total_seconds() * 1e9),
            uptime_s=self._clock.now(),
            agent_id=self.agent_id,
            epoch=self.epoch,
            bundle_id=self.bundle_id,
            calibration_id=_OLD,
            backend="simulated",
            threshold=_THRESHOLD,
            calibrated_threshold=_THRESHOLD,
            cameras={"main": CameraStatus(triggers=ends.ended, counts=counts)},
            latencies=dict.fromkeys(STAGES, _NO_TIMES),
            sinks={"mqtt": SinkStatus(is_connected=True)},
            ledger=LedgerStatus(),
            fleet=self.fleet,
        )

    def _ends(self) -> Ends:
        ended = len(self.decided_ns)
        return Ends(epoch=self.epoch, ended=ended, ng=sum(self.is_ng[:ended]), errors=0)


def _pass(score: float) -> Pass:
    return Pass(
        box=Box(left=812, top=403, right=1324, bottom=915), score=score, view_s=1e-3, network_s=6e-3
    )


_EVENT: Final = Event(
    agent_id="",
    epoch="",
    sequence=1,
    position=1,
    camera="main",
    part_id=None,
    count=None,
    triggered_ns=0,
    deadline_ns=None,
    state=State.OK,
    decided_ns=0,
    reason="",
    late_state=None,
    late_s=None,
    threshold=_THRESHOLD,
    frame_number=1,
    captured_ns=1,
    frame_width=2448,
    frame_height=2048,
    device_id=None,
    block_id=None,
    device_ns=None,
    exposure_us=None,
    trigger_count=None,
    score=0.5,
    deviation=0.5,
    attention_s=1e-5,
    passes=(_pass(0.4), _pass(0.5)),
    bundle_id="",
    calibration_id=_OLD,
    software="simulated",
)


class Connection:
    """One agent's connection to the broker, on asyncio's loop."""

    def __init__(self, line: SimulatedLine, port: int) -> None:
        self._topics = Topics(agent_id=line.agent_id)
        self._line, self._before = line, None
        self._told: tuple[str, FleetStatus] | None = None
        self.sent: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.acknowledged = 0
        loop = asyncio.get_running_loop()
        self._client = client = Client(
            CallbackAPIVersion.VERSION2, line.agent_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.on_socket_open = lambda _c, _d, sock: loop.add_reader(sock, client.loop_read)
        client.on_socket_close = lambda _c, _d, sock: loop.remove_reader(sock)
        client.on_socket_register_write = lambda _c, _d, s: loop.add_writer(s, client.loop_write)
        client.on_socket_unregister_write = lambda _c, _d, sock: loop.remove_writer(sock)
        client.on_publish = self._on_publish
        will = state(self._topics, online=False)
        client.will_set(will.topic, will.payload, 1, retain=True)
        client.connect("127.0.0.1", port, keepalive=600)
        self._say("state", state(self._topics, online=True))

    def health(self) -> None:
        now = self._line.status()
        self._say("health", health(self._topics, "mqtt", now, self._before))
        self._before = now

    def fleet(self) -> None:
        """What became of the desired state, where that is something else than was said."""
        told = self._line.bundle_id, self._line.fleet
        if told != self._told:
            self._told = told
            self._say("fleet", fleet(self._topics, self._line.status()))

    def alarm(self, event: Event) -> None:
        self._say("alarm", alarm(self._topics, event))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_misc()

    def _say(self, what: str, message: Message) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = message.content_type
        self._client.publish(message.topic, message.payload, 1, message.retain, properties)
        self.sent[what] += 1
        self.bytes[what] += len(message.payload)

    def _on_publish(self, *_: object) -> None:
        self.acknowledged += 1


class S3Server:
    """moto's S3 in a process of its own, with a bucket; a context manager."""

    bucket = "fleet"

    def __init__(self) -> None:
        self.port = free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.address = S3Address(
            bucket=self.bucket,
            endpoint=f"http://127.0.0.1:{self.port}",
            region="us-east-1",
            access_key="a",
            secret_key="b",  # noqa: S106 - moto takes any
        )
        self.client = boto3.client(
            "s3",
            endpoint_url=self.address.endpoint,
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",  # noqa: S106 - moto takes any
        )
        until = time.monotonic() + 120
        while True:
            try:
                self.client.create_bucket(Bucket=self.bucket)
            except Exception:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
            else:
                return

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class Away:
    """Puts into a store, unless it is away."""

    def __init__(self, address: S3Address) -> None:
        self._near = S3Store(address, max_bytes_s=1e9)
        self._far = S3Store(replace(address, endpoint="http://127.0.0.1:9"), max_bytes_s=1e9)
        self.is_away = False
        self.failed = 0

    def put(self, name: str, data: bytes) -> bool:
        if self.is_away:
            self.failed += 1
        return (self._far if self.is_away else self._near).put(name, data)


class Fleet:
    """All agents with their servers."""

    def __init__(self, folder: Path, mosquitto: str, count: int, speed: float) -> None:
        self.folder, self._binary, self.clock = folder, mosquitto, FastClock(speed)
        self.bad = ""
        self.lines = [
            SimulatedLine(number, self.clock, lambda: self.bad) for number in range(count)
        ]
        self.by_name = {line.agent_id: line for line in self.lines}
        self.keys = Keys(folder)
        self.polls = 0

    def __enter__(self) -> Self:
        self._stack = stack = ExitStack()
        self.broker = stack.enter_context(Mosquitto(self._binary, self.folder))
        self.registry = stack.enter_context(RealRegistry(self.folder / "registry"))
        self.s3 = stack.enter_context(S3Server())
        self.store = Away(self.s3.address)
        self.pool = stack.enter_context(ThreadPoolExecutor(8))
        self.plan = TypeAdapter(FleetPlan).validate_python(
            {
                "registry": {"address": self.registry.settings.address},
                "key": self.keys.public,
                "lines": tuple(self.by_name),
                "brokers": ({"host": "127.0.0.1", "port": self.broker.port},),
            }
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def bundle(self, gain: float, key: Keys | None = None) -> Bundle:
        """A signed bundle, in the registry."""
        made = tiny_bundle(self.folder / f"bundle-{gain:g}", gain=gain)
        signed = sign(made.read("manifest.json"), (key or self.keys).private)
        replace_file(made.path / SIGNATURE, signed)
        push_bundle(self.registry.client(), made)
        return made

    def utc(self) -> datetime:
        return datetime.fromtimestamp(self.clock.utc_ns() / 1e9, UTC)

    def desire(self, line: str, bundle: str, *, at: str = "", **changes: Any) -> int:
        values = {
            "agent": line,
            "serial": round(self.clock.utc_ns() / 1e9),
            "bundle": bundle,
            "expires": (self.utc() + timedelta(days=30)).isoformat(timespec="seconds"),
        }
        desired = Desired(**values | changes)
        publish(self.registry.client(), repository_of(at or line), desired, self.keys.private)
        return desired.serial

    def refusal(self, name: str) -> str | None:
        """Why a line has refused something last; between two tries it says what it waits for."""
        states = reversed(self.by_name[name].states)
        return next((reason for state, reason in states if state == "refused"), None)

    def follower(self, line: SimulatedLine) -> Follower:
        return Follower(
            Registry.of(self.registry.settings, wait_s=5.0),
            {LINE: line},
            self.folder / line.agent_id,
            Rules(
                agent_id=line.agent_id,
                key=self.keys.public,
                option="key",
                max_changed=0.2,
                trial=_TRIAL,
            ),
            tell=line.told,
            now=lambda: self.utc() + line.clock_off,
            clock=self.clock.now,
            every_s=_POLL_S,
        )

    def shipper(self, line: SimulatedLine) -> Shipper:
        return Shipper(
            line,
            lambda: self.store,
            folder=self.folder / line.agent_id / "shipper",
            site="site-1",
            agent_id=line.agent_id,
            near=0.1,
            frames_an_hour=0,
            rest=lambda _: None,
        )


# ---- in real time: what it costs


async def cost(fleet: Fleet, page: subprocess.Popen[str], seconds: float) -> dict[str, object]:
    """Every agent as it is by default, for so many seconds."""
    ends = asyncio.Event()
    connections = [Connection(line, fleet.broker.port) for line in fleet.lines]
    heads = Counter[str]()

    async def talk(line: SimulatedLine, connection: Connection) -> None:
        chance = random.Random(line.agent_id)
        health_at, part_at = chance.uniform(0, 5), chance.uniform(0, 1)
        began = time.monotonic()
        while not ends.is_set():
            now = time.monotonic() - began
            if now >= part_at:
                part_at += 1.0
                connection.fleet()
                event = line.part()
                if event.state is not State.OK:
                    connection.alarm(event)
            if now >= health_at:
                health_at += 5.0
                connection.health()
            await asyncio.sleep(max(0.01, min(part_at, health_at) - (time.monotonic() - began)))

    async def poll(line: SimulatedLine, follower: Follower) -> None:
        chance = random.Random(line.agent_id)
        await asyncio.sleep(chance.uniform(0, 90))
        while not ends.is_set():
            await asyncio.get_running_loop().run_in_executor(fleet.pool, follower.poll)
            heads["polls"] += 1
            await asyncio.sleep(90 * chance.uniform(2 / 3, 4 / 3))

    followers = [fleet.follower(line) for line in fleet.lines]
    tasks = [
        asyncio.create_task(talk(*pair)) for pair in zip(fleet.lines, connections, strict=True)
    ]
    tasks += [asyncio.create_task(poll(*pair)) for pair in zip(fleet.lines, followers, strict=True)]
    await asyncio.sleep(5.0)
    pids = {
        "mosquitto": fleet.broker.pid,
        "registry": fleet.registry.pid,
        "page": page.pid,
    }
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    sent = sum((each.sent for each in connections), Counter())
    size = sum((each.bytes for each in connections), Counter())
    polls, began = heads["polls"], time.monotonic()
    await asyncio.sleep(seconds)
    took_s = time.monotonic() - began
    used = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
    sent = sum((each.sent for each in connections), Counter()) - sent
    size = sum((each.bytes for each in connections), Counter()) - size
    polls = heads["polls"] - polls
    await asyncio.sleep(1.0)
    lost = sum(each.sent.total() - each.acknowledged for each in connections)
    ends.set()
    for task in tasks:
        task.cancel()
    for connection in connections:
        connection.close()
    messages = sent.total()
    return {
        "seconds": round(took_s, 1),
        "messages_s": round(messages / took_s, 1),
        "bytes": {what: round(size[what] / sent[what]) for what in sent},
        "polls_s": round(polls / took_s, 2),
        "cpu_share": {name: round(each / took_s, 4) for name, each in used.items()},
        "mosquitto_us_a_message": round(1e6 * used["mosquitto"] / messages, 1),
        "page_us_a_message": round(1e6 * used["page"] / messages, 1),
        "registry_ms_a_poll": round(1e3 * used["registry"] / max(1, polls), 2),
        "page_mb": round(resident_mb(page.pid), 1),
        "mosquitto_mb": round(resident_mb(pids["mosquitto"]), 1),
        "unacknowledged": lost,
    }


# ---- faster than time: what goes wrong


async def scenario(fleet: Fleet) -> dict[str, object]:
    """Everything that must not stop a line, and must not be taken."""
    loop, clock = asyncio.get_running_loop(), fleet.clock
    stop = threading.Event()
    connections = {line.agent_id: Connection(line, fleet.broker.port) for line in fleet.lines}
    followers = {line.agent_id: fleet.follower(line) for line in fleet.lines}
    for number, line in enumerate(fleet.lines[-10:]):
        line.clock_off = timedelta(days=1 if number % 2 else -1)
    rounds = [Rounds(fleet.shipper(line), every_s=3600.0, clock=clock) for line in fleet.lines]
    shipping = [threading.Thread(target=each.run) for each in rounds]
    for thread in shipping:
        thread.start()

    async def live(line: SimulatedLine) -> None:
        chance = random.Random(line.agent_id)
        await asyncio.sleep(chance.random() * _PART_S / clock.speed)
        connection, follower = connections[line.agent_id], followers[line.agent_id]
        health_at = clock.now() + chance.random() * _HEALTH_S
        poll_at = clock.now() + chance.random() * _POLL_S
        due, polling = clock.now(), None
        while not stop.is_set():
            event = line.part()
            if event.state is not State.OK:
                connection.alarm(event)
            connection.fleet()
            now = clock.now()
            if now >= health_at:
                health_at = now + _HEALTH_S
                connection.health()
            if polling is None or polling.done():
                work = follower.watch
                if now >= poll_at:
                    poll_at, work = now + _POLL_S * chance.uniform(2 / 3, 4 / 3), follower.poll
                    fleet.polls += 1
                polling = loop.run_in_executor(fleet.pool, work)
            due += _PART_S
            await asyncio.sleep(max(0.0, due - clock.now()) / clock.speed)
        if polling is not None:
            await polling

    began = clock.now()
    living = [asyncio.create_task(live(line)) for line in fleet.lines]
    told: dict[str, object] = {}
    try:
        told |= await _happening(fleet)
    finally:
        stop.set()
        await asyncio.gather(*living)
        for each in rounds:
            each.stop.set()
        for thread in shipping:
            await asyncio.to_thread(thread.join)
    lasted_s = clock.now() - began
    for line in fleet.lines:
        await asyncio.to_thread(fleet.shipper(line).ship)
    for connection in connections.values():
        connection.close()
    gaps = [max((b - a) / 1e9 for a, b in pairwise(line.decided_ns)) for line in fleet.lines]
    return told | {
        "speed": clock.speed,
        "hours": round(lasted_s / 3600, 2),
        "parts": sum(len(line.is_ng) for line in fleet.lines),
        "longest_time_without_a_part_s": round(max(gaps), 1),
        "part_every_s": _PART_S,
        "polls": fleet.polls,
        "messages": (sent := sum((each.sent for each in connections.values()), Counter())),
        "bytes": {
            what: round(sum(each.bytes[what] for each in connections.values()) / sent[what])
            for what in sent
        },
        "unacknowledged": sum(
            each.sent.total() - each.acknowledged for each in connections.values()
        ),
        "puts_that_failed": fleet.store.failed,
        "parquet": await asyncio.to_thread(_read, fleet),
    }


async def _happening(fleet: Fleet) -> dict[str, object]:
    clock = fleet.clock
    good, better, bad = fleet.bundle(40.0), fleet.bundle(41.0), fleet.bundle(42.0)
    forged = fleet.bundle(43.0, Keys(fleet.folder, "stranger"))
    poisoned = fleet.bundle(44.0)
    fleet.bad = bad.id
    told: dict[str, object] = {}

    async def later(after_s: float, what: Callable[[], object]) -> None:
        await asyncio.sleep(after_s / clock.speed)
        await asyncio.to_thread(what)

    def away(*, is_away: bool) -> None:
        fleet.store.is_away = is_away

    tasks = [
        asyncio.create_task(later(60, lambda: away(is_away=True))),
        asyncio.create_task(later(60 + 3600, lambda: away(is_away=False))),
    ]

    # A roll-out, in whose third ring the registry is killed for ten minutes.
    def killed() -> None:
        fleet.registry.kill()
        time.sleep(600 / clock.speed)
        fleet.registry.start()

    told["roll_out"] = await _roll_out(fleet, good.id, at_ring=(3, killed))

    # What must not be taken.
    names = [line.agent_id for line in fleet.lines]
    groups = {name: names[10 * n + 1 : 10 * n + 6] for n, name in enumerate(_ATTACKS, start=2)}
    ahead = [line.agent_id for line in fleet.lines[-10:] if line.clock_off > timedelta()]
    blob = fleet.registry.blob(poisoned.manifest.files["network.onnx"])
    whole = blob.read_bytes()
    blob.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    soon = (fleet.utc() + timedelta(hours=12)).isoformat(timespec="seconds")
    past = (fleet.utc() - timedelta(hours=1)).isoformat(timespec="seconds")
    for name in groups["poisoned blob"]:
        await asyncio.to_thread(fleet.desire, name, poisoned.id)
    for name in groups["another key"]:
        await asyncio.to_thread(fleet.desire, name, forged.id)
    for name in groups["old serial"]:
        await asyncio.to_thread(fleet.desire, name, better.id, serial=1)
    for name in groups["expired"]:
        await asyncio.to_thread(fleet.desire, name, better.id, expires=past)
    for name in groups["another agent"]:
        await asyncio.to_thread(lambda name=name: fleet.desire(names[0], better.id, at=name))
    for name in ahead:
        await asyncio.to_thread(fleet.desire, name, good.id, expires=soon)
    groups["clock a day ahead"] = ahead
    refused = await _until(
        fleet, lambda: all(fleet.refusal(name) for each in groups.values() for name in each)
    )
    told["refused"] = {
        attack: {
            "lines": len(each),
            "refused": sum(fleet.refusal(name) is not None for name in each),
            "took_it": sum(fleet.by_name[name].bundle_id != good.id for name in each),
            "said": (fleet.refusal(each[0]) or "").replace(f"{fleet.folder}/", ""),
        }
        for attack, each in groups.items()
    }
    told["all_refused_after_s"] = refused
    blob.write_bytes(whole)
    _LOG.warning("%s", told)

    # All catch up.
    told["second_roll_out"] = await _roll_out(fleet, better.id)
    told["in_force_everywhere"] = sum(line.bundle_id == better.id for line in fleet.lines)

    # What must stop at the ring of 1 %.
    told["bad_roll_out"] = await _roll_out(fleet, bad.id)
    await _until(fleet, lambda: all(line.bundle_id != bad.id for line in fleet.lines[1:]))
    told["lines_that_ever_had_the_bad_bundle"] = sum(bad.id in line.applied for line in fleet.lines)
    # What was poisoned has been mended since, and may be taken.
    told["applied_unverified"] = sum(
        one not in {good.id, better.id, bad.id, poisoned.id, _OLD}
        for line in fleet.lines
        for one in line.applied
    )
    _LOG.warning("%s", told)
    await asyncio.gather(*tasks)
    return told


_ATTACKS: Final = ("poisoned blob", "another key", "old serial", "expired", "another agent")


async def _roll_out(
    fleet: Fleet, bundle: str, at_ring: tuple[int, Callable[[], None]] | None = None
) -> dict[str, object]:
    """A roll-out as `agent fleet roll-out` does it; begun again where the registry is away."""

    def begun() -> RollOut:
        return RollOut(
            fleet.plan,
            bundle,
            fleet.registry.client(),
            publish=lambda line: fleet.desire(line, bundle),
            heard=lambda lines: heard(fleet.plan, lines, within_s=_LISTEN_S).reports,
            now=fleet.utc,
        )

    going, began, again = begun(), fleet.clock.now(), 0
    _LOG.warning("%s rolls out", bundle[:8])
    background: list[asyncio.Task[None]] = []
    while True:
        try:
            step = await asyncio.to_thread(going.step)
        except AtacError:
            going, again = begun(), again + 1
            await asyncio.sleep(30 / fleet.clock.speed)
            continue
        if at_ring and step.kind == "publish" and step.ring == at_ring[0]:
            background.append(asyncio.create_task(asyncio.to_thread(at_ring[1])))
            at_ring = None
        _LOG.warning("ring %d: %s %s", step.ring, step.kind, step.why)
        if step.kind in {"stop", "done"}:
            break
        if step.kind == "wait":
            await asyncio.sleep(60 / fleet.clock.speed)
        if fleet.clock.now() - began > 6 * 3600:
            raise RuntimeError(f"the roll-out hangs: {step}")
    await asyncio.gather(*background)
    return {
        "ended": step.kind,
        "ring": step.ring,
        "rings": [len(ring) for ring in fleet.plan.rings],
        "why": step.why,
        "minutes": round((fleet.clock.now() - began) / 60),
        "begun_again": again,
    }


async def _until(fleet: Fleet, condition: Callable[[], bool], most_s: float = 3600) -> float:
    began = fleet.clock.now()
    while not condition() and fleet.clock.now() - began < most_s:  # noqa: ASYNC110 - of threads
        await asyncio.sleep(0.2)
    return round(fleet.clock.now() - began)


def _read(fleet: Fleet) -> dict[str, object]:
    """What the bucket has, beside what the lines have made."""
    names = [
        each["Key"]
        for page in fleet.s3.client.get_paginator("list_objects_v2").paginate(
            Bucket=fleet.s3.bucket
        )
        for each in page.get("Contents", ())
    ]
    shipped = [one for name in names if (one := Shipped.of(name)) is not None]
    folder, size = fleet.folder / "read", 0
    folder.mkdir()
    for number, one in enumerate(shipped):
        body = fleet.s3.client.get_object(Bucket=fleet.s3.bucket, Key=one.name)["Body"].read()
        (folder / f"{number}.parquet").write_bytes(body)
        size += len(body)
    everything = duckdb.read_parquet(f"{folder}/*.parquet")
    rows, distinct = everything.aggregate("count(*), count(DISTINCT (epoch, sequence))").fetchall()[
        0
    ]
    gaps = [
        gap
        for line in fleet.lines
        for gap in missing(one for one in shipped if one.agent == line.agent_id)
    ]
    return {
        "objects": len(shipped),
        "bytes": size,
        "bytes_a_part": round(size / max(1, rows), 1),
        "parts": rows,
        "more_than_once": rows - distinct,
        "missing_by_names": sum(gap.parts for gap in gaps),
    }


def an_hour(folder: Path) -> dict[str, object]:
    """An hour of one line at a part a second, with values as random as they can be."""
    chance, now = random.Random(_SEED), 1_764_000_000_000_000_000
    parts = []
    for number in range(1, 3601):
        now += 1_000_000_000 + chance.randrange(10_000_000)
        left, top = chance.randrange(1900), chance.randrange(1500)
        box = Box(left=left, top=top, right=left + 512, bottom=top + 512)
        score = chance.lognormvariate(0, 0.3)
        parts.append(
            replace(
                _EVENT,
                agent_id="line-1",
                epoch="0123456789ab",
                sequence=number,
                position=number,
                part_id=f"part-{number:07d}",
                triggered_ns=now,
                deadline_ns=now + 500_000_000,
                captured_ns=now + chance.randrange(2_000_000),
                decided_ns=now + 40_000_000 + chance.randrange(5_000_000),
                frame_number=number,
                score=score,
                deviation=2 * score,
                passes=(_pass(0.9 * score), replace(_pass(score), box=box)),
            )
        )
    began = time.process_time()
    data = to_parquet(parts, folder)
    return {
        "parts": len(parts),
        "bytes": len(data),
        "bytes_a_part": round(len(data) / len(parts), 1),
        "cpu_s": round(time.process_time() - began, 2),
    }


def pictures(data: Path | None) -> dict[str, object]:
    """Bytes of thumbnails and kept frames: of images in a folder, or of parts that are drawn."""
    if data is None:
        frames = [part(_SEED, number, 0.5).pixels for number in range(_PICTURES)]
    else:
        files = sorted(
            path
            for path in data.rglob("*")
            if path.suffix in {".png", ".jpg"} and "ground_truth" not in path.parts
        )
        frames = [read_image(path) for path in files[:: max(1, len(files) // _PICTURES)]]
    bundle = open_bundle(BUNDLE)
    thumbnails, kept, pixels = 0, 0, 0
    with open_inspector(bundle, backend="onnxruntime", precision="fp32") as inspector:
        for frame in frames:
            found = inspector.inspect(frame)
            shown = captioned(annotated(frame, found, 1.0), "part-0001204", "2026-11-28 14:05:09")
            thumbnails += len(jpeg(shown, max_bytes=THUMBNAIL_MAX_BYTES))
            kept += len(jpeg(frame, max_bytes=8_000_000, quality=95))
            pixels += frame.shape[0] * frame.shape[1]
    return {
        "frames": len(frames),
        "pixels": round(pixels / len(frames)),
        "thumbnail_bytes": round(thumbnails / len(frames)),
        "frame_bytes": round(kept / len(frames)),
        "frame_bytes_a_pixel": round(kept / pixels, 3),
    }


def page_of(fleet: Fleet, folder: Path) -> subprocess.Popen[str]:
    """The fleet's page, in a process of its own."""
    path = folder / "fleet.yaml"
    path.write_text(
        json.dumps(
            {
                "registry": {"address": fleet.registry.settings.address},
                "key": str(fleet.keys.public),
                "lines": list(fleet.by_name),
                "brokers": [{"host": "127.0.0.1", "port": fleet.broker.port}],
                "page": {"listen": f"127.0.0.1:{free_port()}", "folder": str(folder / "page")},
            }
        )
    )
    command = [sys.executable, "-c", "from agent.cli import main; main()"]
    page = subprocess.Popen(
        [*command, "fleet", "page", "--fleet", str(path), "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert page.stdout is not None
    page.stdout.readline()  # it serves
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--speed", type=float, default=SPEED)
    parser.add_argument("--seconds", type=float, default=40.0, help="of `cost`")
    parser.add_argument("--data", type=Path, help="images for `pictures`; without: drawn parts")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    for name in ("atac_agent", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    mosquitto = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    result: dict[str, object] = {"environment": described(), "agents": options.agents}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["parquet"] = an_hour(folder)
        result["pictures"] = pictures(options.data)
        (folder / "cost").mkdir()
        with Fleet(folder / "cost", mosquitto, options.agents, 1.0) as fleet:
            page = page_of(fleet, folder)
            try:
                result["cost"] = asyncio.run(cost(fleet, page, options.seconds))
            finally:
                page.kill()
                page.wait()
        (folder / "scenario").mkdir()
        with Fleet(folder / "scenario", mosquitto, options.agents, options.speed) as fleet:
            result["scenario"] = asyncio.run(scenario(fleet))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
