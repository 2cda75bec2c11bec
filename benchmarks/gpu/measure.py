"""What `benchmarks.gpu.run` measures, once everything it needs can be imported.

Each part stands alone: one that fails leaves its reason in the results and the others go on. The
results are written after each.

    machine     GPU, driver, versions, commit
    driver      pycuda, NVRTC, kernels and a captured graph, without any network
    training    `agent train` and `agent export` on this GPU, with --train
    runtimes    TensorRT, TensorRT-RTX and ONNX Runtime's CUDA in every precision of the bundle that
                they take, and torch; a refusal is an answer, and so is the death of the process
                that tried. The product's fastest that runs is judged below, or the one that
                --network names
    kernels     views, boxes and scores of the device beside engine.view, engine.attention, …
    verdicts    the whole inspection on the device beside ONNX Runtime fp32, for every network
    latency     one frame at a time, p50, p95, p99, in memory that the GPU reads by itself, as in
                `agent run`; beside it, in turns, one that must be copied first, and the naive
                route: views on the CPU, two synchronous calls, the crop on the host
    precisions  the same, device only, of every network for one size of frame
    stages      what each stage takes alone, how many kernels it launches, and what share of the
                bare network's rate the whole has
    cameras     frames of several cameras together
    cvcuda      CV-CUDA's view of whole frames beside engine.view, and its time (ADR 8)
    floors      the least that arithmetic, memory and the bus allow, with ceilings measured here
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agent.synthetic.flange import part
from benchmarks.machine import commit, processor
from calibration.record import read_calibration
from engine.attention import attention_box
from engine.backends.base import Backend
from engine.backends.cuda import Cuda
from engine.backends.cuda.backend import found_here, open_cuda_backend
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.tensorrt.backend import TensorRtNetwork, open_plan, open_plan_backend
from engine.backends.tensorrt.plans import RuntimeName, ensure_plan, find_tensorrt
from engine.bundle import Bundle, Precision, open_bundle
from engine.errors import AtacError, CalibrationError
from engine.frame import Box, Pixels
from engine.gpu import driver as cuda_driver
from engine.gpu.device import (
    DeviceOpening,
    Form,
    geometry_of,
)
from engine.gpu.driver import probe_gpu
from engine.gpu.graph import DriverGraph, Graph
from engine.gpu.inspector import DeviceInspector
from engine.image import read_image
from engine.inspector import OpenInspector
from engine.listing import find_images
from engine.methods import open_method
from engine.methods.atac import atac_of
from engine.parity import compared, provisional_threshold
from engine.score import top_k_mean
from engine.view import view, zoomed

_FRAMES = {
    "0.3 MP": (640, 480),
    "1.3 MP": (1280, 1024),
    "5 MP": (2592, 1944),
    "20 MP": (5472, 3648),
}
_DRY_FRAMES = {"small": (96, 80), "odd": (131, 97)}
_FORMS: tuple[Form, ...] = ("mono", "bayer_rggb", "rgb")
_CAMERAS = (1, 4, 16, 64)
_WANTED_MS = {
    "0.3 MP mono": "<= 1.2",
    "1.3 MP mono": "<= 1.3",
    "5 MP mono": "<= 1.5",
    "20 MP mono": "<= 2.5",
    "5 MP rgb": "<= 2.0",
    "20 MP rgb": "<= 3.5",
}
_PARTS = 40
_PLANNED: tuple[Precision, ...] = ("fp32", "fp16", "int8_symmetric")
_PACKAGES = (
    *(
        "numpy",
        "opencv-python-headless",
        "pillow",
        "onnxruntime",
        "onnxruntime-gpu",
        "torch",
        "pycuda",
    ),
    *("tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings", "nvidia-cuda-nvrtc"),
)

Results = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """A network that runs here: on the device's own addresses, and as a plain `Backend`."""

    opening: DeviceOpening
    backend: Callable[[], Backend]
    pass_ms: float


class NoNetwork:
    """A `DeviceNetwork` that leaves its maps as they are: what is around it can still be tried."""

    name = "no network"

    def bound(self, **_addresses: int) -> Callable[[int, Any], None]:
        return lambda _count, _stream: None

    def capture(self, stream: Any, record: Callable[[], None]) -> Graph:
        return DriverGraph(cuda_driver.load_driver(), stream.handle, record)


class Bench:
    """The bundle, its frames, and the networks that were found to run here."""

    def __init__(self, options: argparse.Namespace, plans: Path) -> None:
        self.bundle: Bundle = open_bundle(options.bundle)
        self.plans = plans
        self.dry: bool = options.dry
        self.images: Path | None = options.images
        self.repeats: int = 1 if options.dry else options.repeats
        self.frames = _DRY_FRAMES if options.dry else _FRAMES
        self.parts = [part(0, number, 0.3).pixels for number in range(8 if self.dry else _PARTS)]
        if self.dry:
            self.parts = [cv2.resize(each, (160, 120)) for each in self.parts]
        # A part that is zoomed into: the naive route skips pass 2 where it can.
        with OnnxRuntimeBackend(self.bundle) as oracle:
            host = open_method(self.bundle.manifest.method, oracle)
            found = (n for n, each in enumerate(self.parts) if host.inspect(each).zoomed)
            self.shown = next(found, 0)
        self.wanted: str | None = options.network
        self.networks: dict[str, Runnable] = {}
        self.p50_ms: dict[str, float] = {}

    @property
    def used(self) -> str:
        """The name of the network that was asked for, or of the product's fastest."""
        if not self.networks:
            raise RuntimeError("no network runs on this device; see runtimes")
        for name in self.networks:
            if self.wanted and name.startswith(self.wanted):
                return name
        # torch is no runtime of the product: it is judged only where there is no other.
        own = [name for name in self.networks if not name.startswith("torch")]
        return min(own or self.networks, key=lambda name: self.networks[name].pass_ms)

    def inspector(self, name: str | None = None) -> DeviceInspector:
        """The whole inspection on the device, over the fastest network or the one of this name."""
        method = atac_of(self.bundle)
        return DeviceInspector(self.networks[name or self.used].opening, method, method.network)

    def naive(self) -> Backend:
        """The same network, called twice and waited for each time."""
        return self.networks[self.used].backend()

    def frame(self, size: tuple[int, int], form: Form, number: int = 0) -> Pixels:
        """A generated part at this size; a Bayer frame is read off its colours."""
        rgb = cv2.resize(self.parts[number % len(self.parts)], size, interpolation=cv2.INTER_CUBIC)
        if form == "rgb":
            return rgb
        if form == "mono":
            return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        raw = np.empty(rgb.shape[:2], np.uint8)
        for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
            raw[row::2, column::2] = rgb[row::2, column::2, channel]
        return raw


def main(options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        plans = options.plans or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.dry:
            # The stand-ins belong to the tests; a GPU machine needs none.
            stack.enter_context(import_module("benchmarks.gpu.stand_ins").stand_ins())
        results: Results = {
            "command": " ".join(("python3 -m benchmarks.gpu.run", *sys.argv[1:])),
            "dry": options.dry,
        }
        if options.train and not options.probe:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options.bundle = folder / "bundle"
            results["training"] = tried(training, options)
        bench = Bench(options, plans)
        if options.probe:
            print(json.dumps(probe(bench, options.probe)))
            return
        if options.dry:
            results["note"] = "stand-ins on a CPU: the figures say nothing about any GPU"
        for measure in (
            *(machine, driver, runtimes, kernels, verdicts, latency, precisions, stages, cameras),
            *(cvcuda, floors),
        ):
            name, begun = measure.__name__, time.perf_counter()
            results[name] = tried(measure, bench)
            print(f"{name}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
            if options.out:  # after each: a driver may take the process with it
                text = json.dumps(results, indent=2)
                options.out.write_text(f"{text}\n", encoding="utf-8")
    if not options.out:
        print(json.dumps(results, indent=2))
    print("\n".join(table(results)), file=sys.stderr)


def tried(measure: Callable[..., Any], *arguments: object) -> Any:
    """What `measure` finds, or why it finds nothing."""
    try:
        return measure(*arguments)
    except AtacError as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001 - the other parts are to go on, whatever this was
        return {"failed": f"{type(error).__name__}: {str(error).strip()[:500]}"}


def training(options: argparse.Namespace) -> Results:
    """`agent train` and `agent export --precision fp16`, as a user calls them."""
    agent = [sys.executable, "-c", "from agent.cli import main; main()"]
    bundle, data = options.bundle, ("--data", str(options.train))
    weights = ("--backbone-weights", str(options.weights)) if options.weights else ()
    found: Results = {"data": options.train.name}
    for name, command in (
        ("train", ("--out", str(bundle), *data, *weights)),
        ("export", ("--bundle", str(bundle), *data, "--precision", "fp16", "--accept-flips")),
    ):
        begun = time.perf_counter()
        done = subprocess.run([*agent, name, *command], capture_output=True, text=True, check=False)
        found[f"{name}_s"] = time.perf_counter() - begun
        if done.returncode:
            raise RuntimeError(f"agent {name} ended with {done.returncode}: {done.stderr[-400:]}")
    return found


def table(results: Results) -> list[str]:
    """What matters of it, one line each, with what is wanted."""
    lines = [f"{'':44}{'measured':>12}{'wanted':>9}"]

    def row(what: str, value: object, wanted: str) -> None:
        shown = f"{value:.3g}" if isinstance(value, float | int) else "-"
        lines.append(f"{what:44}{shown:>12}{wanted:>9}")

    def at(*path: str) -> Any:
        found: Any = results
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    for frame, wanted in _WANTED_MS.items():
        row(f"{frame}: whole inspection, p50 ms", at("latency", frame, "device", "p50_ms"), wanted)
    for frame in ("5 MP mono", "5 MP rgb", "20 MP rgb"):
        row(f"{frame}: copied first, p50 ms", at("latency", frame, "copied", "p50_ms"), "")
    for frame in ("1.3 MP mono", "5 MP mono"):
        row(f"{frame}: of the bare network's rate", at("stages", frame, "of_bare_rate"), ">= .90")
        row(f"{frame}: times faster than naive", at("latency", frame, "times_faster"), ">= 8")
    stages = at("stages", "1.3 MP mono", "ms") or {}
    row("a pass, ms", stages.get("pass_1"), "<= .35")
    around = [stages.get(name) for name in ("view_1", "view_2", "attention")]
    row("both views and attention, ms", sum(around) if all(around) else None, "<= .10")
    row("kernels of an inspection", at("stages", "1.3 MP mono", "kernels"), "")
    for cameras_, wanted in (("0.3 MP × 64", ">= 4000"), ("5 MP × 64", ">= 1500")):
        row(f"{cameras_}: frames/s", at("cameras", cameras_, "frames_per_s"), wanted)
    row("training, s", at("training", "train_s"), "<= 20")
    for name, found in (at("verdicts", "networks") or {}).items():
        row(f"verdicts that differ, {name}"[:44], found.get("flips"), "0")
    return lines


def machine(_bench: Bench) -> Results:
    gpu = tried(lambda: asdict(probe_gpu()))
    return {
        "gpu": gpu,
        "cpu": processor(),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": tried(commit),
    }


def driver(bench: Bench) -> Results:
    """Everything but a network: memory, kernels, a graph captured once and replayed."""
    method = atac_of(bench.bundle)
    pixels = bench.frame(next(iter(bench.frames.values())), "mono", bench.shown)
    with DeviceInspector(lambda *_: NoNetwork(), method, method.network) as inspector:
        first, second = (inspector.views(pixels)[0] for _ in range(2))
    return {
        "view_1": _apart(first, view(pixels, Box.around(pixels), method.view)),
        "replay_is_equal": bool(np.array_equal(first, second)),
    }


def runtimes(bench: Bench) -> Results:
    """What can run the network here; TensorRT-RTX once where it refuses or TensorRT runs."""
    found: Results = {}
    for name in ("tensorrt", "tensorrt_rtx", "cuda"):
        found[name] = probe(bench, name) if bench.dry else _probed_apart(bench, name)
        for precision, answer in found[name].items():
            if "pass_ms" in answer:
                take = _take_cuda if name == "cuda" else partial(_take_plan, name=name)
                take(bench, precision=precision, pass_ms=answer["pass_ms"])
    for precision in ("fp32", "fp16"):
        found[f"torch {precision}"] = tried(_torch, bench, precision)
    found["used"] = bench.used if bench.networks else None
    return found


def probe(bench: Bench, name: str) -> dict[str, Results]:
    """Run each precision with one runtime, once; build a plan first where it takes one."""
    found: dict[str, Results] = {}
    for precision in _PLANNED if name != "cuda" else Cuda.precisions:
        if precision in bench.bundle.manifest.networks:
            found[precision] = (
                tried(_tried_out, bench, open_cuda_backend(bench.bundle, precision=precision))
                if name == "cuda"
                else tried(_plan, bench, name, precision)
            )
            if name == "tensorrt_rtx" and "pass_ms" not in found[precision]:
                break
    return found


def _probed_apart(bench: Bench, name: str) -> dict[str, Results]:
    """`probe` in a process of its own, since a runtime may take its process with it."""
    command = [sys.executable, "-m", "benchmarks.gpu.run", *sys.argv[1:]]
    done = subprocess.run(
        [*command, "--probe", name, "--plans", bench.plans],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found: dict[str, Results] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"any": {"failed": f"ended with {done.returncode}: {done.stderr[-500:]}"}}
    return found


def _plan(bench: Bench, name: RuntimeName, precision: Precision) -> Results:
    gpu = probe_gpu()
    runtime = find_tensorrt(name)
    begun = time.perf_counter()
    plan = ensure_plan(bench.plans, bench.bundle, precision, gpu=gpu, tensorrt=runtime)
    return {
        "runtime": f"{runtime.name} {runtime.version}",
        "build_s": time.perf_counter() - begun,
        "plan_mb": len(plan.data) / 1e6,
        **_tried_out(
            bench,
            open_plan_backend(
                bench.bundle, precision=precision, plans=bench.plans, gate=False, tensorrt=runtime
            ),
        ),
    }


def _take_cuda(bench: Bench, *, precision: Any, pass_ms: float) -> None:
    found = found_here(bench.bundle, precision)
    bench.networks[found.name] = Runnable(
        opening=found.opening,
        backend=lambda: open_cuda_backend(bench.bundle, precision=precision),
        pass_ms=pass_ms,
    )


def _take_plan(bench: Bench, *, name: RuntimeName, precision: Any, pass_ms: float) -> None:
    bundle, runtime = bench.bundle, find_tensorrt(name)
    plan, _, told = open_plan(bundle, precision, plans=bench.plans, gate=False, tensorrt=runtime)
    network = bundle.manifest.method.network
    bench.networks[told] = Runnable(
        opening=lambda memory, _stream: TensorRtNetwork(plan, runtime, network, told, memory),
        backend=lambda: open_plan_backend(
            bundle, precision=precision, plans=bench.plans, gate=False, tensorrt=runtime
        ),
        pass_ms=pass_ms,
    )


def _torch(bench: Bench, precision: Any) -> Results:
    reference = import_module("benchmarks.gpu.torch_reference")

    def opened() -> Backend:
        return reference.CudaReference(bench.bundle, precision=precision)

    answer = _tried_out(bench, opened())
    bench.networks[f"torch {precision}"] = Runnable(
        opening=lambda *_: reference.TorchDeviceNetwork(bench.bundle, precision=precision),
        backend=opened,
        pass_ms=answer["pass_ms"],
    )
    return answer


def _tried_out(bench: Bench, opened: Backend) -> Results:
    """The maps beside ONNX Runtime's fp32, and what one pass from the host takes."""
    with opened as backend:
        found = {"max_difference": _difference(bench, backend)}
        one = np.zeros((1, *[bench.bundle.manifest.method.network.side] * 2, 3), np.uint8)
        times = _timed(lambda: backend.run(one), bench.repeats)
        return found | {"pass_ms": _percentiles(times)["p50_ms"]}


def _difference(bench: Bench, backend: Backend) -> dict[str, float]:
    """The largest difference of the two maps from ONNX Runtime's fp32, for 1 and for 3 views."""
    spec = atac_of(bench.bundle).view
    views = np.stack([view(each, Box.around(each), spec) for each in bench.parts[:3]])
    found = {"score_map": 0.0, "attention": 0.0}
    with OnnxRuntimeBackend(bench.bundle) as oracle:
        for some in (views[:1], views):
            here, there = backend.run(some), oracle.run(some)
            for name, before in found.items():
                apart = float(np.abs(here[name] - there[name]).max())
                found[name] = max(before, apart)
    return found


def kernels(bench: Bench) -> Results:
    """The same stages by kernels and by the engine, from what the device itself saw and said."""
    method = atac_of(bench.bundle)
    found: Results = {}
    with bench.inspector() as inspector:
        for (name, size), form in product(bench.frames.items(), ("mono", "rgb")):
            pixels = bench.frame(size, form, bench.shown)
            first, second = inspector.views(pixels)
            said = inspector.inspect(pixels)
            whole = view(pixels, Box.around(pixels), method.view)
            box = attention_box(said.attention, method.view.box, method.crop)
            closer, _ = zoomed(pixels, whole, box, method.view)
            score = top_k_mean(said.score_map, method.score.top_k)
            found[f"{name} {form}"] = {
                "view_1": _apart(first, whole),
                "view_2": _apart(second, closer),
                "zoomed": said.zoomed,
                "box_equal": said.box == box.scaled(of=method.view.box, to=Box.around(pixels)),
                "score_difference": abs(said.passes[0].score - score),
            }
        raw = bench.frame(next(iter(bench.frames.values())), "bayer_rggb", bench.shown)
        rgb = cv2.cvtColor(raw, cv2.COLOR_BayerRGGB2RGB)
        (here,), there = inspector.inspect_all([raw], ["bayer_rggb"]), inspector.inspect(rgb)
        found["bayer_equals_rgb"] = here.score == there.score
        blank = np.full((120, 160), 90, np.uint8)
        alone = [inspector.inspect(blank) for _ in range(2)]
        found["repeatable"] = alone[0].score == alone[1].score
        found["skipped_pass_2_is_pass_1"] = [
            each.score == each.passes[0].score for each in alone if not each.zoomed
        ]
    return found


def _apart(found: Pixels, wanted: Pixels) -> Results:
    apart = np.abs(found.astype(int) - wanted.astype(int))
    return {
        "equal": float((apart == 0).mean()),
        "within_1": float((apart <= 1).mean()),
        "worst": int(apart.max()),
    }


def verdicts(bench: Bench) -> Results:
    """The whole inspection beside ONNX Runtime fp32 with views on the host."""
    files = find_images(bench.images).files if bench.images else []
    pictures = [read_image(file) for file in files] or bench.parts
    names = [str(file) for file in files] or [f"generated part {i}" for i in range(len(pictures))]
    with OnnxRuntimeBackend(bench.bundle) as oracle:
        reference = open_method(bench.bundle.manifest.method, oracle)
        expected = [reference.inspect(pixels) for pixels in pictures]
    try:
        threshold = read_calibration(bench.bundle, precision="fp32").calibration.threshold
        calibrated = True
    except CalibrationError:
        threshold = provisional_threshold([each.score for each in expected], [])
        calibrated = False

    def beside(network: str) -> Results:
        with bench.inspector(network) as inspector:
            found = [inspector.inspect(pixels) for pixels in pictures]
        parity = compared(
            expected,
            found,
            names,
            compared_with="onnxruntime cpu fp32",
            threshold=threshold,
            threshold_from="calibration" if calibrated else "these images",
        )
        return {"flips": len(parity.flips), "summary": parity.summary}

    return {
        "real_images": len(files),
        "networks": {network: tried(beside, network) for network in bench.networks},
    }


def latency(bench: Bench) -> Results:
    """Both routes over the same frames, in turns of ten."""
    found: Results = {}
    with bench.inspector() as device, bench.naive() as backend:
        host = open_method(bench.bundle.manifest.method, backend)
        for (name, size), form in product(bench.frames.items(), _FORMS):
            raw = bench.frame(size, form, bench.shown)
            told = tried(_both_ways, bench, device, host, raw, form)
            found[f"{name} {form}"] = told
            if "device" in told:
                bench.p50_ms[f"{name} {form}"] = told["device"]["p50_ms"]
    return found


def _both_ways(
    bench: Bench, device: DeviceInspector, host: OpenInspector, raw: Pixels, form: Form
) -> Results:
    def naive() -> object:
        seen = cv2.cvtColor(raw, cv2.COLOR_BayerRGGB2RGB) if form.startswith("bayer") else raw
        return host.inspect(seen)

    lent = np.empty_like(raw)
    lent[...] = raw
    device.lend(lent)
    ways = {
        "device": lambda: device.inspect_all([lent], [form]),
        "copied": lambda: device.inspect_all([raw], [form]),
        "naive": naive,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        for _ in range(min(20, bench.repeats)):
            way()
    turn = min(10, bench.repeats)
    for _ in range(-(-bench.repeats // turn)):
        for name, way in ways.items():
            times[name] += _timed(way, turn)
    device.lend(None)
    found: Results = {name: _percentiles(each) for name, each in times.items()}
    found["zoomed"] = device.inspect_all([raw], [form])[0].zoomed
    found["p99_over_p50"] = found["device"]["p99_ms"] / found["device"]["p50_ms"]
    found["times_faster"] = found["naive"]["p50_ms"] / found["device"]["p50_ms"]
    return found


def precisions(bench: Bench) -> Results:
    """Every network's latency, mono, one size of frame."""
    size = list(bench.frames.values())[-1 if bench.dry else 2]
    raw = bench.frame(size, "mono", bench.shown)

    def alone(network: str) -> Results:
        with bench.inspector(network) as inspector:
            _timed(lambda: inspector.inspect(raw), min(20, bench.repeats))
            return _percentiles(_timed(lambda: inspector.inspect(raw), bench.repeats))

    return {network: tried(alone, network) for network in bench.networks}


def stages(bench: Bench) -> Results:
    """Each stage alone, and the whole beside the bare network: two passes, nothing else."""
    found: Results = {}
    with bench.inspector() as inspector:
        for (name, size), form in product(bench.frames.items(), _FORMS):
            raw = bench.frame(size, form, bench.shown)
            inspector.lend(raw)
            stages = inspector.stages([geometry_of(raw, form)], bench.repeats)
            seconds = {stage: each.seconds for stage, each in stages.items()}
            kernels = [each.kernels for each in stages.values()]
            whole = _percentiles(
                _timed(
                    lambda raw=raw, form=form: inspector.inspect_all([raw], [form]), bench.repeats
                )
            )
            inspector.lend(None)
            sum_s = sum(seconds.values())
            bare_s = seconds["pass_1"] + seconds["pass_2"]
            found[f"{name} {form}"] = {
                "ms": {stage: 1e3 * each for stage, each in seconds.items()},
                "share": {stage: each / sum_s for stage, each in seconds.items()},
                "of_bare_rate": 1e3 * bare_s / whole["p50_ms"],
                "kernels": None if None in kernels else sum(filter(None, kernels)),
            }
    return found


def cameras(bench: Bench) -> Results:
    """Frames of several cameras together, mono, one size each."""
    found: Results = {}
    with bench.inspector() as inspector:
        for name, size in bench.frames.items():
            if name == "20 MP":
                continue  # 64 of them are more than the memory of many machines
            for count in _CAMERAS[: 2 if bench.dry else None]:
                frames = [bench.frame(size, "mono", number) for number in range(count)]
                found[f"{name} × {count}"] = tried(_together, inspector, frames, bench.repeats)
    return found


def _together(inspector: DeviceInspector, frames: list[Pixels], repeats: int) -> Results:
    memory = np.concatenate([each.ravel() for each in frames])
    inspector.lend(memory)
    parts = np.split(memory, np.cumsum([each.size for each in frames])[:-1])
    frames = [part.reshape(each.shape) for part, each in zip(parts, frames, strict=True)]
    inspector.inspect_all(frames)
    times = _timed(lambda: inspector.inspect_all(frames), max(3, repeats // len(frames)))
    inspector.lend(None)
    return _percentiles(times) | {"frames_per_s": len(frames) * len(times) / sum(times)}


def cvcuda(bench: Bench) -> Results:
    """Whole mono frames as pass 1 sees them, by CV-CUDA: how far its pixels are from ours."""
    library, torch = import_module("cvcuda"), import_module("torch")
    spec, found = atac_of(bench.bundle).view, {}
    interpolation = library.Interp.CUBIC

    def resized(image: Any) -> Any:
        shape = (1, spec.side, spec.side, 1)
        return library.pillowresize(image, shape, library.Format.U8, interpolation)

    def levelled(image: Any) -> Any:
        return library.clahe(image, spec.clahe_clip_limit, (spec.clahe_tiles, spec.clahe_tiles))

    steps = {
        "before_resize": (levelled, resized),
        "after_resize": (resized, levelled),
        "never": (resized,),
    }[spec.equalise]
    for name, size in bench.frames.items():
        pixels = bench.frame(size, "mono", bench.shown)
        frame = torch.from_numpy(pixels).cuda()[None, :, :, None].contiguous()
        source = library.as_tensor(frame, "NHWC")

        def made(source: Any = source) -> Any:
            for step in steps:
                source = step(source)
            return source

        seen = torch.as_tensor(made().cuda(), device="cuda").cpu().numpy()[0]
        found[name] = {
            "view_1": _apart(seen, view(pixels, Box.around(pixels), spec)[..., :1]),
            "ms": 1e3 * _device_seconds(torch, made, bench.repeats),
        }
    return found


def floors(bench: Bench) -> Results:
    """The least time of two passes and one upload, from ceilings measured on this device."""
    torch = import_module("torch")
    counting = import_module("torch.utils.flop_counter").FlopCounterMode(display=False)
    side = bench.bundle.manifest.method.network.side
    network = import_module("train.export.gate").load_network(bench.bundle)
    with counting as counter, torch.inference_mode():
        network(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    flops = counter.get_total_flops()
    weights = sum(each.numel() for each in network.parameters()) * 2  # fp16
    found: Results = {"pass_gflop": flops / 1e9, "weights_mb": weights / 1e6}
    if not torch.cuda.is_available():
        return found | {"ceilings": "torch finds no GPU"}
    size = 8192
    matrix = torch.randn(size, size, device="cuda", dtype=torch.float16)
    large = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(large)
    pinned = torch.empty(1 << 27, dtype=torch.uint8, pin_memory=True)
    tflops = 2 * size**3 / _device_seconds(torch, lambda: matrix @ matrix) / 1e12
    memory = 2 * len(large) / _device_seconds(torch, lambda: copy.copy_(large)) / 1e9
    up = (
        len(pinned)
        / _device_seconds(torch, lambda: large[: len(pinned)].copy_(pinned, non_blocking=True))
        / 1e9
    )
    passes = 2 * max(flops / (tflops * 1e12), weights / (memory * 1e9))
    # A frame goes up once and is read once; of the views, all else is small.
    a_byte = 1 / (up * 1e9) + 1 / (memory * 1e9)
    floor = {
        f"{name} {form}": 1e3 * (passes + width * height * (3 if form == "rgb" else 1) * a_byte)
        for (name, (width, height)), form in product(bench.frames.items(), _FORMS)
    }
    return found | {
        "fp16_tflops": tflops,
        "memory_gb_s": memory,
        "upload_gb_s": up,
        "two_passes_ms": 1e3 * passes,
        "floor_ms": floor,
        "p50_over_floor": {
            name: bench.p50_ms[name] / least
            for name, least in floor.items()
            if name in bench.p50_ms
        },
    }


def _device_seconds(torch: Any, work: Callable[[], object], repeats: int = 10) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / repeats


def _timed(work: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return times


def _percentiles(seconds: list[float]) -> Results:
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "count": len(seconds)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
