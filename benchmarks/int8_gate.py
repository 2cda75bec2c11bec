"""Does int8 decide as fp32 does? Boxes, ranking and verdicts on real images, by every CPU runtime.

    python -m benchmarks.int8_gate --data ../shared/data --bundles runs/real_line \
        --result benchmarks/results/int8_gate.json

`--bundles` holds what `benchmarks.real_line` trained. Each is copied and calibrated in fp32 on its
held-out good images, then exported to int8 as `agent export` does it. `gate` is what the export's
own gate says, on images that training never saw. The rest is judged on the test's images, which
neither training nor gate has seen: fp32 by ONNX Runtime against int8 by ONNX Runtime and, where it
is installed, by OpenVINO.

A threshold belongs to one precision, so each runtime's verdicts are by its own, set on the same
held-out images. A verdict that differs is `outside_band` where the fp32 score is farther from the
threshold than calibration is sure of it (`calibration.threshold.band`). `--limit N` takes every
so many of the test's images that N are left, for a quick look.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import described
from benchmarks.real_line import CONFIDENCE, SETS
from calibration.threshold import band, choose_threshold
from engine.backends.base import BackendName
from engine.backends.opening import open_backend
from engine.bundle import Bundle, Precision, open_bundle
from engine.frame import Inspection
from engine.methods import open_method
from engine.parity import LEAST_BOX_IOU, MOST_AUROC_LOSS, box_iou
from train.datasets import (
    SPLIT,
    SPLIT_JSON,
    Listed,
    Source,
    find_source,
    read_listed,
    unseen_images,
)
from train.evaluate import auroc
from train.export.gate import add_precision

MAX_FALSE_REJECT = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--bundles", type=Path, default=Path("runs/real_line"))
    parser.add_argument("--sets", nargs="+", default=[one.name for one in SETS])
    parser.add_argument("--limit", type=int, help="test images a set")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--show", action="store_true", help="only print the table of --result")
    options = parser.parse_args()

    if options.show:
        print(table(json.loads(options.result.read_text(encoding="utf-8"))))
        return
    result: dict[str, Any] = {
        "machine": described(),
        "asked": {
            "median_box_iou": LEAST_BOX_IOU,
            "auroc_loss": MOST_AUROC_LOSS,
            "outside_band": 0,
        },
        "sets": {},
    }
    for name in options.sets:
        source = find_source(options.data / name, None, None)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "bundle"
            shutil.copytree(options.bundles / name / "bundle", copy)
            result["sets"][name] = measured(open_bundle(copy), source, options.limit)
        if options.result:
            options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def measured(bundle: Bundle, source: Source, limit: int | None) -> dict[str, Any]:
    """One set: the gate's own answer, then the test's."""
    split = SPLIT_JSON.validate_json(bundle.read(SPLIT))
    held_out = split.held_out_good
    [expected] = inspections(bundle, [("onnxruntime", "fp32")], source, held_out)
    scores = [one.score for one in expected]
    promise = {"max_false_reject": MAX_FALSE_REJECT, "confidence": CONFIDENCE}
    threshold, unsure = choose_threshold(scores, **promise).value, band(scores, **promise)
    bundle, judged = add_precision(
        bundle, "int8", source, threshold=threshold, band=unsure, accept_flips=True
    )
    gate = judged["onnxruntime cpu int8"]
    runtimes: list[tuple[BackendName, Precision]] = [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    ]
    if find_spec("openvino") is not None:
        runtimes.append(("openvino", "int8"))
    thresholds = [
        choose_threshold([one.score for one in found], **promise).value
        for found in inspections(bundle, runtimes, source, held_out)
    ]
    items = unseen_images(source, bundle)
    items = items[:: -(-len(items) // limit)] if limit else items
    fp32, *others = inspections(bundle, runtimes, source, items)
    faulty = np.array([item.defective for item in items])
    return {
        "gate": asdict(gate) | {"objections": gate.objections},
        "held_out": len(held_out),
        "good": int((~faulty).sum()),
        "defective": int(faulty.sum()),
        "band": unsure,
        "fp32": counted(fp32, faulty, thresholds[0]),
        "int8": {
            name: counted(found, faulty, own)
            | compared(fp32, found, faulty, thresholds=(thresholds[0], own), unsure=unsure)
            for (name, _), found, own in zip(runtimes[1:], others, thresholds[1:], strict=True)
        },
    }


def inspections(
    bundle: Bundle,
    runtimes: Sequence[tuple[BackendName, Precision]],
    source: Source,
    items: Sequence[Listed],
) -> list[list[Inspection]]:
    """What each runtime finds in each image."""
    with ExitStack() as stack:
        inspectors = [
            open_method(
                bundle.manifest.method,
                stack.enter_context(open_backend(bundle, backend=name, precision=precision)),
            )
            for name, precision in runtimes
        ]
        found: list[list[Inspection]] = [[] for _ in runtimes]
        for item in items:
            pixels = read_listed(source, item)
            for inspector, of_one in zip(inspectors, found, strict=True):
                of_one.append(inspector.inspect(pixels))
    return found


def counted(found: Sequence[Inspection], faulty: Any, threshold: float) -> dict[str, Any]:
    scores = np.array([one.score for one in found])
    return {
        "threshold": threshold,
        "auroc": auroc(scores, faulty),
        "false_rejects": int((scores[~faulty] > threshold).sum()),
        "detected": int((scores[faulty] > threshold).sum()),
        "zoomed": sum(one.zoomed for one in found),
    }


def compared(
    fp32: Sequence[Inspection],
    found: Sequence[Inspection],
    faulty: Any,
    *,
    thresholds: tuple[float, float],
    unsure: tuple[float, float],
) -> dict[str, Any]:
    before, after = (np.array([one.score for one in each]) for each in (fp32, found))
    overlaps = [box_iou(a.box, b.box) for a, b in zip(fp32, found, strict=True)]
    flips = (before > thresholds[0]) != (after > thresholds[1])
    outside = flips & ((before <= unsure[0]) | (before >= unsure[1]))
    loss = auroc(before, faulty) - auroc(after, faulty)
    median = float(np.median(overlaps))
    return {
        "median_box_iou": median,
        "boxes_below": float(np.mean(np.array(overlaps) < LEAST_BOX_IOU)),
        "auroc_loss": loss,
        "score_difference_p50": float(np.median(abs(after - before))),
        "score_difference_max": float(abs(after - before).max()),
        "flips": int(flips.sum()),
        "outside_band": int(outside.sum()),
        "kept": bool(median >= LEAST_BOX_IOU and loss <= MOST_AUROC_LOSS and not outside.any()),
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    columns = (
        *("set", "runtime", "AUROC fp32", "int8", "box IoU, median", "verdicts that differ"),
        *("outside the band", "false rejects fp32, int8", "defects found fp32, int8", "kept"),
    )
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, one in result["sets"].items():
        fp32 = one["fp32"]
        rows += [
            f"| {name} | {runtime} | {fp32['auroc']:.4f} | {int8['auroc']:.4f} | "
            f"{int8['median_box_iou']:.2f} | {int8['flips']} of {one['good'] + one['defective']} | "
            f"{int8['outside_band']} | {fp32['false_rejects']}, {int8['false_rejects']} of "
            f"{one['good']} | {fp32['detected']}, {int8['detected']} of {one['defective']} | "
            f"{'yes' if int8['kept'] else 'no'} |"
            for runtime, int8 in one["int8"].items()
        ]
    gates = [
        f"The export's own gate on {name}: "
        + ("; ".join(one["gate"]["objections"]) or "no objection")
        + "."
        for name, one in result["sets"].items()
    ]
    return "\n".join([*rows, "", *gates])


if __name__ == "__main__":
    main()
