"""By how much a part that was moved by a known amount is missed by the search for its outline.

    python -m benchmarks.part_finding --data ../shared/data

Good parts of MVTec AD get as much room around them as they need, and are moved and turned by random
amounts. What is missed is told at the middle of the part, in degrees, and at the farthest corner of
a crop of 300 pixels. The result is written to benchmarks/results/part_finding.json.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.machine import described
from engine.frame import Pixels
from engine.image import read_image
from engine.outline import motion, outline
from engine.region_spec import Motion, OutlineSpec, moved

SIDE: Final = 512
ROOM: Final = 150
FRAME: Final = (SIDE + 2 * ROOM,) * 2
WITHIN: Final = (20, 20, FRAME[0] - 20, FRAME[1] - 20)
CONTRAST: Final = 40.0
MOST_PX: Final = 60.0
SETS: Final = {"mvtec_pill": 25.0, "mvtec_bottle": 0.0}
"""The sets, and by how many degrees their parts are turned at most."""
_CROP: Final = 300
_RESULT: Final = Path(__file__).parent / "results" / "part_finding.json"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds the sets' folders")
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--places", type=int, default=10, help="of each part")
    options = parser.parse_args()
    found = {
        name: measured(options.data / name, degrees, options.parts, options.places)
        for name, degrees in SETS.items()
    }
    text = json.dumps({"machine": described(), "seed": 0, "sets": found}, indent=2)
    print(text)
    _RESULT.write_text(text + "\n")


def measured(folder: Path, degrees: float, parts: int, places: int) -> dict[str, object]:
    """Median and largest error over `parts` at so many random places each."""
    rng = np.random.default_rng(0)
    errors: dict[str, list[float]] = {"middle_px": [], "degrees": [], "corner_px": [], "ms": []}
    for pixels in photographs(folder, parts):
        spec = spec_of(pixels, turns=degrees > 0)
        for _ in range(places):
            truth = somewhere(rng, degrees)
            frame = laid(pixels, truth)
            began = time.perf_counter()
            found = motion(frame, spec)
            errors["ms"].append((time.perf_counter() - began) * 1e3)
            difference = found - truth
            errors["middle_px"].append(float(np.hypot(*(difference @ np.array([*spec.at, 1.0])))))
            errors["degrees"].append(abs(angle_of(found) - angle_of(truth)))
            errors["corner_px"].append(missed(found, truth))
    return {
        "frames": len(errors["ms"]),
        **{
            name: {"median": float(np.median(each)), "largest": max(each)}
            for name, each in errors.items()
        },
    }


def photographs(folder: Path, count: int) -> Iterator[Pixels]:
    """Good parts, with background around them."""
    for path in sorted((folder / "train" / "good").iterdir())[:count]:
        yield photograph(path)


def photograph(path: Path) -> Pixels:
    """A part with background around it."""
    pixels = cv2.resize(read_image(path), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    edges = np.concatenate([pixels[:10].reshape(-1, 3), pixels[-10:].reshape(-1, 3)])
    colour = np.median(edges, axis=0).tolist()
    wider = cv2.copyMakeBorder(pixels, *(ROOM,) * 4, cv2.BORDER_CONSTANT, value=colour)
    return np.asarray(wider, np.uint8)


def somewhere(rng: np.random.Generator, degrees: float) -> Motion:
    """A random move, and a turn by so many degrees at most."""
    across, down = rng.uniform(-MOST_PX, MOST_PX, 2)
    turned = rng.uniform(-degrees, degrees) if degrees else 0.0
    return moved(across, down, turned, about=(FRAME[0] / 2, FRAME[1] / 2))


def laid(pixels: Pixels, truth: Motion) -> Pixels:
    """The frame when the part has moved so; places are measured from corners."""
    matrix = truth.copy()
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    shown = cv2.warpAffine(pixels, matrix, FRAME, borderValue=pixels[0, 0].tolist())
    return np.asarray(shown, np.uint8)


def spec_of(pixels: Pixels, *, turns: bool) -> OutlineSpec:
    """What a file of regions that were drawn on this frame says."""
    found = outline(pixels, WITHIN, CONTRAST)
    return OutlineSpec(
        within=WITHIN,
        at=found.at,
        angle=found.angle,
        size=found.size,
        contrast=CONTRAST,
        turns=turns,
    )


def missed(found: Motion, truth: Motion) -> float:
    """By how many pixels the farthest corner of a crop in the middle is missed."""
    x, y = FRAME[0] / 2, FRAME[1] / 2
    halves = (-_CROP / 2, _CROP / 2)
    corners: npt.NDArray[np.float64] = np.array(
        [(x + a, y + b, 1.0) for a in halves for b in halves]
    )
    return float(np.hypot(*((found - truth) @ corners.T)).max())


def angle_of(motion: Motion) -> float:
    """By how many degrees something has turned."""
    return math.degrees(math.atan2(motion[1, 0], motion[0, 0]))


if __name__ == "__main__":
    main()
