"""G11: a bad day and a hostile neighbour, all at once, against `agent run` as it is installed.

A watched folder gets a picture eight times a second, every fifth of a defective part. Meanwhile the
agent, the broker and the two children are killed and frozen, the ledger's disk is filled, the clock
jumps, another bundle is laid over the one that runs, and images, requests and packets are hostile.
In the end every file must have one end, no defective one may have passed, and two consumers
(`examples/subscriber.py`) must have acted once on each alarm and on each verdict.
"""

import io
import os
import random
import signal
import sqlite3
import struct
import threading
import time
import zlib
from collections import Counter
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from PIL import Image

from agent.mqtt.link import Link
from agent.mqtt.message import Message
from calibration.record import SCHEMA_VERSION, Calibration, write_calibration
from tests.agent.sinks.mqtt.test_requests import odd_request
from tests.faults.belt import AGENT
from tests.faults.test_g1_kills import HEARD, Plant, process
from tests.faults.test_g3_full_disk import filled, small_disk  # noqa: F401 - a fixture
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

pytestmark = pytest.mark.broker

RATE = 8
EVERY = 5
THRESHOLD = 3.0
FULL = {
    "kill agent": 50,
    "kill broker": 50,
    "kill inference": 20,
    "kill camera": 10,
    **{f"freeze {who}": 10 for who in ("agent", "broker", "inference", "camera")},
    "full disk": 10,
    "full disk and kill": 5,
    "clock": 10,
    "bundle": 5,
    "images": 10,
    "requests": 10,
}
SHORT = dict.fromkeys(("kill agent", "kill inference", "bundle", "images", "requests"), 1)
PROGRAM = """
import os, sys, time
real, real_ns = time.time, time.time_ns
def offset():
    try:
        return int(open({clock!r}).read() or 0)
    except (OSError, ValueError):
        return 0
time.time = lambda: real() + offset()
time.time_ns = lambda: real_ns() + offset() * 10**9
from agent.cli import main
main()
"""


class Line(Plant):
    """A folder that is watched, its agent, and what becomes of both."""

    def __init__(self, broker, folder, disk):
        super().__init__(broker, folder)
        self.parts, self.new = folder / "in", folder / "new"
        self.parts.mkdir()
        self.new.mkdir()
        self.clock = folder / "clock"
        self.ledger_path = disk / "ledger.sqlite"
        self.written = {}  # names to whether the part is defective; None: no picture
        self.over = threading.Event()
        self.memory_kb = Counter()
        for name, gain in (("bundle", 40.0), ("other", 0.001)):
            calibrate(tiny_bundle(folder / name, gain=gain))
        (folder / "agent.yaml").write_text(
            f"agent: {{id: {AGENT}}}\nbundle: {{path: bundle}}\n"
            "camera: {type: folder, path: in, after_last: watch, settle_s: 0.5}\n"
            f"ledger: {{path: {self.ledger_path}}}\n"
            f"evidence: {{folder: {folder}/evidence, max_files: 200}}\n"
            f"mqtt: {{host: 127.0.0.1, port: {broker.port}, every_part: true}}\n"
        )

    def start_agent(self):
        program = PROGRAM.format(clock=str(self.clock))
        self.agent = self._agent.enter_context(
            process("-c", program, "run", "--config", self._folder / "agent.yaml",
                    log=self._folder / "agent.log")
        )  # fmt: skip

    def stop_agent(self):
        self.agent.send_signal(signal.SIGTERM)
        assert self.agent.wait(90) in {0, 1}
        self._agent.close()

    def feed(self):
        """Pictures at a steady rate, each there at once, as a camera's software renames it."""
        number = 0
        while not self.over.wait(1 / RATE):
            number += 1
            is_defective = number % EVERY == 0
            made = defective_part(number) if is_defective else good_part(number)
            self.lay(f"part-{number:05}.png", picture(made), is_defective=is_defective)

    def lay(self, name, data, *, is_defective):
        (self.new / name).write_bytes(data)
        self.written[name] = is_defective
        (self.new / name).rename(self.parts / name)

    def count(self):
        path = self._folder / "verdict.sqlite"
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path, timeout=30)) as file:
            return file.execute("SELECT count(*) FROM parts").fetchone()[0]
        return 0

    def children(self):
        """The processes of the agent by what they do, and their highest memory is noted."""
        found = {"agent": self.agent.pid}
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                told = dict(line.split(":", 1) for line in status.read_text().splitlines())
                command = (status.parent / "cmdline").read_bytes()
                pid = int(status.parent.name)
                who = next(
                    (who for who in ("inference", "camera") if b"agent." + who.encode() in command),
                    "agent" if pid == self.agent.pid else None,
                )
                if who is None or (who != "agent" and int(told["PPid"]) != self.agent.pid):
                    continue
                found[who] = pid
                self.memory_kb[who] = max(self.memory_kb[who], int(told["VmHWM"].split()[0]))
        return found

    def all_heard(self):
        heard = {part["part_id"] for part in self.heard("verdict")}
        alarms = {part["sequence"] for part in self.heard("alarm")}
        wanted = {part["sequence"] for part in self.heard("verdict") if part["state"] != "OK"}
        return heard >= self.written.keys() and alarms >= wanted

    def ledger(self, query):
        with closing(sqlite3.connect(self.ledger_path)) as file:
            return file.execute(query).fetchall()


def calibrate(bundle):
    counts = (
        *("allowed_exceedances", "exceedances", "defective", "detected", "training_images"),
        *("duplicates", "look_alikes", "unreadable"),
    )
    write_calibration(
        bundle,
        Calibration(
            schema_version=SCHEMA_VERSION, created_at="2025-01-01T00:00:00+00:00",
            bundle_id=bundle.id, precision="fp32", backend="onnxruntime cpu fp32",
            max_false_reject=0.05, confidence=0.95, good=2, guaranteed_false_reject=0.5,
            detection_interval=None, versions={}, threshold=THRESHOLD,
            good_scores=(0.0, THRESHOLD), defective_scores=(), **dict.fromkeys(counts, 0),
        ),
    )  # fmt: skip


def picture(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def hostile(number):
    """Files that are no pictures of parts, each with the name of one."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    whole = picture(good_part(number))
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    )
    return {
        f"bomb-{number}.png": bomb + chunk(b"IEND", b""),
        f"cut-{number}.png": whole[: len(whole) // 2],
        f"empty-{number}.jpg": b"",
        f"script-{number}.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n",
        f"rubbish-{number}.tif": random.Random(number).randbytes(5000),
        f"flipped-{number}.png": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
    }


def rubbish(broker, number):
    """Requests that nobody should obey, and packets that nobody should send."""
    for qos in (0, 1):
        odd_request(broker, retain=1, qos=qos)
    topic = f"atac/{AGENT}/request"
    with Link(broker.settings, f"rubbish-{number}") as link:
        for size in range(200):
            link.publish(Message(topic=topic, payload=b"{" * size, response_topic="factory/stop"))
        link.publish(Message(topic=topic, payload=b"x" * 200_000, response_topic=topic))
        link.acknowledged(1.0)


def happen(line, broker, what, number, rng):
    """One bad thing, to its end."""
    verb, _, who = what.partition(" ")
    if what == "kill agent":
        line.kill_agent()
        line.start_agent()
    elif what == "kill broker":
        broker.kill()
        time.sleep(rng.uniform(0.0, 1.0))
        broker.start()
    elif verb in {"kill", "freeze"}:
        pid = broker._process.pid if who == "broker" else line.children().get(who)
        if pid is None:
            return  # it is being replaced just now
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if verb == "kill" else signal.SIGSTOP)
            if verb == "freeze":
                time.sleep(rng.uniform(0.5, 4.0))
                os.kill(pid, signal.SIGCONT)
    elif verb == "full":
        with filled(line.ledger_path.parent):
            time.sleep(rng.uniform(0.5, 3.0))
            if "kill" in what:
                line.kill_agent()
        if "kill" in what:
            line.start_agent()
    elif what == "clock":
        line.clock.write_text(str(rng.choice([60 * 86_400, -86_400, 3600, -30])))
        if rng.random() < 0.5:
            line.kill_agent()
            line.start_agent()
        time.sleep(2.0)
        line.clock.write_text("0")
    elif what == "bundle":
        swap(line)
        with suppress(KeyError, ProcessLookupError):
            os.kill(line.children()["inference"], signal.SIGKILL)
        time.sleep(1.5)
        swap(line)
    elif what == "images":
        for name, data in hostile(number).items():
            line.lay(name, data, is_defective=None)
        with (line.parts / f"sparse-{number}.png").open("wb") as file:
            file.truncate(50 << 30)
        line.written[f"sparse-{number}.png"] = None
        os.mkfifo(line.parts / f"pipe-{number}.png")
    else:
        rubbish(broker, number)


def swap(line):
    """A deployment lays another bundle over the folder, and takes it back."""
    folder = line._folder
    for one, other in (("bundle", "aside"), ("other", "bundle"), ("aside", "other")):
        (folder / one).rename(folder / other)


def test_a_bad_day_loses_nothing_acts_on_nothing_twice_and_hangs_nothing(
    start_broker,
    tmp_path,
    small_disk,  # noqa: F811
    eventually,
    is_full,
    record,
):
    rng = random.Random(22)
    events = [what for what, count in (FULL if is_full else SHORT).items() for _ in range(count)]
    rng.shuffle(events)
    broker = start_broker()
    line = Line(broker, tmp_path, small_disk)
    line.start_consumers()
    feeder = threading.Thread(target=line.feed)
    recovery_s = []
    with ExitStack() as stack:
        stack.callback(line.kill_agent)
        stack.callback(line.kill_consumers)
        line.start_agent()
        feeder.start()
        stack.callback(feeder.join)
        stack.callback(line.over.set)
        eventually(lambda: line.count() > 5, 120)
        began = time.monotonic()
        for number, what in enumerate(events):
            happen(line, broker, what, number, rng)
            done, at = line.count(), time.monotonic()
            eventually(lambda done=done: line.count() > done, 120)
            recovery_s.append(time.monotonic() - at)
            line.children()
        seconds = time.monotonic() - began
        line.over.set()
        feeder.join()
        with suppress(AssertionError):  # the figures below say what is missing
            eventually(line.all_heard, 180)
        line.stop_agent()

    rows = line.ledger("SELECT sequence, state, part_id FROM triggers")
    losses = line.ledger("SELECT first, last FROM losses")
    named = {number for first, last in losses for number in range(first, last + 1)}
    # The oldest that were delivered make room on a full disk; consumers have them all the same.
    kept = {part["sequence"]: (part["state"], part["part_id"]) for part in line.heard("verdict")}
    recorded = {sequence: (state, part) for sequence, state, part in rows}
    assert {n: kept[n] for n in kept.keys() & recorded.keys()}.items() <= recorded.items()
    states = {sequence: state for sequence, (state, _) in (kept | recorded).items()}
    ends = Counter(part for _, part in (kept | recorded).values())
    state_of = {part: state for state, part in (kept | recorded).values()}
    heard = {what: Counter(part["sequence"] for part in line.heard(what)) for what in HEARD}
    wanted = {"verdict": set(states), "alarm": {n for n, state in states.items() if state != "OK"}}

    def ended(state, *, kinds):
        return sorted(p for p, k in line.written.items() if k in kinds and state_of.get(p) == state)

    wrong = {
        "files_without_an_end": sorted(line.written.keys() - ends.keys()),
        "files_inspected_twice": sorted(part for part, count in ends.items() if count > 1),
        "defective_that_passed": ended("OK", kinds=(True, None)),
        "good_that_were_rejected": ended("NG", kinds=(False,)),
        "sequences_unaccounted_for": sorted(set(range(1, max(states) + 1)) - states.keys() - named),
        "parts_left_open": sorted(n for n, state in states.items() if state is None),
        "lost": {what: len(wanted[what] - heard[what].keys()) for what in HEARD},
        "acted_twice": {what: max(0, line.acted(what) - len(heard[what])) for what in HEARD},
    }
    record(
        "g11",
        "campaign",
        events=dict(Counter(events)),
        seconds=round(seconds),
        longest_recovery_s=round(max(recovery_s), 1),
        states=dict(Counter(states.values())),
        sequences_lost_and_named=len(named),
        highest_memory_mb={who: round(kb / 1024) for who, kb in line.memory_kb.items()},
        files=len(line.written),
        **wrong,
    )
    nothing = {"alarm": 0, "verdict": 0}
    assert wrong == {key: [] for key in wrong} | {"lost": nothing, "acted_twice": nothing}
