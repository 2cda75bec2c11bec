"""What a frame's two views cost, beside the same with Pillow's own resize, in turns.

    python -m benchmarks.views --result benchmarks/results/views.json

CPU milliseconds for view 1 and for the closer view of a box of 96 view pixels, as recipe `line`
makes them from a decoded frame; the least of `--frames` turns. `pillow` is the time of the two
resizes that give the same pixels, `Image.resize` with box and `reducing_gap`; CLAHE, which `views`
has, is not in it.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.machine import described
from engine.frame import Box, Pixels
from engine.view import view, zoomed
from train.recipes.line import Line

MEGAPIXELS = (0.3, 1.2, 5.0, 20.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()

    cv2.setNumThreads(1)
    rows = [
        {"megapixels": size, "mono": mono} | timed(frame(size, mono=mono), options.frames)
        for size in MEGAPIXELS
        for mono in (True, False)
    ]
    result = {"machine": described(), "frames": options.frames, "rows": rows}
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("| frame | views, ms | Pillow's resizes alone, ms |\n|---|---|---|")
    for row in rows:
        kind = "mono" if row["mono"] else "colour"
        print(f"| {row['megapixels']} MP {kind} | {row['views']} | {row['pillow']} |")


def frame(megapixels: float, *, mono: bool) -> Pixels:
    """Noise, 4:3; what a frame shows changes no time."""
    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    shape = (height, height * 4 // 3) if mono else (height, height * 4 // 3, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def timed(pixels: Pixels, frames: int) -> dict[str, float]:
    spec = Line().view
    whole = Box.around(pixels)
    first = view(pixels, whole, spec)
    box = Box(left=64, top=64, right=160, bottom=160)
    _, closer = zoomed(pixels, first, box, spec)

    def views() -> None:
        zoomed(pixels, view(pixels, whole, spec), box, spec)

    def pillow() -> None:
        for one in (whole, closer):
            Image.fromarray(pixels).resize(
                (spec.side, spec.side),
                Image.Resampling.BICUBIC,
                box=(one.left, one.top, one.right, one.bottom),
                reducing_gap=spec.reducing_gap,
            )

    contenders: dict[str, Callable[[], Any]] = {"views": views, "pillow": pillow}
    least = dict.fromkeys(contenders, math.inf)
    for _ in range(frames):
        for name, one in contenders.items():
            began = process_time()
            one()
            least[name] = min(least[name], process_time() - began)
    return {name: round(seconds * 1e3, 2) for name, seconds in least.items()}


if __name__ == "__main__":
    main()
