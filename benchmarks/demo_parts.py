"""How many generated parts the demo's model judges rightly, at the threshold it is shipped with.

    make demo-bundle
    python -m benchmarks.demo_parts --result benchmarks/results/demo_parts.json

500 good parts and 500 defective ones, the six types in turn, of a seed that neither training nor
calibration has. Every defect is one that a person sees (`agent.synthetic.flange.visibility`).
Also where the box of pass 2 lies: how much of the defect is in it, and how much of the frame it is.
"""

import argparse
from collections import Counter
from pathlib import Path
from time import perf_counter

import numpy as np

from agent.demo import BUNDLE
from agent.synthetic.flange import DEFECTS, GOOD, GeneratedPart, made
from benchmarks.machine import described, write_result
from calibration.record import calibrated_runtime, read_calibration
from engine.backends.opening import open_inspector
from engine.bundle import open_bundle
from engine.frame import Inspection

SEED = 3
"""That of training is 1, of the calibration 2, and of the choice among settings 4."""
MOST_PIXELS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="calibrated")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--parts", type=int, default=500, help="good ones, and as many defective")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    write_result(
        {"machine": described(), "seed": options.seed}
        | judged(options.bundle, seed=options.seed, parts=options.parts),
        options.result,
    )


def judged(path: Path, *, seed: int, parts: int) -> dict[str, object]:
    """What the calibrated bundle at `path` says of `parts` good and as many defective parts."""
    bundle = open_bundle(path)
    calibrated = read_calibration(bundle)
    runtime = calibrated_runtime(bundle, calibrated)
    threshold = calibrated.calibration.threshold
    seen: list[tuple[GeneratedPart, Inspection]] = []
    seconds: list[float] = []
    with open_inspector(
        bundle,
        backend=runtime.backend,
        precision=runtime.precision,
        fallback=None,
        max_pixels=MOST_PIXELS,
    ) as inspector:
        for number in range(parts):
            for kind in (None, DEFECTS[number % len(DEFECTS)]):
                part = made(seed, number, kind)
                began = perf_counter()
                seen.append((part, inspector.inspect(part.pixels)))
                seconds.append(perf_counter() - began)
    good = [found for part, found in seen if part.defect is None]
    bad = [(part, found) for part, found in seen if part.defect is not None]
    missed = Counter(part.defect for part, found in bad if found.score <= threshold)
    looked = [(part, found) for part, found in bad if found.zoomed]
    return {
        "bundle": bundle.id,
        "threshold": threshold,
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
        "defect_in_box": quartiles([inside(part, found) for part, found in looked]),
        "box_of_frame": quartiles([area(part, found) for part, found in looked]),
        "ms": quartiles([1e3 * one for one in seconds]),
    }


def inside(part: GeneratedPart, found: Inspection) -> float:
    """The share of the defect that the box of pass 2 shows."""
    box = found.box
    shown = part.mask[box.top : box.bottom, box.left : box.right]
    return float((shown > 0).sum() / (part.mask > 0).sum())


def area(part: GeneratedPart, found: Inspection) -> float:
    """The share of the frame that the box of pass 2 shows."""
    return found.box.width * found.box.height / part.mask.size


def quartiles(values: list[float]) -> dict[str, float]:
    """The median, and what a quarter of the values is below and above."""
    low, median, high = np.quantile(values or [0.0], (0.25, 0.5, 0.75))
    return {"quarter": float(low), "median": float(median), "three_quarters": float(high)}


if __name__ == "__main__":
    main()
