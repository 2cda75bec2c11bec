"""G7: a camera that freezes or goes, and inference that hangs or dies, again and again.

The line as it is: the demo's bundle in a child process, a real broker, the conveyor behind a camera
that can be spoiled. Noticed is when a subscriber hears health say so; recovered when it hears that
all is well again, counted from the end of a fault that only the world can end, else from its begin.
"""

import json
import os
import signal
import sqlite3
import statistics
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.mqtt.link import Subscriber
from agent.part import State
from agent.ports import CameraContext
from agent.process import prepare_process
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.station.run import run_station
from agent.station.station import Model
from calibration.record import read_calibration
from engine.bundle import open_bundle
from engine.errors import CameraError
from tests.faults.growth import held

pytestmark = pytest.mark.broker

NOTICED_S = 3.0
RECOVERED_S = 10.0
GROWTH_KB = 4000
"""Over the last fifty of a hundred cycles, when as many frames have been held at once as ever will
be; one frame that is kept by mistake would be 46 MB."""
PARTS_PER_MINUTE = 600
CAMERA_FAULTS = ("hangs", "freezes", "goes away", "gives garbage")
INFERENCE_FAULTS = ("hangs", "is killed")


class SpoiltCamera:
    """The conveyor, live, while `fault` is empty; what hangs is let go by `released`."""

    triggered = True
    is_live = True
    fault = None

    def __init__(self, settings, stop, world=None):
        self.world = world or World()
        self.settings, self.stop = settings, stop
        self._camera = ConveyorCamera(settings, CameraContext(stop=stop))
        self._last = None

    @property
    def silence_s(self):
        return self._camera.silence_s

    def renewed(self):
        self.world.fault = ""  # a fresh connection is a good one
        made = SpoiltCamera(self.settings, self.stop, self.world)
        made._camera = self._camera.renewed()
        return made

    def __enter__(self):
        if self.world.fault == "goes away":
            raise CameraError("the camera is away")
        self._camera.__enter__()
        return self

    def __exit__(self, *error):
        self._camera.__exit__(*error)

    def read(self):
        frame = self._camera.read()
        match self.world.fault:
            case "hangs":
                self.world.released.wait(60)
            case "freezes" if self._last is not None:
                frame = replace(frame, pixels=self._last)
            case "goes away":
                raise CameraError("the camera has gone")
            case "gives garbage":
                frame = replace(frame, pixels=frame.pixels.reshape(-1))
        if frame is not None:
            self._last = frame.pixels
        return frame

    def part_id(self, number):
        return self._camera.part_id(number)

    def source(self, number):
        return self._camera.source(number)


class World:
    def __init__(self):
        self.fault = ""
        self.released = threading.Event()


class Watched:
    """A running line, and what health says of it, with the times at which that was heard."""

    def __init__(self, broker, folder):
        bundle = open_bundle(BUNDLE)
        self.threshold = read_calibration(bundle, precision="fp32").calibration.threshold
        settings = ConveyorSettings(parts_per_minute=PARTS_PER_MINUTE)
        self.config = Config(
            agent=AgentSettings(id="line-3"),
            bundle=BundleSettings(path=BUNDLE),
            cameras=(settings,),
            sinks=(replace(broker.settings, health_s=60),),
            ledger=LedgerSettings(path=folder / "ledger.sqlite"),
        )
        self.stop = threading.Event()
        self.camera = SpoiltCamera(settings, self.stop)
        self.world = self.camera.world
        self.inspector = ChildInspector(Setup(bundle=BUNDLE, bundle_id=bundle.id))
        self._changed = threading.Condition()
        self._reasons: list[str] | None = None
        self._broker = broker

    def __enter__(self):
        prepare_process()  # as `agent run` does
        self.inspector.__enter__()
        self._subscriber = Subscriber(self._broker.settings, "atac/+/health", self._hear)
        self._subscriber.__enter__()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.wait(lambda reasons: reasons == [])
        return self

    def __exit__(self, *_error):
        self.end()

    def end(self):
        if self.stop.is_set():
            return
        self.world.released.set()
        self.stop.set()
        self._thread.join()
        self._subscriber.__exit__(None, None, None)
        self.inspector.__exit__(None, None, None)

    def _run(self):
        self.summary = run_station(
            self.config,
            cameras=[self.camera],
            inspector=self.inspector,
            model=Model(threshold=self.threshold).on(self.inspector),
            stop=self.stop,
        )

    def _hear(self, _topic, payload):
        with self._changed:
            self._reasons = json.loads(payload)["reasons"]
            self._changed.notify_all()

    def wait(self, holds) -> float:
        """Wait until health has been heard to say what `holds` wants; the time of that."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self._reasons), 30), self._reasons
            return time.monotonic()


@pytest.fixture
def line(broker, tmp_path):
    with Watched(broker, tmp_path) as watched:
        yield watched


def cycle_camera(line, fault):
    line.world.released.clear()
    begun = time.monotonic()
    line.world.fault = fault
    noticed = line.wait(bool)
    ended = begun if fault == "hangs" else time.monotonic()
    line.world.fault = ""
    well = line.wait(lambda reasons: reasons == [])
    line.world.released.set()
    return noticed - begun, well - ended


def cycle_inference(line, fault):
    begun = time.monotonic()
    os.kill(line.inspector.pid, signal.SIGSTOP if fault == "hangs" else signal.SIGKILL)
    noticed = line.wait(bool)
    return noticed - begun, line.wait(lambda reasons: reasons == []) - begun


def run_cycles(line, cycle, faults, cycles, warm_up):
    """All cycles; the times, and what was held after the warm-up and at the end."""
    times = {fault: [] for fault in faults}
    sizes = []
    for number in range(cycles):
        fault = faults[number % len(faults)]
        times[fault].append(cycle(line, fault))
        if number + 1 >= warm_up:
            time.sleep(0.5)  # what a cycle has left behind needs a moment to go
            sizes.append(held())
    return times, sizes


def shown(record, part, cycles, times, sizes):
    first, last = sizes[0], sizes[-1]
    quarter = max(1, len(sizes) // 4)
    grown = statistics.median(one.rss_kb for one in sizes[-quarter:]) - statistics.median(
        one.rss_kb for one in sizes[:quarter]
    )
    record(
        "g7",
        part,
        cycles=cycles,
        faults={
            fault: {
                "cycles": len(pairs),
                "noticed_s": summed(noticed for noticed, _ in pairs),
                "recovered_s": summed(recovered for _, recovered in pairs),
            }
            for fault, pairs in times.items()
        },
        threads=[first.threads, last.threads],
        files=[first.files, last.files],
        rss_kb=[first.rss_kb, last.rss_kb],
        rss_grown_kb=grown,
    )
    assert last.threads <= first.threads
    assert last.files <= first.files
    assert grown <= GROWTH_KB


def assert_in_time(times):
    for fault, pairs in times.items():
        for noticed, recovered in pairs:
            assert noticed <= NOTICED_S, (fault, noticed)
            assert recovered <= RECOVERED_S, (fault, recovered)


def summed(times):
    times = sorted(times)
    return {"median": round(statistics.median(times), 3), "largest": round(times[-1], 3)}


def ledger(line):
    """Every part's state and reason; each has one, and the numbers have no gap."""
    with closing(sqlite3.connect(line.config.ledger.path)) as file:
        rows = file.execute("SELECT sequence, state, reason FROM triggers ORDER BY 1").fetchall()
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    assert sum(line.summary.counts.values()) == line.summary.triggers == len(rows)
    return rows


def test_a_camera_that_freezes_or_goes_is_noticed_and_done_without(line, is_full, record):
    faults = CAMERA_FAULTS if is_full else CAMERA_FAULTS[:3]
    cycles = 100 if is_full else len(faults)
    times, sizes = run_cycles(line, cycle_camera, faults, cycles, 50 if is_full else cycles)
    line.end()
    shown(record, "camera", cycles, times, sizes)
    if is_full:  # a machine with other work keeps no times
        assert_in_time(times)
    for _, state, reason in ledger(line):
        assert state in {"OK", "NG"} or "same picture" in reason or "for a picture" in reason


def test_inference_that_hangs_or_dies_is_noticed_and_replaced(line, is_full, record):
    cycles = 100 if is_full else 2
    times, sizes = run_cycles(
        line, cycle_inference, INFERENCE_FAULTS, cycles, 50 if is_full else cycles
    )
    restarts = line.inspector.restarts
    line.end()
    shown(record, "inference", cycles, times, sizes)
    if is_full:
        assert_in_time(times)
    assert restarts == cycles
    ledger(line)
    counts = line.summary.counts
    # A hang costs a part for each worker; what dies while nothing is inspected costs none.
    assert counts[State.TIMEOUT] + counts[State.ERROR] <= cycles * line.inspector.workers
