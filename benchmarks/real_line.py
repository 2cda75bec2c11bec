"""The whole product on real images: train → export → calibrate → run → alarms, and one table.

    python -m benchmarks.real_line --data ../shared/data --weights resnet50_layer3.safetensors \
        --backbone resnet50:v1 --out runs/real_line --result benchmarks/results/real_line.json

Each set is learnt from its good training images, less the 60 held out for the threshold, and ten
known defects; the rest of its test images go past the agent as a camera. The steps are the
commands a user would type; a mosquitto and a subscriber of their own listen.

`share_of_bare_network` is parts/s of `agent run`, with its child, ledger, alarms, broker and
subscriber on the same cores, over parts/s that the network alone would allow at the run's own mix
of one and two passes. Bare network and agent take turns, each round's agent between two bare
measurements with the same backend, precision, threads and workers. Here the camera's frames come
decoded, as a camera's do: the folder holds the same pixels as PPM and PGM files, shown again and
again. `share_from_files` is that of the run over the original JPEG or PNG files, decoded on the
same cores.
`--video FILE` sends a video past the first set's bundle at its own pace.
"""

import argparse
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from agent.bench import bare_network
from benchmarks.broker import mosquitto
from benchmarks.machine import described
from calibration.bound import interval
from calibration.record import calibrated_runtime, read_calibration
from engine.backends.base import Backend
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.opening import open_backend
from engine.bundle import Bundle, open_bundle
from engine.image import read_image
from engine.methods import open_method
from train.datasets import SPLIT, SPLIT_JSON, find_source, unseen_images
from train.evaluate import auroc, scored
from train.export.gate import load_network
from train.network import TorchBackend

CALIBRATION_PARTS = 60  # 59 good parts carry a promise of 5 % at 95 %
AGENT = str(Path(sys.executable).parent / "agent")
ROOT = Path(__file__).resolve().parent.parent
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Set:
    """One set of images: its folder below `--data` and how many good ones it trains with."""

    name: str
    good: int


SETS = (
    Set(name="mvtec_bottle", good=209),
    Set(name="mvtec_pill", good=267),
    Set(name="magnetic_tile", good=150),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="The product on real images, end to end.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, help="ImageNet ResNet-50")
    parser.add_argument("--backbone", default="resnet50", help="resnet50:v1 as the weights are")
    parser.add_argument("--out", type=Path, default=Path("runs/real_line"))
    parser.add_argument("--result", type=Path)
    parser.add_argument("--sets", nargs="+", default=[one.name for one in SETS])
    parser.add_argument("--video", type=Path)
    parser.add_argument("--precision", default="int8", choices=("fp32", "int8"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="only print the table of --result")
    parser.add_argument("--rounds", type=int, default=3, help="of agent and bare network in turns")
    options = parser.parse_args()

    if options.show:
        print(table(json.loads(options.result.read_text(encoding="utf-8"))))
        return
    result: dict[str, Any] = {"machine": described(), "seed": options.seed, "sets": {}}
    chosen = [one for one in SETS if one.name in options.sets]
    for one in chosen:
        folder = options.out / one.name
        bundle = prepared(one, folder, options)
        result["sets"][one.name] = measured(one, bundle, folder, options)
    if options.video:
        result["video"] = watched(options.video, options.out / chosen[0].name, options)
    if options.result:
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def prepared(one: Set, folder: Path, options: argparse.Namespace) -> Bundle:
    """Train, export and calibrate, unless an earlier run left the bundle."""
    path, data = folder / "bundle", options.data / one.name
    if not (path / "manifest.json").exists():
        held = (CALIBRATION_PARTS + 0.5) / one.good
        command(
            *("train", "--data", data, "--out", path, "--recipe", "line", "--defects", "10"),
            *("--backbone-weights", options.weights, "--backbone", options.backbone),
            *("--hold-out", f"{held:.4f}", "--seed", options.seed, "--resume"),
        )
    bundle = open_bundle(path)
    if "int8" not in bundle.manifest.networks:
        command("export", "--bundle", path, "--precision", "int8", "--data", data, "--accept-flips")
        bundle = open_bundle(path)
    split = SPLIT_JSON.validate_json(bundle.read(SPLIT))
    good = linked(folder / "held_out", [data / item.path for item in split.held_out_good])
    command(
        *("calibrate", "--bundle", path, "--good", good, "--precision", options.precision),
        *("--max-false-reject", "5%", "--confidence", "95%"),
    )
    return bundle


def measured(one: Set, bundle: Bundle, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every figure of one set's row."""
    source = find_source(options.data / one.name, None, None)
    items = unseen_images(source, bundle)
    items = tuple(item for item in items if item.path.startswith("test/"))
    defective = np.array([item.defective for item in items])
    ranked = {}
    by_precision: dict[str, Backend] = {
        "torch": TorchBackend(load_network(bundle)),
        "fp32": OnnxRuntimeBackend(bundle, precision="fp32"),
        "int8": OnnxRuntimeBackend(bundle, precision="int8"),
        "agent": as_the_agent_does(bundle),
    }
    for name, backend in by_precision.items():
        with backend:
            found, _ = scored(open_method(bundle.manifest.method, backend), source, items)
        ranked[name] = auroc(np.array([image.score for image in found]), defective)

    camera = linked(folder / "camera", [source.path(item.path) for item in items])
    before = bare_passes(bundle)
    summary, heard, ledger = inspected(
        bundle,
        folder,
        {"type": "folder", "path": str(camera.resolve()), "after_last": "end"},
        options,
    )
    after = bare_passes(bundle)
    faulty_part = dict(zip(sorted(path.name for path in camera.iterdir()), defective, strict=True))
    verdicts = [(faulty_part[part], state) for part, state in parts_of(ledger)]
    false_rejects = sum(state == "NG" for faulty, state in verdicts if not faulty)
    detected = sum(state == "NG" for faulty, state in verdicts if faulty)
    good_count, bad_count = int((~defective).sum()), int(defective.sum())
    rounds = rates(bundle, folder, decoded(folder / "decoded", camera), options, seconds=10.0)
    parity = json.loads((bundle.path / "parity.json").read_text(encoding="utf-8"))
    return {
        "good": good_count,
        "defective": bad_count,
        "auroc": ranked,
        "training": {
            "seconds": bundle.manifest.training.seconds,
            "epochs": bundle.manifest.training.epochs,
            "good": bundle.manifest.training.good,
            "defective": bundle.manifest.training.defective,
            "pretrained": bundle.manifest.training.pretrained.split("/")[-1],
        },
        "parity": {
            name: {key: value for key, value in row.items() if key != "flips"}
            | {"flips": len(row["flips"])}
            for name, row in parity.items()
        },
        "false_rejects": false_rejects,
        "false_reject_interval": interval(false_rejects, good_count, confidence=CONFIDENCE),
        "detected": detected,
        "detection_interval": interval(detected, bad_count, confidence=CONFIDENCE),
        "ledger": summary["counts"],
        "alarms_heard": heard,
        "alarms_in_ledger": sum(state != "OK" for _, state in verdicts),
        "zoomed": summary["zoomed"],
        "parts_per_second": summary["parts_per_second"],
        "share_from_files": share(summary, before, after),
        "share_of_bare_network": statistics.median(one["share"] for one in rounds),
        "rounds": rounds,
        "latencies": summary["latencies"],
        "start_up_s": summary["start_up_s"],
    }


def watched(video: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A video as a camera at its own pace: how each of its frames ended."""
    bundle = open_bundle(folder / "bundle")
    camera = {"type": "video", "path": str(video.resolve()), "realtime": True}
    summary, heard, ledger = inspected(bundle, folder, camera, options)
    return {
        "frames": summary["triggers"],
        "in_ledger": len(list(parts_of(ledger))),
        "ledger": summary["counts"],
        "alarms_heard": heard,
    }


def inspected(
    bundle: Bundle,
    folder: Path,
    camera: dict[str, object],
    options: argparse.Namespace,
    *,
    parts: int | None = None,
) -> tuple[dict[str, Any], int, Path]:
    """`agent run` over `camera`: its summary, how many alarms a subscriber heard, the ledger."""
    ledger = folder / "ledger.sqlite"
    for stale in folder.glob("ledger.sqlite*"):
        stale.unlink()
    heard = folder / "heard.sqlite"
    for stale in folder.glob("heard.sqlite*"):
        stale.unlink()
    with mosquitto(folder) as port, subscriber(port, heard):
        config = {
            "agent": {"id": "bench"},
            "bundle": {"path": str(bundle.path.resolve()), "precision": options.precision},
            "camera": camera,
            "ledger": {"path": str(ledger.resolve())},
            "mqtt": {"host": "127.0.0.1", "port": port, "drain_s": 60},
        }
        file = folder / "agent.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        limit = () if parts is None else ("--parts", parts)
        summary = json.loads(command("run", "--config", file, "--json", *limit))
        expected = summary["alarms"]
        until = time.monotonic() + 30
        while count_parts(heard) < expected and time.monotonic() < until:
            time.sleep(0.1)
    return summary, count_parts(heard), ledger


def rates(
    bundle: Bundle, folder: Path, camera: Path, options: argparse.Namespace, *, seconds: float
) -> list[dict[str, Any]]:
    """The agent between two measurements of the bare network, several times."""
    rounds: list[dict[str, Any]] = []
    shown: dict[str, object] = {
        "type": "folder",
        "path": str(camera.resolve()),
        "after_last": "repeat",
    }
    before = bare_passes(bundle)
    for _ in range(options.rounds):
        parts = round(seconds * before)
        summary, _, _ = inspected(bundle, folder, shown, options, parts=parts)
        after = bare_passes(bundle)
        rounds.append(
            {
                "bare_passes_per_second": (before + after) / 2,
                "parts": parts,
                "zoomed": summary["zoomed"],
                "parts_per_second": summary["parts_per_second"],
                "share": share(summary, before, after),
                "latencies": summary["latencies"],
            }
        )
        before = after
    return rounds


def share(summary: dict[str, Any], before: float, after: float) -> float:
    """Parts a second over what the bare network's passes a second allow at this mix."""
    passes_a_part = 1 + summary["zoomed"] / summary["triggers"]
    return float(summary["parts_per_second"] * passes_a_part / ((before + after) / 2))


def as_the_agent_does(bundle: Bundle) -> Backend:
    """The network as the agent's child opens it: with what the threshold was set with."""
    runtime = calibrated_runtime(bundle, read_calibration(bundle))
    return open_backend(bundle, backend=runtime.backend, precision=runtime.precision)


def bare_passes(bundle: Bundle) -> float:
    """Passes a second of the network alone."""
    with as_the_agent_does(bundle) as backend:
        return bare_network(backend, bundle.manifest, seconds=3.0).passes_per_second


def decoded(folder: Path, files: Path) -> Path:
    """A new folder with what `files` show, uncompressed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(files.iterdir()):
        pixels = read_image(file)
        suffix = ".pgm" if pixels.ndim == 2 else ".ppm"
        Image.fromarray(pixels).save(folder / f"{file.stem}{suffix}")
    return folder


def parts_of(ledger: Path) -> Iterator[tuple[str, str]]:
    """Part id and state of every trigger in a ledger file."""
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as database:
        yield from database.execute("SELECT part_id, state FROM triggers ORDER BY sequence")


def linked(folder: Path, files: list[Path]) -> Path:
    """A new folder of links to `files`, numbered in their order."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index, file in enumerate(files):
        (folder / f"{index:04d}-{file.parent.name}-{file.name}").symlink_to(file.resolve())
    return folder


@contextmanager
def subscriber(port: int, heard: Path) -> Iterator[None]:
    """The example subscriber, in a process of its own."""
    script = ROOT / "examples" / "subscriber.py"
    arguments = ("--host", "127.0.0.1", "--port", str(port), "--agent", "bench", "--file", heard)
    with subprocess.Popen(
        [sys.executable, script, *arguments], stdout=subprocess.DEVNULL
    ) as process:
        try:
            time.sleep(1.5)  # until it has subscribed
            yield
        finally:
            process.terminate()


def count_parts(heard: Path) -> int:
    """How many parts the subscriber has an alarm of."""
    with closing(sqlite3.connect(f"file:{heard}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM parts").fetchone()[0])


def command(name: str, *arguments: object) -> str:
    """Run `agent name …` as a user would; its output. Stops the benchmark when it fails."""
    line = [AGENT, name, *map(str, arguments)]
    print("$ agent", *line[1:], file=sys.stderr, flush=True)
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(result: dict[str, Any]) -> str:
    """Every set's figures as Markdown."""
    names = ("set", "torch", "fp32", "int8", "agent", "false rejects", "defects found")
    names += ("alarms heard / due", "parts/s", "from files", "of bare")
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    latencies = ["", "| set | stage | p50 ms | p99 ms |", "|---|---|---|---|"]
    for name, row in result["sets"].items():
        ranked = (f"{row['auroc'][key]:.4f}" for key in ("torch", "fp32", "int8", "agent"))
        cells = (
            name,
            *ranked,
            counted(row["false_rejects"], row["good"], row["false_reject_interval"]),
            counted(row["detected"], row["defective"], row["detection_interval"]),
            f"{row['alarms_heard']} / {row['alarms_in_ledger']}",
            f"{row['parts_per_second']:.2f}",
            f"{row['share_from_files']:.3f}",
            f"{row['share_of_bare_network']:.3f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
        latencies += [
            f"| {name} | {stage} | {latency['p50_ms']:.1f} | {latency['p99_ms']:.1f} |"
            for stage, latency in row["latencies"].items()
        ]
    video = ["", f"Video: {json.dumps(result['video'])}"] if "video" in result else []
    return "\n".join([*rows, *latencies, *video])


def counted(found: int, of: int, bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{found} of {of} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
