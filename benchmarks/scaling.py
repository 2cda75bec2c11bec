"""How the line scales: with the frame's size, with cameras, with the ledger's rows, with hours.

    python -m benchmarks.scaling --full --result benchmarks/results/scaling.json
    python -m benchmarks.scaling --only hour --hour --result benchmarks/results/scaling.json
    python -m benchmarks.scaling --show --result benchmarks/results/scaling.json

Each part is one run in which everything that is compared takes turns:

- `frames`: the line at saturation over frames of 0.3 to 20 megapixels, mono and colour, between two
  measurements of the bare network. Frames lie in memory, as a camera gives them.
- `cameras`: one, two, four and eight cameras of 1.2 megapixels, each run between two of a single
  camera, all at saturation. Fairness is counted: the most parts of a camera over the fewest.
- `ledger`: a ledger with a million parts beside an empty one, both open at once: a thousand parts
  recorded and committed, one part committed, and what the sender, a replay and a label ask.
- `hour`: `agent run` as a user starts it, with two conveyors, deadlines and a real broker, at half
  of the rate that it reached just before, or at `--pace`; its memory is watched from outside.

Without `--full` and `--hour` the runs are short and show no more than that it works. `--only` runs
some of the parts and keeps the others of an earlier result.
"""

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from agent.bench import FramesCamera, bare_network
from agent.cameras.conveyor import ConveyorSettings
from agent.demo import BUNDLE
from agent.inference.child import ChildInspector, Setup
from agent.part import Part, State, Trigger, Verdict
from agent.process import prepare_process
from agent.record.ledger import Ledger
from agent.record.outbox import Mark
from agent.record.retention import Limits
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.memory import MemorySink
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from agent.synthetic.flange import HEIGHT, WIDTH, part
from benchmarks.broker import mosquitto
from benchmarks.machine import cpu_s, described, resident_mb
from engine.backends.opening import open_backend
from engine.bundle import open_bundle
from engine.frame import Box, Frame, Inspection, Pass, Pixels

MEGAPIXELS = (0.3, 1.2, 5.0, 20.0)
CAMERAS = (2, 4, 8)
CAMERA_MEGAPIXELS = 1.2
PARTS_OF_A_COMMIT = 1000
SPAN = 200
"""Parts of a replay's span: twenty of them have alarms."""
ALARMS = 10
"""One part of so many is NG and has an alarm."""
SAMPLE_S = 2.0
SINK = "bench"
AGENT = Path(sys.executable).parent / "agent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="default: the demo's")
    parser.add_argument("--backend", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"))
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--full", action="store_true", help="as long as the figures need")
    parser.add_argument("--hour", action="store_true", help="`hour` takes one")
    parser.add_argument("--pace", type=float, help="of `hour`: each camera's parts per minute")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--show", action="store_true", help="only print the tables of --result")
    options = parser.parse_args()

    result: dict[str, Any] = {}
    if options.result and options.result.exists():
        result = json.loads(options.result.read_text(encoding="utf-8"))
    if not options.show:
        logging.disable(logging.WARNING)  # that there is no broker, again and again
        prepare_process()
        for name in options.only:
            about = {"machine": described(), "command": f"--only {name}", "full": options.full}
            result[name] = about | PARTS[name](options)
            if options.result:
                options.result.parent.mkdir(parents=True, exist_ok=True)
                options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n\n".join(SHOWN[name](result[name]) for name in PARTS if name in result))


# ---- frames and cameras: the line in this process, its network in a child


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One run of the line at saturation; `inspected` has each camera's parts."""

    inspected: tuple[int, ...]
    parts_per_second: float
    passes_per_part: float
    cpu_ms: float
    view_ms: float
    end_to_end_ms: float


def saturated(child: ChildInspector, frames: Sequence[Sequence[Pixels]], seconds: float) -> Ran:
    """The line over one camera for each of `frames`, none of whose parts raises an alarm."""
    seen: list[tuple[float, float, bool]] = []

    def note(part: Part) -> None:
        assert part.inspection is not None, part.ended.reason
        passes = part.inspection.passes
        whole = (part.ended.decided_ns - part.trigger.triggered_ns) / 1e6
        views_s = sum(each.view_s for each in passes)
        seen.append((views_s * 1e3, whole, len(passes) > 1))

    cpu = cpu_s("self", child.pid)
    with tempfile.TemporaryDirectory(prefix="atac-scaling-") as folder:
        summary = run_station(
            Config(
                agent=AgentSettings(id="bench"),
                bundle=BundleSettings(path=Path(folder)),
                cameras=tuple(ConveyorSettings(name=f"{n}") for n in range(len(frames))),
                sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
                ledger=LedgerSettings(path=Path(folder) / "ledger.sqlite"),
            ),
            cameras=[FramesCamera(each, seconds=seconds, interval_s=0.0) for each in frames],
            inspector=child,
            model=Model(threshold=sys.float_info.max).on(child),
            observers=(note,),
        )
    cpu = cpu_s("self", child.pid) - cpu
    views, wholes, zoomed = np.array(seen).T
    return Ran(
        inspected=tuple(counts[State.OK] for counts in summary.cameras.values()),
        parts_per_second=summary.parts_per_second,
        passes_per_part=1 + float(zoomed.mean()),
        cpu_ms=cpu / len(seen) * 1e3,
        view_ms=float(np.median(views)),
        end_to_end_ms=float(np.median(wholes)),
    )


def frames_part(options: argparse.Namespace) -> dict[str, Any]:
    rounds, seconds = (5, 5.0) if options.full else (1, 1.0)
    kinds = [(size, colour) for size in MEGAPIXELS for colour in ("mono", "colour")]
    bundle = open_bundle(options.bundle)
    bare: list[float] = []
    rows: dict[tuple[float, str], list[Ran]] = {kind: [] for kind in kinds}
    with (
        open_backend(bundle, backend=options.backend, precision=options.precision) as alone,
        child_of(options) as child,
    ):
        for _ in range(rounds):
            bare.append(bare_network(alone, bundle.manifest, seconds=seconds).passes_per_second)
            for size, colour in kinds:
                frames = drawn(size, is_mono=colour == "mono")
                rows[size, colour].append(saturated(child, [frames], seconds))
        bare.append(bare_network(alone, bundle.manifest, seconds=seconds).passes_per_second)
        inspected_by = {"backend": child.backend, "workers": child.workers}
    around = [(before + after) / 2 for before, after in pairwise(bare)]
    least = rows[kinds[0]]
    cores = len(os.sched_getaffinity(0))
    return inspected_by | {
        "bundle": options.bundle.name,
        "rounds": rounds,
        "seconds": seconds,
        "bare_passes_per_second": statistics.median(bare),
        "sizes": [
            {
                "megapixels": size,
                "frame": colour,
                "parts_per_second": middle(each.parts_per_second for each in found),
                "of_bare": middle(
                    each.parts_per_second * each.passes_per_part / passes
                    for each, passes in zip(found, around, strict=True)
                ),
                "of_bound": middle(
                    each.parts_per_second
                    / min(passes / each.passes_per_part, 1e3 * cores / each.cpu_ms)
                    for each, passes in zip(found, around, strict=True)
                ),
                "to_smallest": middle(
                    each.parts_per_second / other.parts_per_second
                    for each, other in zip(found, least, strict=True)
                ),
                "passes_per_part": middle(each.passes_per_part for each in found),
                "cpu_ms": middle(each.cpu_ms for each in found),
                "view_ms": middle(each.view_ms for each in found),
            }
            for (size, colour), found in rows.items()
        ],
    }


def cameras_part(options: argparse.Namespace) -> dict[str, Any]:
    rounds, seconds = (5, 10.0) if options.full else (1, 2.0)
    frames = drawn(CAMERA_MEGAPIXELS, is_mono=True)
    single: list[Ran] = []
    ratios: dict[int, list[float]] = {count: [] for count in CAMERAS}
    rows: dict[int, list[Ran]] = {count: [] for count in CAMERAS}
    with child_of(options) as child:
        for _ in range(rounds):
            single.append(saturated(child, [frames], seconds))
            for count in CAMERAS:
                rows[count].append(saturated(child, [frames] * count, seconds))
                single.append(saturated(child, [frames], seconds))
                around = (single[-2].parts_per_second + single[-1].parts_per_second) / 2
                ratios[count].append(rows[count][-1].parts_per_second / around)
        inspected_by = {"backend": child.backend, "workers": child.workers}
    return inspected_by | {
        "bundle": options.bundle.name,
        "megapixels": CAMERA_MEGAPIXELS,
        "rounds": rounds,
        "seconds": seconds,
        "single_parts_per_second": middle(one.parts_per_second for one in single),
        "single_cpu_ms": middle(one.cpu_ms for one in single),
        "cameras": [
            {
                "cameras": count,
                "parts_per_second": middle(one.parts_per_second for one in found),
                "to_single": middle(ratios[count]),
                "to_single_all": [round(ratio, 4) for ratio in ratios[count]],
                "most_to_fewest": max(max(one.inspected) / min(one.inspected) for one in found),
                "cpu_ms": middle(one.cpu_ms for one in found),
                "end_to_end_ms": middle(one.end_to_end_ms for one in found),
            }
            for count, found in rows.items()
        ],
    }


def child_of(options: argparse.Namespace) -> ChildInspector:
    return ChildInspector(
        Setup(
            bundle=options.bundle,
            bundle_id=open_bundle(options.bundle).id,
            backend=options.backend,
            precision=options.precision,
        )
    )


def drawn(megapixels: float, *, is_mono: bool) -> list[Pixels]:
    """Four generated parts in frames of this size."""
    scale = (megapixels * 1e6 / (WIDTH * HEIGHT)) ** 0.5
    size = round(WIDTH * scale), round(HEIGHT * scale)
    frames = []
    for number in range(4):
        pixels = part(0, number, 0.1).pixels
        if is_mono:
            pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        frames.append(np.asarray(cv2.resize(pixels, size), dtype=np.uint8))
    return frames


def middle(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


# ---- ledger


def ledger_part(options: argparse.Namespace) -> dict[str, Any]:
    rows, rounds, singles = (1_000_000, 15, 50) if options.full else (50_000, 3, 10)
    with tempfile.TemporaryDirectory(prefix="atac-scaling-") as name, ExitStack() as stack:
        paths = {kind: Path(name) / f"{kind}.sqlite" for kind in ("empty", "large")}
        began = perf_counter()
        with opened(paths["large"]) as ledger:
            fill(ledger, rows)
        filled_s = perf_counter() - began
        size_mb = paths["large"].stat().st_size / 1e6
        opened_s, ledgers = {}, {}
        for kind, path in paths.items():
            began = perf_counter()
            ledgers[kind] = stack.enter_context(opened(path))
            opened_s[kind] = perf_counter() - began
        times: dict[str, dict[str, list[float]]] = {}
        for _ in range(rounds):
            # Who is first may find the disk idle: by lot.
            for kind in random.sample(list(ledgers), len(ledgers)):
                for work, found_ms in worked(ledgers[kind], singles).items():
                    times.setdefault(work, {}).setdefault(kind, []).extend(found_ms)
        return {
            "rows": rows,
            "rounds": rounds,
            "size_mb": round(size_mb, 1),
            "filled_s": round(filled_s, 1),
            "opened_s": {kind: round(seconds, 3) for kind, seconds in opened_s.items()},
            "work": [
                {
                    "what": work,
                    **{f"{kind}_ms": middle(each) for kind, each in found.items()},
                    "ratio": round(
                        statistics.median(found["large"]) / statistics.median(found["empty"]), 4
                    ),
                }
                for work, found in times.items()
            ],
        }


def opened(path: Path) -> Ledger:
    """A ledger with one sink, which wants an alarm of each part that did not end OK."""
    limits = Limits(keep_ns=LedgerSettings().keep_ns, max_bytes=LedgerSettings().max_bytes)
    return Ledger(path, agent_id="bench", sinks=[MemorySink(SINK)], limits=limits)


def fill(ledger: Ledger, rows: int) -> None:
    """Parts of a day that is over: every tenth has an alarm, which the broker has."""
    for number in range(rows):
        settle(ledger, is_alarm=number % ALARMS == 0)
        if number % 20_000 == 19_999:
            assert ledger.flush(600)
            deliver(ledger)
    assert ledger.flush(600)
    deliver(ledger)


def deliver(ledger: Ledger) -> list[int]:
    """Mark all that waits as delivered, a hundred at a time, as the sender does."""
    ids: list[int] = []
    while found := ledger.waiting_for(SINK, after=ids[-1] if ids else 0, limit=100):
        ids += [one.id for one, _ in found]
        ledger.settle([Mark(id=one.id, time_ns=time.time_ns()) for one, _ in found])
    assert ledger.flush(600)
    return ids


def settle(ledger: Ledger, *, is_alarm: bool) -> None:
    """One part, from its trigger to its verdict and alarm."""
    trigger = Trigger(
        sequence=ledger.next_sequence("main"), camera="main", triggered_ns=time.time_ns()
    )
    part = Part(trigger=trigger, received=0.0, part_id="part-000000")
    ledger.expect(part)
    part.frame, part.inspection = FRAME, FOUND
    part.verdict = Verdict(
        state=State.NG if is_alarm else State.OK, decided_ns=time.time_ns(), threshold=1.0
    )
    ledger.record(part)


def worked(ledger: Ledger, singles: int) -> dict[str, list[float]]:
    """Milliseconds of everything that a running agent asks of its ledger."""

    def a_group() -> None:
        for number in range(PARTS_OF_A_COMMIT):
            settle(ledger, is_alarm=number % ALARMS == 0)
        assert ledger.flush()

    def one_part() -> None:
        settle(ledger, is_alarm=True)
        assert ledger.flush()

    found = {f"{PARTS_OF_A_COMMIT} parts, committed": [timed(a_group)]}
    # All with a full span behind them, for the same work in both.
    some = [random.randrange(1, ledger.total() - SPAN) for _ in range(singles)]
    found["all of their alarms sent and marked"] = [timed(lambda: deliver(ledger))]
    found["one part with an alarm, committed"] = [timed(one_part) for _ in range(singles)]
    deliver(ledger)
    found["what the sender asks: what waits?"] = [
        timed(lambda: ledger.waiting_for(SINK, after=0, limit=100)) for _ in range(singles)
    ]
    found["what a replay asks: twenty parts"] = [
        timed(partial(ledger.requeue, SINK, ledger.epoch, (first, first + SPAN), parts=20))
        for first in some
    ]
    deliver(ledger)
    found["a label on any part"] = [
        timed(partial(ledger.label, ledger.epoch, sequence, "good")) for sequence in some
    ]
    return found


def timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return (perf_counter() - began) * 1e3


FRAME = Frame(pixels=np.zeros((4, 4), np.uint8), number=1, captured_ns=1)
FOUND = Inspection(
    score=2.0,
    deviation=1.0,
    passes=(Pass(box=Box.whole(4, 4), score=2.0, view_s=0.001, network_s=0.01),) * 2,
    attention=np.zeros((2, 2), np.float32),
    score_map=np.zeros((2, 2), np.float32),
    attention_s=0.001,
)


# ---- an hour: `agent run` as a user starts it


def hour_part(options: argparse.Namespace) -> dict[str, Any]:
    seconds = 3600.0 if options.hour else 40.0
    with tempfile.TemporaryDirectory(prefix="atac-scaling-") as name:
        folder = Path(name)
        with mosquitto(folder) as port:
            parts = 500 if options.hour else 30
            fast, _ = agent_run(folder, port, options, per_minute=None, parts=parts)
            # Half of what it got through, by two cameras.
            half = round(60 * fast["parts_per_second"] / 2 / 2, 1)
            per_minute = options.pace or half
            parts = round(2 * per_minute * seconds / 60)
            summary, watched = agent_run(folder, port, options, per_minute=per_minute, parts=parts)
    counts = summary["counts"]
    accounted = [sum(camera.values()) for camera in summary["cameras"].values()]
    return {
        "bundle": options.bundle.name,
        "seconds": round(summary["seconds"], 1),
        "saturated_parts_per_second": round(fast["parts_per_second"], 2),
        "parts_per_minute": 2 * per_minute,
        "deadline_ms": round(60_000 / per_minute, 1),
        "triggers": summary["triggers"],
        "accounted": sum(accounted),
        "most_to_fewest": round(max(accounted) / min(accounted), 4),
        "late": counts["TIMEOUT"],
        "failed": counts["ERROR"] + counts["NO_FRAME"] + counts["DROPPED"],
        "alarms": summary["alarms"],
        "undelivered": summary["undelivered"],
        "end_to_end": summary["latencies"]["end_to_end"],
        "memory": {process: grown(samples) for process, samples in watched.items()},
    }


def agent_run(
    folder: Path, port: int, options: argparse.Namespace, *, per_minute: float | None, parts: int
) -> tuple[dict[str, Any], dict[str, list[tuple[float, float]]]]:
    """Run it for so many parts; its summary, and the memory of both processes by the second."""
    paced = {} if per_minute is None else {"parts_per_minute": per_minute}
    config = folder / "agent.yaml"
    settings = {
        "agent": {"id": "bench"},
        "bundle": {
            "path": str(options.bundle.resolve()),
            "backend": options.backend,
            "precision": options.precision,
        },
        "cameras": [
            {"name": f"conveyor {seed}", "type": "conveyor", "seed": seed, **paced, "line": paced}
            for seed in range(2)
        ],
        "mqtt": {"host": "127.0.0.1", "port": port, "drain_s": 30},
    }
    config.write_text(json.dumps(settings), encoding="utf-8")
    watched: dict[str, list[tuple[float, float]]] = {"agent": [], "child": []}
    command = [AGENT, "run", "--config", config, "--parts", str(parts), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        began = perf_counter()
        while process.poll() is None:
            for name, pid in (("agent", process.pid), ("child", child_pid(process.pid))):
                with suppress(OSError, IndexError):  # it ends just now
                    watched[name].append((perf_counter() - began, resident_mb(pid)))
            with suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_S)
        assert process.stdout is not None
        out = process.stdout.read()
    if process.returncode:
        sys.exit(f"agent run ended with {process.returncode}")
    return json.loads(out), watched


def child_pid(pid: int) -> str:
    """Its child's, or nobody's."""
    found = ""
    with suppress(OSError):  # threads come and go
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += (task / "children").read_text(encoding="ascii")
    return (found.split() or ["none"])[0]


def grown(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """MB at the end, and MB an hour by a straight line through all but the first sixth."""
    settled = np.array(samples[len(samples) // 6 :])
    slope = np.polyfit(settled[:, 0], settled[:, 1], 1)[0] * 3600
    return {"mb": round(samples[-1][1], 1), "mb_per_hour": round(float(slope), 3)}


# ---- tables


def frames_table(found: dict[str, Any]) -> str:
    lines = [
        "| frame | parts/s | of bare | of bound | to the smallest | CPU, ms a part | views, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['megapixels']:g} MP {row['frame']} | {row['parts_per_second']:.1f} "
        f"| {row['of_bare']:.3f} | {row['of_bound']:.3f} | {row['to_smallest']:.3f} "
        f"| {row['cpu_ms']:.1f} | {row['view_ms']:.2f} |"
        for row in found["sizes"]
    ]
    return "\n".join(lines)


def cameras_table(found: dict[str, Any]) -> str:
    lines = [
        "| cameras | parts/s | to one | most / fewest | CPU, ms a part | frame to verdict, ms |",
        "|---|---|---|---|---|---|",
        f"| 1 | {found['single_parts_per_second']:.1f} | 1 | 1 | {found['single_cpu_ms']:.1f} | |",
    ]
    lines += [
        f"| {row['cameras']} | {row['parts_per_second']:.1f} | {row['to_single']:.3f} "
        f"| {row['most_to_fewest']:.3f} | {row['cpu_ms']:.1f} | {row['end_to_end_ms']:.1f} |"
        for row in found["cameras"]
    ]
    return "\n".join(lines)


def ledger_table(found: dict[str, Any]) -> str:
    lines = [
        f"| work | empty, ms | {found['rows']} parts, ms | ratio |",
        "|---|---|---|---|",
    ]
    opened = found["opened_s"]
    lines += [
        f"| {row['what']} | {row['empty_ms']:.3f} | {row['large_ms']:.3f} | {row['ratio']:.3f} |"
        for row in found["work"]
    ]
    lines.append(f"| opened, once | {opened['empty'] * 1e3:.0f} | {opened['large'] * 1e3:.0f} | |")
    return "\n".join(lines)


def hour_table(found: dict[str, Any]) -> str:
    lines = ["| at line pace | |", "|---|---|"]
    memory = ", ".join(
        f"{name} {each['mb']:.0f} MB, {each['mb_per_hour']:+.2f} MB/h"
        for name, each in found["memory"].items()
    )
    latency = found["end_to_end"]
    figures = {
        "time": f"{found['seconds'] / 60:.1f} min",
        "pace": f"{found['parts_per_minute']:.1f} parts/min of two cameras",
        "parts, accounted for": f"{found['triggers']}, {found['accounted']}",
        "late, failed": f"{found['late']}, {found['failed']}",
        "deadline": f"{found['deadline_ms']:.0f} ms",
        "frame to verdict": f"p50 {latency['p50_ms']:.1f} ms, p99 {latency['p99_ms']:.1f} ms",
        "alarms, undelivered messages": f"{found['alarms']}, {found['undelivered']}",
        "memory": memory,
    }
    lines += [f"| {name} | {figure} |" for name, figure in figures.items()]
    return "\n".join(lines)


PARTS = {
    "frames": frames_part,
    "cameras": cameras_part,
    "ledger": ledger_part,
    "hour": hour_part,
}
SHOWN = {
    "frames": frames_table,
    "cameras": cameras_table,
    "ledger": ledger_table,
    "hour": hour_table,
}

if __name__ == "__main__":
    main()
