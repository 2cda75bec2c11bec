"""What it costs to inspect in a child process: both ways side by side, in one run.

    python -m benchmarks.inference_process --out benchmarks/results/inference_process.json

Frames of the demo (640×480) and the same parts at 1.3 megapixels (1280×1024), inspected in turns
of twenty by this process and by a child, with the demo's bundle. Then the whole line, ledger and
all, both ways in turns. Times are p50 and p99 in milliseconds; `ratio` is in-process p50 over
child p50, and child parts/s over in-process parts/s.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.ports import CameraContext
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from agent.synthetic.flange import part
from benchmarks.machine import described, resident_mb, write_result
from calibration.record import read_calibration
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.bundle import open_bundle
from engine.frame import Pixels
from engine.inspector import Inspector
from engine.methods import open_method

_TURN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=30, help="turns of twenty frames each way")
    parser.add_argument("--parts", type=int, default=300, help="parts of each run of the line")
    parser.add_argument("--rounds", type=int, default=5, help="runs of the line each way")
    parser.add_argument("--out", type=Path, help="write the result here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    bundle = open_bundle(BUNDLE)
    small = [part(0, number, 0.1).pixels for number in range(_TURN)]
    large = [cv2.resize(pixels, (1280, 1024), interpolation=cv2.INTER_CUBIC) for pixels in small]
    with OnnxRuntimeBackend(bundle) as backend:
        within = open_method(bundle.manifest.method, backend)
        starts = []
        for _ in range(5):
            begun = time.perf_counter()
            with ChildInspector(Setup(bundle=BUNDLE, bundle_id=bundle.id)):
                starts.append(time.perf_counter() - begun)
        with ChildInspector(Setup(bundle=BUNDLE, bundle_id=bundle.id)) as child:
            result = {
                "machine": described(),
                "command": "python -m benchmarks.inference_process",
                "turns": options.turns,
                "inspect_640x480": compared(within, child, small, options.turns),
                "inspect_1280x1024": compared(within, child, large, options.turns),
                "line": lines(within, child, options.rounds, options.parts),
                "child_ready_s": round(float(np.median(starts)), 3),
                "child_rss_mb": round(resident_mb(child.pid), 1),
            }
    write_result(result, options.out)


def compared(
    within: Inspector, child: Inspector, frames: list[Pixels], turns: int
) -> dict[str, object]:
    """Both ways in turns; the answers are equal to the last bit."""
    for frame in frames:
        one, other = within.inspect(frame), child.inspect(frame)
        assert one.score == other.score
        assert one.box == other.box
        assert np.array_equal(one.attention, other.attention)
        assert np.array_equal(one.score_map, other.score_map)
    times: dict[str, list[float]] = {"in_process": [], "child": []}
    for _ in range(turns):
        for name, inspector in (("in_process", within), ("child", child)):
            for frame in frames:
                begun = time.perf_counter()
                inspector.inspect(frame)
                times[name].append(time.perf_counter() - begun)
    found = {name: percentiles(seconds) for name, seconds in times.items()}
    ratio = found["in_process"]["p50_ms"] / found["child"]["p50_ms"]
    return {**found, "ratio": round(ratio, 4)}


def lines(within: Inspector, child: Inspector, rounds: int, parts: int) -> dict[str, object]:
    """Parts a second of the whole line over ready-made frames, without a broker."""
    rates: dict[str, list[float]] = {"in_process": [], "child": []}
    for _ in range(rounds):
        for name, inspector in (("in_process", within), ("child", child)):
            rates[name].append(rate(inspector, parts))
    found = {name: round(float(np.median(each)), 2) for name, each in rates.items()}
    ratios = [b / a for a, b in zip(rates["in_process"], rates["child"], strict=True)]
    return {
        "parts_per_second": found,
        "ratio": round(float(np.median(ratios)), 4),
        "ratios": [round(one, 4) for one in ratios],
    }


def rate(inspector: Inspector, parts: int) -> float:
    bundle = open_bundle(BUNDLE)
    calibrated = read_calibration(bundle, precision="fp32")
    settings = ConveyorSettings(parts=parts)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            agent=AgentSettings(id="bench"),
            bundle=BundleSettings(path=BUNDLE),
            cameras=(settings,),
            sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
            ledger=LedgerSettings(path=Path(folder) / "ledger.sqlite"),
        )
        summary = run_station(
            config,
            cameras=[ConveyorCamera(settings, CameraContext())],
            inspector=inspector,
            model=Model(threshold=calibrated.calibration.threshold),
        )
    return summary.parts_per_second


def percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


if __name__ == "__main__":
    main()
