"""What a frame of an industrial camera costs, from the wire to the agent's own pixels.

    python -m benchmarks.camera_child --out benchmarks/results/camera_child.json

Aravis' fake GigE camera gives 1280×1024 mono frames; its own processor time is not counted. In
turns: a camera child with frames in shared memory (`child`), the same through a whole run with
ledger and broker and without a network (`line`), and Aravis in the process that uses the frames,
with its own copy of them (`in_process`). Processor time is that of all processes and threads of the
receiving side, in milliseconds a frame.
"""

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from agent.camera_child.camera import ChildCamera
from agent.camera_child.fake_gige import Cable, FakeGigeCamera, missing
from agent.registry import open_camera
from agent.settings import Config, load_config
from agent.station.run import run_station
from agent.station.station import Model
from benchmarks.broker import mosquitto
from benchmarks.machine import described, write_result
from engine.scripted_inspector import BrightnessInspector

CONFIGURATION = """
agent: {{id: camera}}
bundle: {{path: none}}
mqtt: {{host: 127.0.0.1, port: {port}}}
line: {{fail_safe: pass}}
camera:
  type: genicam
  device: {address}
  features: {{Width: 1280, Height: 1024, TriggerMode: Off, AcquisitionFrameRate: {rate},
             GevSCPSPacketSize: {packet_size}}}
"""
IN_PROCESS = """
import json, os, sys, time
import gi
gi.require_version("Aravis", "0.8")
from gi.repository import Aravis
address, rate, frames, packet_size = sys.argv[1], *map(int, sys.argv[2:])
camera = Aravis.Camera.new(address)
camera.set_region(0, 0, 1280, 1024)
camera.set_string("TriggerMode", "Off")
camera.set_float("AcquisitionFrameRate", rate)
camera.gv_set_packet_size(packet_size)
stream = camera.create_stream(None, None)
for _ in range(32):
    stream.push_buffer(Aravis.Buffer.new_allocate(camera.get_payload()))
camera.start_acquisition()
seen = 0
while seen < frames + 20:
    buffer = stream.timeout_pop_buffer(2_000_000)
    if seen == 20:
        begun, cpu = time.perf_counter(), sum(os.times()[:2])
    data = bytearray(buffer.get_data())
    stream.push_buffer(buffer)
    seen += 1
cpu, seconds = sum(os.times()[:2]) - cpu, time.perf_counter() - begun
camera.stop_acquisition()
camera.get_device().leave_control()
print(json.dumps({"cpu_ms": 1e3 * cpu / frames, "frames_per_s": frames / seconds}))
"""
_WARM = 20


def child(config: Config, frames: int) -> dict[str, float]:
    """Frames are read, and nothing more."""
    with open_camera(config.cameras[0]) as camera:
        assert isinstance(camera, ChildCamera)
        for _ in range(_WARM):
            camera.read()
        process = psutil.Process(camera.child_pid)
        begun, ours, theirs = time.perf_counter(), time.process_time(), _cpu_s(process)
        ages = []
        for _ in range(frames):
            frame = camera.read()
            assert frame is not None
            ages.append((time.time_ns() - frame.captured_ns) / 1e6)
        agent_ms = 1e3 * (time.process_time() - ours) / frames
        child_ms = 1e3 * (_cpu_s(process) - theirs) / frames
        return {
            "cpu_ms": agent_ms + child_ms,
            "agent_cpu_ms": agent_ms,
            "child_cpu_ms": child_ms,
            "frames_per_s": frames / (time.perf_counter() - begun),
            "first_packet_to_pixels_p50_ms": float(np.median(ages)),
        }


def line(config: Config, frames: int) -> dict[str, float]:
    """A run of the whole agent, whose inspector does nothing."""
    stop = threading.Event()
    camera = open_camera(config.cameras[0], stop)
    assert isinstance(camera, ChildCamera)
    figures: dict[str, float] = {}
    seen = 0

    def observe(_part: object) -> None:
        nonlocal seen
        seen += 1
        if seen == _WARM:
            figures.update(
                begun=time.perf_counter(),
                ours=time.process_time(),
                theirs=_cpu_s(psutil.Process(camera.child_pid)),
            )
        if seen == frames + _WARM:
            ours = time.process_time() - figures.pop("ours")
            theirs = _cpu_s(psutil.Process(camera.child_pid)) - figures.pop("theirs")
            seconds = time.perf_counter() - figures.pop("begun")
            figures.update(
                cpu_ms=1e3 * (ours + theirs) / frames,
                agent_cpu_ms=1e3 * ours / frames,
                child_cpu_ms=1e3 * theirs / frames,
                frames_per_s=frames / seconds,
            )
            stop.set()

    run_station(
        config,
        cameras=[camera],
        inspector=BrightnessInspector(),
        model=Model(threshold=1e9),
        stop=stop,
        observers=[observe],
    )
    return figures


def in_process(address: str, rate: int, frames: int, packet_size: int) -> dict[str, float]:
    """Aravis and its user in one process."""
    done = subprocess.run(
        [
            *("/usr/bin/python3", "-I", "-c", IN_PROCESS, address),
            *map(str, (rate, frames, packet_size)),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure in turns, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--packet-size", type=int, default=8000)
    parser.add_argument("--out", type=Path, help="where the result is kept")
    options = parser.parse_args()
    if (why := missing()) is not None:
        parser.error(why)
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, mosquitto(Path(name)) as port, Cable() as cable:
        camera = FakeGigeCamera(cable).start()
        path = Path(name) / "agent.yaml"
        path.write_text(
            CONFIGURATION.format(
                port=port,
                address=cable.address,
                rate=float(options.rate),
                packet_size=options.packet_size,
            ),
            encoding="utf-8",
        )
        config = load_config(path)
        rounds += [
            {
                "child": child(config, options.frames),
                "line": line(config, options.frames),
                "in_process": in_process(
                    cable.address, options.rate, options.frames, options.packet_size
                ),
                "load_average": os.getloadavg()[0],
            }
            for _ in range(options.rounds)
        ]
        camera.stop()
    medians = {
        name: {
            key: round(float(np.median([each[name][key] for each in rounds])), 3)
            for key in rounds[0][name]
        }
        for name in ("child", "line", "in_process")
    }
    result = {
        "machine": described(),
        "frame": "1280×1024 mono",
        "packet_size": options.packet_size,
        "medians": medians,
        "rounds": rounds,
    }
    write_result(result, options.out)


if __name__ == "__main__":
    main()
