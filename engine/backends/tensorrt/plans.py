"""ONNX → TensorRT plan for this GPU, once; afterwards from a cache.

    <key>.plan      the serialised engine
    <key>.json      its record, sealed: what it was built from and for, and its SHA-256
    <key>.parity    how its verdicts compared with ONNX Runtime's, once that was done; sealed
    <key>.timing    TensorRT's own timings of kernels, one per runtime and GPU; sealed
    seal.key        what they are sealed with; `engine/seal.py`

A plan is executable and fits one TensorRT version and one kind of GPU. So it is found by a key
made of all that, and seal and hash are checked before TensorRT sees a byte of it.
"""

import importlib
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from engine.backends.base import Progress
from engine.bundle import Bundle, Precision, Sha256, replace_file, sha256
from engine.errors import BackendError
from engine.extras import install
from engine.gpu.device import MAX_BATCH
from engine.gpu.driver import Gpu
from engine.gpu.verdicts import Verdicts, cache_explained
from engine.regular_file import read_regular
from engine.seal import sealed, unsealed
from engine.spec import spec

_OLDEST, _TOO_NEW = (10, 12), (12, 0)
_SCHEMA_VERSION: Final = 2
_RECORD_MAX_BYTES: Final = 100_000
_MAX_BYTES: Final = 8 << 30

RuntimeName = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtModule:
    """An importable TensorRT; `module` has the same builder and runtime under both names."""

    name: RuntimeName
    version: str
    module: Any


@spec
class PlanKey:
    """All that a plan depends on; a plan of another key is never used."""

    network_sha256: Sha256
    precision: Precision
    runtime: str
    gpu: str
    capability: str
    max_batch: int


@spec
class PlanRecord:
    """What is known of a plan file; stored beside it."""

    schema_version: int
    key: PlanKey
    plan_sha256: Sha256
    built_at: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan whose bytes had the hash in its record. `is_new` says that it was built just now."""

    path: Path
    data: bytes
    record: PlanRecord
    is_new: bool

    @property
    def verdicts(self) -> Verdicts:
        """How its verdicts compared with ONNX Runtime's."""
        path = self.path.with_suffix(".parity")
        return Verdicts(path=path, subject=self.record.plan_sha256)


_RECORD: Final = TypeAdapter(PlanRecord)


def find_tensorrt(*names: RuntimeName) -> TensorRtModule:
    """The first of `names` that is installed; without any TensorRT, else TensorRT-RTX.

    Imports it: call `probe_gpu` before, if the plan is to run. Raises `BackendError` when none
    can be imported, or when the version is none of 10.12 to 11.
    """
    broken = None
    wanted: tuple[RuntimeName, ...] = names or ("tensorrt", "tensorrt_rtx")
    for name in wanted:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                broken = broken or f"{name} cannot be imported ({error})"
            continue
        except (ImportError, OSError) as error:
            broken = broken or f"{name} cannot be imported ({error})"
            continue
        version = str(module.__version__)
        if name == "tensorrt" and not _OLDEST <= _numbers(version) < _TOO_NEW:
            raise BackendError(
                f"TensorRT {version} is not supported; "
                "install with: pip install 'tensorrt>=10.12,<12'"
            )
        return TensorRtModule(name=name, version=version, module=module)
    missing = broken or f"{' or '.join(wanted)} is not installed"
    raise BackendError(f"{missing}; install with: {install('gpu')}, or '.[rtx]' for TensorRT-RTX")


def plan_key(
    bundle: Bundle, precision: Precision, *, gpu: Gpu, tensorrt: TensorRtModule
) -> PlanKey:
    """The key of the plan that `bundle`'s network of this precision needs here."""
    return PlanKey(
        network_sha256=sha256(bundle.network(precision)),
        precision=precision,
        runtime=f"{tensorrt.name} {tensorrt.version}",
        gpu=gpu.name,
        capability=gpu.capability,
        max_batch=MAX_BATCH,
    )


def read_plan(folder: Path, key: PlanKey) -> Plan:
    """The plan of `key`, checked; raises `BackendError` with the reason where it cannot be used."""
    path = folder / f"{_stem(key)}.plan"
    try:
        raw = _read_sealed(path.with_suffix(".json"), "plan", limit=_RECORD_MAX_BYTES)
        data = read_regular(path, limit=_MAX_BYTES)
    except OSError as error:
        raise BackendError(f"there is no plan for {_where(key)} ({error})") from error
    if raw is None:
        raise BackendError(f"{path} was not built by this user, or was changed")
    try:
        record = _RECORD.validate_json(raw)
    except ValidationError as error:
        raise BackendError(f"{path.with_suffix('.json')} is not a plan's record") from error
    if record.schema_version != _SCHEMA_VERSION or record.key != key:
        raise BackendError(f"{path} was built for {_where(record.key)}, not for {_where(key)}")
    if sha256(data) != record.plan_sha256:
        raise BackendError(f"{path} does not have the hash that was recorded when it was built")
    return Plan(path=path, data=data, record=record, is_new=False)


def ensure_plan(
    folder: Path,
    bundle: Bundle,
    precision: Precision,
    *,
    gpu: Gpu,
    tensorrt: TensorRtModule,
    progress: Progress | None = None,
) -> Plan:
    """The plan from the cache, or a new one if there is none that can be used.

    Args:
        folder: Where plans are kept.
        bundle: The bundle that holds the network.
        precision: Which network of the bundle.
        gpu: The GPU that the plan is for.
        tensorrt: The runtime that the plan is for.
        progress: Hears of each step of a build.

    Raises:
        BackendError: The plan cannot be built or written.
    """
    key = plan_key(bundle, precision, gpu=gpu, tensorrt=tensorrt)
    try:
        return read_plan(folder, key)
    except BackendError:
        pass  # missing, damaged or of another make: built again
    started = perf_counter()
    timing = folder / f"{_slug(key.runtime)}-{_slug(key.gpu)}-{key.capability}.timing"
    data = build_plan(
        bundle.network(precision),
        tensorrt,
        what=f"the {precision} network of {bundle.path}",
        timing=timing,
        progress=progress,
    )
    record = PlanRecord(
        schema_version=_SCHEMA_VERSION,
        key=key,
        plan_sha256=sha256(data),
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(perf_counter() - started, 3),
    )
    path = folder / f"{_stem(key)}.plan"
    # The record last: a crash in between leaves a plan that no record vouches for.
    _write(path, data)
    _write_sealed(path.with_suffix(".json"), "plan", _RECORD.dump_json(record, indent=2))
    return Plan(path=path, data=data, record=record, is_new=True)


def build_plan(
    network: bytes,
    tensorrt: TensorRtModule,
    *,
    what: str,
    timing: Path | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Build the ONNX model `network` with the types written in it; returns the serialised plan.

    TensorRT times kernels on the GPU; TensorRT-RTX builds without one.

    Args:
        network: The ONNX model.
        tensorrt: What builds it.
        what: Names the network in errors.
        timing: The file of TensorRT's own timings, which shorten later builds.
        progress: Hears of each step.

    Raises:
        BackendError: It cannot be built; with the parser's or the builder's own words.
    """
    trt = tensorrt.module
    log = error_log(trt)
    builder = trt.Builder(log)
    if builder is None:
        raise BackendError(f"{tensorrt.name} cannot start a builder{log.last_error()}")
    # Precision is the ONNX file's business, by types and QDQ nodes; TensorRT 11 knows no other.
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, log)
    if not parser.parse(network):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BackendError(
            f"{tensorrt.name} {tensorrt.version} cannot parse {what}: "
            f"{errors or 'no reason given'}; try another --precision (int8 is for CPUs: "
            "int8_symmetric is for TensorRT)"
        )
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(definition.num_inputs):
        tensor = definition.get_input(index)
        one, most = ((size, *tuple(tensor.shape)[1:]) for size in (1, MAX_BATCH))
        profile.set_shape(tensor.name, one, one, most)
    config.add_optimization_profile(profile)
    if tensorrt.name == "tensorrt_rtx":
        # An engine that takes memory by itself cannot be captured in a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    # TensorRT-RTX times nothing when it builds, and says so of every call about timings.
    cache = _timing_cache(config, timing) if timing and tensorrt.name == "tensorrt" else None
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise BackendError(
            f"{tensorrt.name} {tensorrt.version} cannot build {what}{log.last_error()}; "
            "check the GPU's free memory with: nvidia-smi"
        )
    if timing and cache is not None:
        data = bytes(config.get_timing_cache().serialize())
        _write_sealed(timing, timing.name, data)
    return bytes(plan)


def _timing_cache(config: Any, path: Path) -> Any:
    """TensorRT's timings of earlier builds, where they are whole; an empty cache otherwise."""
    data = None
    with suppress(OSError):
        data = _read_sealed(path, path.name)
    cache = config.create_timing_cache(data or b"")
    config.set_timing_cache(cache, False)
    return cache


def error_log(trt: Any) -> Any:
    """A logger for the builder and the runtime; `last_error()` is their last error, in brackets."""

    class Log(trt.ILogger):  # type: ignore[misc] # the module is chosen when the program runs
        """Keeps what went wrong for the one message in which the user hears it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}:
                self._errors.append(message)

        def last_error(self) -> str:
            return f" ({self._errors[-1]})" if self._errors else ""

    return Log()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # as above
        """Passes TensorRT's phases on; they nest, each counts its own steps."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, step + 1, self._steps[phase])
            return True

        def phase_finish(self, phase: str) -> None:
            steps = self._steps.pop(phase)
            progress(phase, steps, steps)

    return Monitor()


def _write(path: Path, data: bytes) -> None:
    with cache_explained(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, data)


def _write_sealed(path: Path, purpose: str, data: bytes) -> None:
    with cache_explained(path):
        replace_file(path, sealed(path.parent, data, purpose=purpose))


def _read_sealed(path: Path, purpose: str, *, limit: int = _MAX_BYTES) -> bytes | None:
    return unsealed(path.parent, read_regular(path, limit=limit), purpose=purpose)


def _stem(key: PlanKey) -> str:
    return sha256(TypeAdapter(PlanKey).dump_json(key))[:32]


def _where(key: PlanKey) -> str:
    return f"{key.precision} on {key.gpu} ({key.capability}) with {key.runtime}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
