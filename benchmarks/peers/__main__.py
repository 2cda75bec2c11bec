"""What a user would pick instead: the same images, machine and run, in turns with this product.

    python -m benchmarks.peers.set_up --images ../shared/data/mvtec_bottle/test   # once
    python -m benchmarks.peers --bundle runs/real_line/mvtec_bottle/bundle \
        --images ../shared/data/mvtec_bottle/test --result benchmarks/results/peers.json

`set_up` installs anomalib in an environment of its own and exports its models to OpenVINO, with
random weights: pretrained ones would have to be downloaded, and speed does not depend on them.
PatchCore's memory has as many patches as anomalib's default keeps of the 209 good images of MVTec's
bottle. What could not be installed or exported is said in the result.

All take decoded frames and use all cores with as many parts in hand as there are cores, one thread
each; the peers resize to their 256×256 with OpenCV, inference is OpenVINO's in the precision that
the name says. `torch` is the loop that one writes first: this product's network in eager torch, one
part after the other, all cores for each.

The contenders take turns, round after round. A ratio is the median over the rounds of this
product's parts/s over the other's in the same round, at the same precision. This product is counted
as if it looked twice at every part: its passes/s over two.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.machine import described
from benchmarks.peers.set_up import EXPORTS, PEERS, SIDE
from engine.backends.onnxruntime_backend import OnnxRuntimeBackend
from engine.backends.openvino_backend import OpenVinoBackend, find_openvino
from engine.bundle import Bundle, open_bundle
from engine.frame import Pixels
from engine.image import images_below, read_image
from engine.inspector import TwoPassInspector
from train.export import load_network
from train.network import TorchBackend

OURS = "this product, OpenVINO"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """`look` inspects one frame, in as many threads as `lanes`, and says how many passes it took.

    `passes` is what `look` would say of a part that is looked at in full.
    """

    name: str
    precision: str
    lanes: int
    passes: int
    look: Callable[[Pixels], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--peers", type=Path, default=PEERS)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--show", action="store_true", help="only print the table of --result")
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(options.result.read_text(encoding="utf-8"))))
        return

    cv2.setNumThreads(1)
    files = images_below(options.images)
    frames = [read_image(file) for file in files[:: -(-len(files) // options.frames)]]
    exports = json.loads((options.peers / EXPORTS).read_text(encoding="utf-8"))
    with ExitStack() as stack:
        contenders = [
            *stack.enter_context(ours(open_bundle(options.bundle))),
            *peers(options.peers, exports),
        ]
        rounds: list[dict[str, float]] = []
        for _ in range(options.rounds):
            rounds.append({})
            for one in contenders:
                seen = rate(one, frames, seconds=options.seconds)
                rounds[-1][label(one)] = seen
                print(f"round {len(rounds)}: {label(one)} {seen:.2f} parts/s", flush=True)
    result = {
        "machine": described(),
        "frames": {"count": len(frames), "shape": frames[0].shape},
        "peers": exports,
        "rounds": rounds,
        "parts_per_second": {
            name: statistics.median(one[name] for one in rounds) for name in rounds[0]
        },
        "ours_over": ratios(contenders, rounds),
    }
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


@contextmanager
def ours(bundle: Bundle) -> Iterator[list[Contender]]:
    """This product on both runtimes, and its network in a plain loop."""
    torch.set_num_threads(os.cpu_count() or 1)
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = []
        for precision in bundle.manifest.networks:
            if precision not in {"fp32", "int8"}:
                continue
            for name, backend in (
                (OURS, OpenVinoBackend(bundle, precision=precision, cache=cache)),
                ("this product, ONNX Runtime", OnnxRuntimeBackend(bundle, precision=precision)),
            ):
                opened = stack.enter_context(backend)
                inspector = TwoPassInspector(opened, bundle.manifest)
                found.append(two_passes(name, precision, opened.lanes, inspector))
        backend = stack.enter_context(TorchBackend(load_network(bundle)))
        inspector = TwoPassInspector(backend, bundle.manifest)
        found.append(two_passes("torch, a plain loop", "fp32", 1, inspector))
        yield found


def two_passes(name: str, precision: str, lanes: int, inspector: TwoPassInspector) -> Contender:
    def look(pixels: Pixels) -> int:
        return 1 + inspector.inspect(pixels).zoomed

    return Contender(name=name, precision=precision, lanes=lanes, passes=2, look=look)


def peers(folder: Path, exports: dict[str, Any]) -> list[Contender]:
    """What `set_up` exported, each with a compiled network of one thread for each core.

    One that cannot run is added to what is missing.
    """
    core = find_openvino().Core()
    settings = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    lanes = os.cpu_count() or 1
    found = []
    for one in exports["exported"]:
        free: SimpleQueue[Any] = SimpleQueue()
        look = single_pass(free, one["batch"])
        try:
            for _ in range(lanes):
                compiled = core.compile_model(folder / one["file"], "CPU", settings)
                free.put(compiled.create_infer_request())
            look(np.zeros((SIDE, SIDE, 3), np.uint8))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            exports["missing"][f"{one['name']}, {one['precision']}"] = reason
            continue
        found.append(
            Contender(
                name=one["name"], precision=one["precision"], lanes=lanes, passes=1, look=look
            )
        )
    return found


def single_pass(free: "SimpleQueue[Any]", batch: int) -> Callable[[Pixels], int]:
    """A network that was exported for more than one image gets the same one so often, and each
    counts as a part.
    """

    def look(pixels: Pixels) -> int:
        small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if small.ndim == 2:
            small = cv2.cvtColor(small, cv2.COLOR_GRAY2RGB)
        planes = np.ascontiguousarray(small.transpose(2, 0, 1)[None], dtype=np.float32) / 255
        request = free.get()
        try:
            request.infer([planes.repeat(batch, axis=0)], share_inputs=True)
        finally:
            free.put(request)
        return batch

    return look


def rate(one: Contender, frames: list[Pixels], *, seconds: float) -> float:
    """Parts/s, each looked at in full; a part that was begun in time is finished and counted."""
    for _ in range(one.lanes):
        one.look(frames[0])
    numbers = count()
    began = perf_counter()

    def lane() -> int:
        passes = 0
        while perf_counter() < began + seconds:
            passes += one.look(frames[next(numbers) % len(frames)])
        return passes

    with ThreadPoolExecutor(one.lanes) as pool:
        lanes = [pool.submit(lane) for _ in range(one.lanes)]
        passes = sum(each.result() for each in lanes)
    return passes / one.passes / (perf_counter() - began)


def label(one: Contender) -> str:
    return f"{one.name}, {one.precision}"


def ratios(contenders: list[Contender], rounds: list[dict[str, float]]) -> dict[str, float]:
    """This product by OpenVINO over each other contender of the same precision."""
    return {
        label(other): statistics.median(
            one[f"{OURS}, {other.precision}"] / one[label(other)] for one in rounds
        )
        for other in contenders
        if other.name != OURS and f"{OURS}, {other.precision}" in rounds[0]
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = ["| contender | parts/s | this product is faster by |", "|---|---|---|"]
    for name, rate in result["parts_per_second"].items():
        ratio = result["ours_over"].get(name)
        rows.append(f"| {name} | {rate:.2f} | {'' if ratio is None else f'{ratio:.2f} ×'} |")
    missing = [f"- {name}: {reason}" for name, reason in result["peers"]["missing"].items()]
    return "\n".join([*rows, *(["", "Not measured:", *missing] if missing else [])])


if __name__ == "__main__":
    main()
