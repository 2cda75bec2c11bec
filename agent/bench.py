"""How fast a bundle is on this machine: the line as it runs, beside its network alone.

    bare network ─▶ line at saturation ─▶ bare network ─▶ line at a pace ─▶ … the same again

Both take turns in one run, since a machine is faster at one minute than at the next. The line is
that of `agent run`: workers, child process, ledger. Frames lie in memory, as a camera gives them,
and no part raises an alarm, so no picture is drawn and no broker is needed.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Final, Self

import numpy as np

from agent.cameras.conveyor import ConveyorSettings
from agent.cameras.pace import PacedCamera
from agent.inference.child import ChildInspector, Setup
from agent.part import Part
from agent.ports import CameraContext
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from engine.backends.base import BACKENDS, Backend, BackendName, Runtime
from engine.backends.choice import judgement
from engine.backends.opening import open_backend, open_inspector
from engine.bundle import Bundle, Manifest, Precision
from engine.errors import BackendError
from engine.frame import Frame, Pixels

_PACED_SHARE: Final = 0.5
"""The paced line brings so much of what the saturated one got through: no part waits for long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of one stage's times, in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BareNetwork:
    """The network alone: every worker runs one view over and over."""

    passes_per_second: float
    cpu_ms_per_pass: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSpeed:
    """One run of the line. `stages` has `end_to_end` too, from the frame to its verdict.

    `jitter_ms` is the standard deviation of `end_to_end`; `cpu_ms_per_part` that of the agent and
    its child together, without their start.
    """

    parts: int
    parts_per_second: float
    passes_per_part: float
    cpu_ms_per_part: float
    jitter_ms: float
    stages: dict[str, Percentiles]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The line between two measurements of the bare network, whose mean is `bare`.

    `share_of_bare` is parts/s over what the bare passes/s allow at this mix of one and two passes;
    `share_of_bound` over the smaller of that and cores / CPU seconds a part, which nothing that
    does the same work on these cores can pass.
    """

    bare: BareNetwork
    saturated: LineSpeed
    share_of_bare: float
    share_of_bound: float
    paced: LineSpeed


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What one backend does with one precision. `ready_s` is the child's start, cache filled.

    `score_difference` is the largest from ONNX Runtime's fp32 over the frames; `objections` are
    those of the bundle's parity gate, `None` where it has not looked.
    """

    backend: str
    precision: Precision
    workers: int
    cores: int
    frame: tuple[int, ...]
    ready_s: float
    child_mb: float
    agent_mb: float
    score_difference: float
    objections: tuple[str, ...] | None
    rounds: tuple[Round, ...]

    @property
    def middle(self) -> Round:
        """The round with the median parts/s at saturation."""
        ranked = sorted(self.rounds, key=lambda each: each.saturated.parts_per_second)
        return ranked[len(ranked) // 2]


def measured(
    bundle: Bundle,
    frames: Sequence[Pixels],
    runtime: Runtime,
    *,
    seconds: float,
    rounds: int,
) -> Speed:
    """Measure one runtime.

    Args:
        bundle: The bundle that is measured.
        frames: What the camera shows, again and again.
        runtime: Backend and precision.
        seconds: About how long each of a round's four parts takes.
        rounds: How often line and bare network take turns.

    Raises:
        BackendError: The backend cannot be used.
    """
    backend, precision = runtime.backend, runtime.precision
    setup = Setup(bundle=bundle.path, bundle_id=bundle.id, backend=backend, precision=precision)
    judged = judgement(bundle, runtime)
    own_mb = _resident_mb(os.getpid())
    with open_backend(bundle, backend=backend, precision=precision) as alone:
        difference = _score_difference(bundle, frames, backend=backend, precision=precision)
        began = perf_counter()
        with ChildInspector(setup) as child:
            ready_s = perf_counter() - began
            found = []
            bare = bare_network(alone, bundle.manifest, seconds=seconds)
            for _ in range(rounds):
                saturated = _line(child, frames, seconds=seconds, interval_s=0.0)
                before, bare = bare, bare_network(alone, bundle.manifest, seconds=seconds)
                interval_s = 1 / (saturated.parts_per_second * _PACED_SHARE)
                paced = _line(child, frames, seconds=seconds, interval_s=interval_s)
                found.append(_round(before, saturated, bare, paced))
            assert child.pid is not None
            return Speed(
                backend=alone.name,
                precision=precision,
                workers=child.workers,
                cores=os.cpu_count() or 1,
                frame=frames[0].shape,
                ready_s=ready_s,
                child_mb=_resident_mb(child.pid),
                agent_mb=own_mb,
                score_difference=difference,
                objections=None if judged is None else judged.objections,
                rounds=tuple(found),
            )


def compared(
    bundle: Bundle, frames: Sequence[Pixels], *, seconds: float, rounds: int
) -> tuple[tuple[Speed, ...], tuple[str, ...]]:
    """Every CPU backend with every precision of the bundle, and why some could not be measured.

    The arguments are those of `measured`.
    """
    found, missing = [], []
    specs = {name: BACKENDS.find(name).settings for name in BACKENDS.names()}
    runtimes = [
        Runtime(backend=name, precision=precision)
        for name, spec in specs.items()
        if spec.on_cpu
        for precision in spec.precisions
        if spec.graph(precision) in bundle.manifest.networks
    ]
    for runtime in runtimes:
        try:
            found.append(measured(bundle, frames, runtime, seconds=seconds, rounds=rounds))
        except BackendError as error:
            missing.append(f"{runtime.backend} {runtime.precision}: {error}")
    return tuple(found), tuple(missing)


def recommended(speeds: Sequence[Speed]) -> Speed | None:
    """The fastest that the bundle's parity gate had no objection to."""
    sound = [speed for speed in speeds if speed.objections == ()]
    return max(sound, key=lambda each: each.middle.saturated.parts_per_second, default=None)


def bare_network(backend: Backend, manifest: Manifest, *, seconds: float) -> BareNetwork:
    """Run the network alone for `seconds`, with as many threads as it serves."""
    side = manifest.method.network.side
    view = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    backend.run(view)  # the first run allocates
    began, cpu = perf_counter(), process_time()
    until = began + seconds

    def worker() -> int:
        passes = 0
        while perf_counter() < until:
            backend.run(view)
            passes += 1
        return passes

    with ThreadPoolExecutor(backend.workers) as pool:
        workers = [pool.submit(worker) for _ in range(backend.workers)]
        passes = sum(each.result() for each in workers)
    return BareNetwork(
        passes_per_second=passes / (perf_counter() - began),
        cpu_ms_per_pass=(process_time() - cpu) / passes * 1e3,
    )


class FramesCamera(PacedCamera):
    """A triggered camera that has its frames already, shown again and again for `seconds`."""

    silence_s = None

    def __init__(self, frames: Sequence[Pixels], *, seconds: float, interval_s: float) -> None:
        super().__init__(CameraContext(), interval_s=interval_s)
        self._frames = frames
        self._seconds = seconds
        self._until = 0.0

    def __enter__(self) -> Self:
        self._until = perf_counter() + self._seconds
        return super().__enter__()

    def read(self) -> Frame | None:
        self.pace.wait()
        if perf_counter() > self._until:
            return None
        return self.frame(self._frames[self.number % len(self._frames)])

    def renewed(self) -> "FramesCamera":
        return self


def _line(
    child: ChildInspector, frames: Sequence[Pixels], *, seconds: float, interval_s: float
) -> LineSpeed:
    times: dict[str, list[float]] = {}
    wholes: list[float] = []
    passes = 0

    def note(part: Part) -> None:
        nonlocal passes
        if part.inspection is None:
            return
        for stage, stage_s in part.inspection.stages.items():
            times.setdefault(stage, []).append(stage_s)
        wholes.append((part.ended.decided_ns - part.trigger.triggered_ns) / 1e9)
        passes += len(part.inspection.passes)

    cpu = _cpu_s(child.pid)
    with tempfile.TemporaryDirectory(prefix="atac-bench-") as folder:
        summary = run_station(
            Config(
                agent=AgentSettings(id="bench"),
                bundle=BundleSettings(path=Path(folder)),
                cameras=(ConveyorSettings(),),
                sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
                ledger=LedgerSettings(path=Path(folder) / "ledger.sqlite"),
            ),
            cameras=[FramesCamera(frames, seconds=seconds, interval_s=interval_s)],
            inspector=child,
            model=Model(threshold=sys.float_info.max).on(child),
            observers=(note,),
        )
    cpu = _cpu_s(child.pid) - cpu
    if not wholes:
        raise BackendError(f"no part was inspected within {seconds:g} s; allow more: --seconds")
    return LineSpeed(
        parts=len(wholes),
        parts_per_second=summary.parts_per_second,
        passes_per_part=passes / len(wholes),
        cpu_ms_per_part=cpu / len(wholes) * 1e3,
        jitter_ms=float(np.std(wholes) * 1e3),
        stages={
            stage: _percentiles(each)
            for stage, each in (times | {"end_to_end": wholes}).items()
            if any(each)  # a device does not time its stages
        },
    )


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    p50, p95, p99 = (float(each) * 1e3 for each in np.percentile(seconds, (50, 95, 99)))
    return Percentiles(p50_ms=p50, p95_ms=p95, p99_ms=p99)


def _round(
    before: BareNetwork, saturated: LineSpeed, after: BareNetwork, paced: LineSpeed
) -> Round:
    bare = BareNetwork(
        passes_per_second=(before.passes_per_second + after.passes_per_second) / 2,
        cpu_ms_per_pass=(before.cpu_ms_per_pass + after.cpu_ms_per_pass) / 2,
    )
    allowed = bare.passes_per_second / saturated.passes_per_part
    bound = min(allowed, (os.cpu_count() or 1) / (saturated.cpu_ms_per_part / 1e3))
    return Round(
        bare=bare,
        saturated=saturated,
        share_of_bare=saturated.parts_per_second / allowed,
        share_of_bound=saturated.parts_per_second / bound,
        paced=paced,
    )


def _score_difference(
    bundle: Bundle, frames: Sequence[Pixels], *, backend: BackendName, precision: Precision
) -> float:
    with (
        open_inspector(bundle, backend=backend, precision=precision) as one,
        open_inspector(bundle) as other,
    ):
        return max(abs(one.inspect(each).score - other.inspect(each).score) for each in frames)


def _cpu_s(child: int | None) -> float:
    """CPU seconds so far, of this process and its child."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    fields = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def _resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
