"""What a user would pick instead: the same images, machine and run, in turns with this product.

    python -m benchmarks.peers.set_up --bundle runs/real_line/mvtec_bottle/bundle \
        --data ../shared/data/mvtec_bottle                                            # once
    python -m benchmarks.peers --images ../shared/data/mvtec_bottle/test \
        --result benchmarks/results/peers.json

`set_up` installs anomalib in an environment of its own and exports its models to OpenVINO, with
random weights: pretrained ones would have to be downloaded, and speed does not depend on them.
PatchCore's memory is random too, of the size that anomalib's default keeps of the good images. What
could not be installed or exported is said in the result.

All take decoded frames. A peer is anomalib's own `OpenVINOInferencer.predict` of the frame that
OpenCV has resized to 256×256, in a process of its own, which sleeps while others have their turn.
Inference is in the precision that the name says. This product has as many parts in hand as there
are cores, with one thread each; a peer does the same, or one part at a time with all cores,
whichever is faster in the trial before the first round. `torch` is the loop that one writes first:
this product's network in eager torch, one part after the other, all cores for each.

The contenders take turns, round after round, every second round backwards. A ratio is the median
over the rounds of this product's parts/s over the other's in the same round, at the same precision.
This product is counted as if it looked twice at every part: its passes/s over two. `looked_twice`
is the share of parts that it did look at twice.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch

from benchmarks.machine import described
from benchmarks.peers.turns import EXPORTS, PEERS, Turn, told, turn
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.openvino import OpenVinoBackend
from engine.bundle import Bundle, open_bundle
from engine.frame import Pixels
from engine.image import read_image
from engine.inspector import OpenInspector
from engine.listing import find_images
from engine.methods import open_method
from train.export.gate import load_network
from train.network import TorchBackend

OURS = ("this product, OpenVINO", "this product, ONNX Runtime")
TRIAL_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Contender:
    """`take` has a turn of so many seconds; `passes` is what a part looked at in full needs."""

    name: str
    precision: str
    passes: int
    take: Callable[[float], Turn]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.precision}"


class Peers:
    """The process of `benchmarks.peers.inferencers`; a context manager."""

    def __init__(self, folder: Path, frames: list[Pixels]) -> None:
        self._task = {"folder": str(folder.resolve()), "cores": cores()}
        self._python = folder.resolve() / "venv" / "bin" / "python"
        self._frames = frames

    def __enter__(self) -> Self:
        reading, writing = os.pipe()
        self._answers = os.fdopen(reading)
        self._process = subprocess.Popen(
            [self._python, "-m", "benchmarks.peers.inferencers", str(writing)],
            stdin=subprocess.PIPE,
            stdout=2,
            text=True,
            cwd=Path(__file__).parents[2],
            pass_fds=[writing],
        )
        os.close(writing)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                frames = Path(scratch) / "frames.npz"
                np.savez(frames, *self._frames)
                self._ask(self._task | {"frames": str(frames)})  # answered once they are read
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._answers.close()

    def take(self, file: str, *, lanes: int, seconds: float) -> Turn:
        """A turn of an exported model; raises `RuntimeError` where it cannot run."""
        return Turn(**self._ask({"file": file, "lanes": lanes, "seconds": seconds}))

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(self._answers.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise RuntimeError("the process of the peers has ended") from error
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--peers", type=Path, default=PEERS, help="what set_up has made")
    parser.add_argument("--bundle", type=Path, help="by default the one that set_up has made")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--show", action="store_true", help="only print the table of --result")
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(options.result.read_text(encoding="utf-8"))))
        return
    if options.images is None:
        parser.error("--images DIR: what all of them look at")

    cv2.setNumThreads(1)
    files = find_images(options.images).files
    frames = [read_image(file) for file in files[:: -(-len(files) // options.frames)]]
    if not (options.peers / EXPORTS).exists():
        parser.error(f"{options.peers} has no {EXPORTS}: run benchmarks.peers.set_up first")
    exports = json.loads((options.peers / EXPORTS).read_text(encoding="utf-8"))
    bundle = open_bundle(options.bundle or options.peers / "bundle")
    with ExitStack() as stack:
        contenders = stack.enter_context(ours(bundle, frames))
        if exports["exported"]:
            process = stack.enter_context(Peers(options.peers, frames))
            contenders += peers(process, exports)
        rounds = [
            played(contenders[:: -1 if number % 2 else 1], number, options.seconds)
            for number in range(options.rounds)
        ]
    result = {
        "machine": described(),
        "openvino": version("openvino"),
        "bundle": {
            "id": bundle.id,
            "recipe": bundle.manifest.training.recipe,
            "backbone": bundle.manifest.training.backbone,
            "side": bundle.manifest.method.network.side,
        },
        "frames": {"count": len(frames), "shape": frames[0].shape},
        "seconds_a_turn": options.seconds,
        "peers": exports,
        "rounds": rounds,
    } | summary(contenders, rounds)
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


@contextmanager
def ours(bundle: Bundle, frames: list[Pixels]) -> Iterator[list[Contender]]:
    """This product on both runtimes, and its network in a plain loop."""
    torch.set_num_threads(cores())
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = []
        for precision in bundle.manifest.networks:
            if precision not in {"fp32", "int8"}:
                continue
            for name, backend in zip(
                OURS,
                (
                    OpenVinoBackend(bundle, precision=precision, cache=cache),
                    OnnxRuntimeBackend(bundle, precision=precision),
                ),
                strict=True,
            ):
                opened = stack.enter_context(open_method(bundle.manifest.method, backend))
                found.append(two_passes(name, precision, opened, frames))
        network = TorchBackend(load_network(bundle))
        opened = stack.enter_context(open_method(bundle.manifest.method, network))
        found.append(two_passes("torch, a plain loop", "fp32", opened, frames))
        yield found


def two_passes(
    name: str, precision: str, inspector: OpenInspector, frames: list[Pixels]
) -> Contender:
    def look(pixels: Pixels) -> int:
        return len(inspector.inspect(pixels).passes)

    def take(seconds: float) -> Turn:
        return turn(look, frames, lanes=inspector.workers, seconds=seconds)

    return Contender(name=name, precision=precision, passes=2, take=take)


def peers(process: Peers, exports: dict[str, Any]) -> list[Contender]:
    """What `set_up` exported, each in the faster of two ways, which `exports` is told.

    One that cannot run is added to what is missing.
    """
    found = []
    for one in exports["exported"]:
        try:
            trial = {
                lanes: process.take(one["file"], lanes=lanes, seconds=TRIAL_S).passes_per_second
                for lanes in sorted({1, cores()})
            }
        except RuntimeError as error:
            exports["missing"][f"{one['name']}, {one['precision']}"] = told(str(error))
            continue
        one["trial"] = [
            {"lanes": lanes, "threads_each": cores() // lanes, "parts_per_second": rate}
            for lanes, rate in trial.items()
        ]
        one["lanes"] = max(trial, key=lambda lanes: trial[lanes])
        print(f"trial: {one['name']}, {one['precision']} {trial}", flush=True)
        found.append(single_pass(process, one))
    return found


def single_pass(process: Peers, one: dict[str, Any]) -> Contender:
    def take(seconds: float) -> Turn:
        return process.take(one["file"], lanes=one["lanes"], seconds=seconds)

    return Contender(name=one["name"], precision=one["precision"], passes=1, take=take)


def played(contenders: list[Contender], number: int, seconds: float) -> dict[str, dict[str, float]]:
    """One round: parts/s, each looked at in full, and how many were."""
    found = {}
    for one in contenders:
        seen = one.take(seconds)
        rate = seen.passes_per_second / one.passes
        found[one.label] = {
            "parts": seen.parts,
            "looked_twice": seen.passes / seen.parts - 1,
            "parts_per_second": rate,
        }
        print(f"round {number + 1}: {one.label} {rate:.2f} parts/s", flush=True)
    return found


def summary(
    contenders: list[Contender], rounds: list[dict[str, dict[str, float]]]
) -> dict[str, Any]:
    """Medians over the rounds; ratios only between contenders of the same precision."""
    rates = {
        one.label: [each[one.label]["parts_per_second"] for each in rounds] for one in contenders
    }
    return {
        "parts_per_second": {label: statistics.median(seen) for label, seen in rates.items()},
        "looked_twice": {
            one.label: statistics.median(each[one.label]["looked_twice"] for each in rounds)
            for one in contenders
            if one.passes == 2
        },
        "faster_by": {
            other.label: {
                name: statistics.median(
                    mine / theirs
                    for mine, theirs in zip(
                        rates[f"{name}, {other.precision}"], rates[other.label], strict=True
                    )
                )
                for name in OURS
                if f"{name}, {other.precision}" in rates
            }
            for other in contenders
            if other.name not in OURS
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = ["contender", "parts/s", *(f"{name} is faster by" for name in OURS)]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for label, rate in result["parts_per_second"].items():
        ratios = result["faster_by"].get(label, {})
        cells = [f"{ratios[name]:.2f} ×" if name in ratios else "" for name in OURS]
        rows.append(f"| {' | '.join([label, f'{rate:.2f}', *cells])} |")
    shares = [f"{label} {share:.0%}" for label, share in result["looked_twice"].items()]
    missing = [f"- {name}: {reason}" for name, reason in result["peers"]["missing"].items()]
    return "\n".join(
        [
            *rows,
            *["", f"Looked at twice: {'; '.join(shares)}."],
            *(["", "Not measured:", *missing] if missing else []),
        ]
    )


def cores() -> int:
    return os.cpu_count() or 1


if __name__ == "__main__":
    main()
