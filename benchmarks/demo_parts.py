"""How many generated parts the demo's model judges rightly, at the threshold it is shipped with.

    make demo-bundle
    python -m benchmarks.demo_parts --result benchmarks/results/demo_parts.json

Of each seed 500 good parts and 500 defective ones, the six types in turn; then the first 600 parts
of the belt that `make demo` shows, a tenth of them defective. Neither training nor calibration has
any of them. Every defect is one that a person sees (`agent.synthetic.flange.visibility`).
Also where the box of pass 2 lies: how much of the defect is in it, and how much of the frame it is.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np

from agent.demo import BUNDLE, DEFECT_RATE
from agent.synthetic.flange import DEFECTS, GOOD, GeneratedPart, made, part
from benchmarks.machine import described, write_result
from calibration.record import calibrated_runtime, read_calibration
from engine.backends.opening import open_inspector
from engine.bundle import open_bundle
from engine.frame import Inspection
from engine.inspector import Inspector

BELT = 0
SEEDS = (3, 4, 5)
"""Training has 1, the calibration 2, the belt 0, and the choice among settings 11 and 12.

Settings of earlier models were chosen with 4 and 8."""
MOST_PIXELS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="calibrated")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--parts", type=int, default=500, help="good ones, and as many defective")
    parser.add_argument("--belt", type=int, default=600, help="parts of the demo's own belt")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    sets = {f"seed {seed}": drawn(seed, options.parts) for seed in options.seeds}
    if options.belt:
        sets["belt"] = (part(BELT, number, DEFECT_RATE) for number in range(options.belt))
    write_result({"machine": described()} | judged(options.bundle, sets), options.result)


def drawn(seed: int, parts: int) -> Iterator[GeneratedPart]:
    """As many good as defective ones of `seed`, the types of defects in turn."""
    for number in range(parts):
        yield made(seed, number, None)
        yield made(seed, number, DEFECTS[number % len(DEFECTS)])


def judged(path: Path, sets: dict[str, Iterator[GeneratedPart]]) -> dict[str, object]:
    """What the calibrated bundle at `path` says of each of `sets`."""
    bundle = open_bundle(path)
    calibrated = read_calibration(bundle)
    runtime = calibrated_runtime(bundle, calibrated)
    threshold = calibrated.calibration.threshold
    with open_inspector(
        bundle,
        backend=runtime.backend,
        precision=runtime.precision,
        fallback=None,
        max_pixels=MOST_PIXELS,
    ) as inspector:
        return {
            "bundle": bundle.id,
            "threshold": threshold,
            "sets": {name: counted(inspector, parts, threshold) for name, parts in sets.items()},
        }


def counted(
    inspector: Inspector, parts: Iterator[GeneratedPart], threshold: float
) -> dict[str, object]:
    """How many of `parts` are judged rightly, and what decides it."""
    seen: list[tuple[GeneratedPart, Inspection]] = []
    seconds: list[float] = []
    for one in parts:
        began = perf_counter()
        seen.append((one, inspector.inspect(one.pixels)))
        seconds.append(perf_counter() - began)
    good = [found for one, found in seen if one.defect is None]
    bad = [(one, found) for one, found in seen if one.defect is not None]
    missed = Counter(one.defect for one, found in bad if found.score <= threshold)
    looked = [(one, found) for one, found in bad if found.zoomed]
    return {
        "good": len(good),
        "rejected": sum(found.score > threshold for found in good),
        "defective": len(bad),
        "found": sum(found.score > threshold for _, found in bad),
        "missed": dict(missed),
        "highest_good": sorted((found.score for found in good), reverse=True)[:5],
        "lowest_defective": sorted(found.score for _, found in bad)[:5],
        "looked_closer": {
            GOOD: sum(found.zoomed for found in good),
            "defective": len(looked),
        },
        "defect_in_box": quartiles([inside(one, found) for one, found in looked]),
        "box_of_frame": quartiles([area(one, found) for one, found in looked]),
        "ms": quartiles([1e3 * one for one in seconds]),
    }


def inside(one: GeneratedPart, found: Inspection) -> float:
    """The share of the defect that the box of pass 2 shows."""
    box = found.box
    shown = one.mask[box.top : box.bottom, box.left : box.right]
    return float((shown > 0).sum() / (one.mask > 0).sum())


def area(one: GeneratedPart, found: Inspection) -> float:
    """The share of the frame that the box of pass 2 shows."""
    return found.box.width * found.box.height / one.mask.size


def quartiles(values: list[float]) -> dict[str, float]:
    """The median, and what a quarter of the values is below and above."""
    low, median, high = np.quantile(values or [0.0], (0.25, 0.5, 0.75))
    return {"quarter": float(low), "median": float(median), "three_quarters": float(high)}


if __name__ == "__main__":
    main()
