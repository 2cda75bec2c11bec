"""Whether each part gets its own frame from a GigE Vision camera, whatever happens to the camera.

    python -m benchmarks.gige_campaign --out benchmarks/results/gige_campaign.json

A program announces parts with their ids over MQTT, the agent has Aravis' fake camera expose for
each (software trigger), and every part is recorded. Rows: nothing happens; the camera's child
process is killed; it is frozen; the camera is unplugged and plugged in again, so that its 16-bit
ids wrap each time; and packets are lost. A second camera runs beside it all the time.

The truth comes from the camera: its clock is this machine's, and a frame was made after its part
was published, and before the agent had heard of the next one that it had the camera expose for.
The fake camera looks for a trigger 25 times a second, which bounds the rate.
"""

import argparse
import json
import os
import signal
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho

from agent.camera_child.camera import ChildCamera
from agent.camera_child.fake_gige import Cable, FakeGigeCamera, missing
from agent.part import Part, State
from agent.registry import open_camera
from agent.settings import load_config
from agent.station.run import run_station
from agent.station.station import Model
from benchmarks.broker import mosquitto
from benchmarks.machine import described, write_result
from engine.scripted_inspector import BrightnessInspector

CONFIGURATION = """
agent: {{id: campaign}}
bundle: {{path: none}}
mqtt: {{host: 127.0.0.1, port: {port}}}
line: {{fail_safe: pass}}
cameras:
  - name: gige
    type: genicam
    device: {address}
    features: {{Width: 640, Height: 480, TriggerMode: On, TriggerSource: Software,
               AcquisitionFrameRate: 200.0, GevSCPSPacketSize: 8000}}
    trigger: {{type: mqtt, host: 127.0.0.1, port: {port}, topic: parts, payload: json,
              min_ms: 0, max_ms: {window_ms:.0f}}}
  - {{name: other, type: conveyor, parts_per_minute: 300}}
"""
ROWS = ["undisturbed", "killed", "frozen", "unplugged", "packets lost"]
_KEPT = 0.99
"""A rate is kept when this share of the parts has a frame."""
_SETTLED_S = 6.0
_FAULT_S = 6.0
"""Between two faults, so that the camera is back before the next one."""


@dataclass
class Seen:
    """What came of the parts, by id."""

    states: dict[str, State] = field(default_factory=dict)
    device_ns: dict[str, int] = field(default_factory=dict)
    heard_ns: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    blocks: list[int] = field(default_factory=list)
    frame_ms: list[float] = field(default_factory=list)
    verdict_ms: list[float] = field(default_factory=list)
    others: Counter[State] = field(default_factory=Counter)
    outages_s: list[float] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """A part has been recorded."""
        if part.camera == "other":
            self.others[part.ended.state] += 1
            return
        assert part.part_id is not None
        self.states[part.part_id] = part.ended.state
        self.heard_ns[part.part_id] = part.trigger.triggered_ns
        if "still owes" in part.ended.reason:
            self.refused.add(part.part_id)
        if part.frame is None:
            return
        assert part.frame.device_ns is not None
        assert part.frame.block_id is not None
        self.device_ns[part.part_id] = part.frame.device_ns
        self.blocks.append(part.frame.block_id)
        self.frame_ms.append((part.frame.captured_ns - part.trigger.triggered_ns) / 1e6)
        self.verdict_ms.append((part.ended.decided_ns - part.trigger.triggered_ns) / 1e6)


Fault = Callable[[FakeGigeCamera, ChildCamera], None]


def kill(_gige: FakeGigeCamera, camera: ChildCamera) -> None:
    """The camera's child process dies."""
    if camera.child_pid is not None:
        os.kill(camera.child_pid, signal.SIGKILL)


def freeze(_gige: FakeGigeCamera, camera: ChildCamera) -> None:
    """It stands still."""
    if camera.child_pid is not None:
        os.kill(camera.child_pid, signal.SIGSTOP)


def unplug(gige: FakeGigeCamera, _camera: ChildCamera) -> None:
    """The camera loses its power for half a second."""
    gige.stop()
    time.sleep(0.5)
    gige.start()


def run(
    parts: int, rate: float, *, fault: Fault | None = None, faults: int = 0, lost: float = 0.0
) -> dict[str, Any]:
    """One row: parts at this rate, with faults among them."""
    seen, fired = Seen(), []
    with (
        tempfile.TemporaryDirectory(prefix="atac-campaign-") as name,
        mosquitto(Path(name)) as port,
        Cable() as cable,
    ):
        gige = FakeGigeCamera(cable).start(lost)
        text = CONFIGURATION.format(
            port=port, address=cable.address, window_ms=min(1000.0, 900 / rate)
        )
        path = Path(name) / "agent.yaml"
        path.write_text(text, encoding="utf-8")
        config, stop = load_config(path), threading.Event()
        publisher = paho.Client(paho.CallbackAPIVersion.VERSION2, "belt", protocol=paho.MQTTv5)
        publisher.connect("127.0.0.1", port)
        publisher.loop_start()
        cameras = [open_camera(each, stop) for each in config.cameras]
        camera = cameras[0]
        assert isinstance(camera, ChildCamera)

        def announce() -> None:
            _until(lambda: camera.child_pid is not None and getattr(camera, "opened", None))
            time.sleep(1.0)  # the trigger has subscribed
            begun = time.monotonic()
            for number in range(parts):
                time.sleep(max(0.0, begun + number / rate - time.monotonic()))
                said = {"part_id": f"part-{number}", "count": number + 1}
                fired.append((f"part-{number}", time.time_ns()))
                publisher.publish("parts", json.dumps(said), qos=1)
            time.sleep(_SETTLED_S)
            stop.set()

        def disturb() -> None:
            assert fault is not None
            for _ in range(faults):
                time.sleep(_FAULT_S)
                frames, begun = len(seen.blocks), time.monotonic()
                fault(gige, camera)
                time.sleep(0.3)  # what was on its way has arrived
                frames = len(seen.blocks)
                _until(lambda frames=frames: len(seen.blocks) > frames)
                seen.outages_s.append(time.monotonic() - begun)

        threads = [threading.Thread(target=each) for each in (announce, disturb)[: 1 + bool(fault)]]
        for each in threads:
            each.start()
        run_station(
            config,
            cameras=cameras,
            inspector=BrightnessInspector(),
            model=Model(threshold=1e9),
            stop=stop,
            observers=[seen.add],
        )
        for each in threads:
            each.join()
        gige.stop()
        publisher.loop_stop()
        recorded = sqlite3.connect(config.ledger.path).execute(
            "SELECT count(*), count(DISTINCT part_id), count(state) FROM triggers "
            "WHERE camera = 'gige'"
        )
        return judged(seen, fired, recorded.fetchone(), rate)


def judged(
    seen: Seen, fired: list[tuple[str, int]], recorded: tuple[int, int, int], rate: float
) -> dict[str, Any]:
    """What came of a row, by the camera's own clock."""
    wrong = {}
    following_ns = 1 << 62  # when the agent heard of the next part that the camera exposed for
    for part_id, at in reversed(fired):
        made = seen.device_ns.get(part_id)
        if made is not None and not at <= made < following_ns:
            wrong[part_id] = (made - at) / 1e6
        if part_id in seen.heard_ns and part_id not in seen.refused:
            following_ns = seen.heard_ns[part_id]
    wraps = sum(before <= 65_535 < after for before, after in pairwise(seen.blocks))
    counts = Counter(seen.states.values())
    return {
        "rate_per_s": rate,
        "parts": len(fired),
        "states": {state.value: counts[state] for state in State if counts[state]},
        "not_exposed_for": len(seen.refused),
        "wrong_frames": len(wrong),
        "made_after_ms": wrong,
        "in_ledger": dict(zip(("parts", "ids", "ended"), recorded, strict=True)),
        "wraps": wraps,
        "faults": len(seen.outages_s),
        "back_after_s": _spread(seen.outages_s, (50, 100)),
        "trigger_to_frame_ms": _spread(seen.frame_ms, (50, 99)),
        "trigger_to_verdict_ms": _spread(seen.verdict_ms, (50, 99)),
        "other_camera": {state.value: seen.others[state] for state in State if seen.others[state]},
    }


def _spread(values: list[float], shares: tuple[int, ...]) -> list[float] | None:
    found = np.percentile(values, shares) if values else ()
    return [round(float(each), 2) for each in found] or None


def _until(done: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not done() and time.monotonic() < until:
        time.sleep(0.01)


def main() -> None:
    """Run all rows, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=10_000, help="of the undisturbed row")
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 15, 20, 25], help="to try")
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=ROWS, help="take the others from --out"
    )
    parser.add_argument("--out", type=Path, help="where the result is kept")
    options = parser.parse_args()
    if (why := missing()) is not None:
        parser.error(why)
    tried = [run(round(10 * rate), rate) for rate in options.rates]
    kept = [
        each["rate_per_s"] for each in tried if each["states"].get("OK", 0) >= _KEPT * each["parts"]
    ]
    rate = max(kept, default=options.rates[0])
    short = round((options.faults + 1) * (_FAULT_S + 4) * rate)
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "undisturbed": lambda: run(options.parts, rate),
        "killed": lambda: run(short, rate, fault=kill, faults=options.faults),
        "frozen": lambda: run(short, rate, fault=freeze, faults=options.faults),
        "unplugged": lambda: run(round(100 * rate), rate, fault=unplug, faults=5),
        # An incomplete frame is given up after 100 ms, within the window of this rate.
        "packets lost": lambda: run(200, min(rate, 5.0), lost=5.0),
    }
    found: dict[str, Any] = {"rows": {}}
    if options.rows != ROWS:
        found = json.loads(options.out.read_text(encoding="utf-8"))
    found |= {"machine": described(), "rates_tried": tried}
    for name in options.rows:
        found["rows"][name] = {**rows[name](), "load_average": os.getloadavg()[1]}
    write_result(json.loads(json.dumps(found)), options.out)


if __name__ == "__main__":
    main()
