"""Small defects on frames of 5 megapixels: which sizes are found, in one piece and in tiles.

    python -m benchmarks.large_frames --weights resnet18_layer3.safetensors --out runs/large \
        --result benchmarks/results/large_frames.json

A frame is a tray of 4 × 4 generated parts, 2560 × 1920 pixels, each part with its own dust and
place. `nearest` learns from good trays alone, whose scores without themselves set the threshold.
Then come trays that nobody has seen, each as it is and with one spot of each size, 60 grey levels
darker or brighter than what it covers. All ways see the same frames, one after the other, so their
times compare. What lies in `--out` already is used again.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import cv2
import numpy as np

from agent.synthetic import flange
from benchmarks.machine import described, write_result
from calibration.outlook import training_outlook
from engine.backends.opening import open_inspector
from engine.bundle import MANIFEST, Bundle, open_bundle
from engine.frame import Box, Pixels
from train.backbones.resnet import ResNet
from train.datasets import find_source
from train.recipes.nearest import Nearest
from train.run import train_bundle
from train.spots import CONTRAST, with_spot
from train.tiles import Tiles
from train.weights import read_weights

_ACROSS: Final = 4
_SIZES: Final = (6, 8, 12, 16, 24, 32, 48, 60)
_WAYS: Final[dict[str, tuple[int, Tiles | None]]] = {
    "one view of 224": (224, None),
    "one view of 448": (448, None),
    "tiles, views of 224": (224, "auto"),
}
"""The side of the views, and how frames are parted."""


def main() -> None:
    """Train each way, show all of them the same frames, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--good", type=int, default=64, help="trays to learn from; 59 carry 5 %%")
    parser.add_argument("--shown", type=int, default=20, help="trays with each size of spots")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    for place, count in (("train/good", given.good), ("test/good", given.shown)):
        folder = given.out / "data" / place
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            name = str(folder / f"{number:03}.png")
            if Path(name).exists():
                continue
            written = cv2.cvtColor(tray(len(place), number), cv2.COLOR_RGB2BGR)
            cv2.imwrite(name, written, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    trained = {name: learnt(given, name) for name in _WAYS}
    found = {
        "machine": described(),
        "frame": [flange.WIDTH * _ACROSS, flange.HEIGHT * _ACROSS],
        "recipe": "nearest",
        "backbone": "resnet18",
        "seed": given.seed,
        "learnt": given.good,
        "shown": given.shown,
        "contrast": CONTRAST,
        "ways": shown(given, trained),
    }
    write_result(found, given.result)


def tray(seed: int, number: int) -> Pixels:
    """A frame with good parts, `number` of this seed."""
    first = number * _ACROSS**2
    parts = [flange.part(seed, first + each, 0.0).pixels for each in range(_ACROSS**2)]
    rows = [np.concatenate(parts[i : i + _ACROSS], axis=1) for i in range(0, len(parts), _ACROSS)]
    return np.concatenate(rows)


def learnt(given: argparse.Namespace, name: str) -> Bundle:
    """A bundle of the good trays."""
    side, tiles = _WAYS[name]
    out = given.out / name.replace(" ", "-").replace(",", "")
    if (out / MANIFEST).exists():
        return open_bundle(out)
    weights = read_weights(given.weights)
    backbone = ResNet(architecture="resnet18", stages=("layer2", "layer3"))
    settings = Nearest(hold_out=0, backbone=backbone).with_side(side)
    return train_bundle(
        find_source(given.out / "data", None, None),
        out,
        settings,
        weights=weights,
        tiles=tiles,
        defects=0,
        seed=given.seed,
    ).written.bundle


def shown(given: argparse.Namespace, trained: dict[str, Bundle]) -> dict[str, Any]:
    """What each way makes of trays that it has not seen, with and without spots."""
    thresholds, ways = {}, {}
    for name, bundle in trained.items():
        outlook, regions = training_outlook(bundle), bundle.manifest.method.regions
        assert outlook is not None
        thresholds[name] = outlook.threshold
        ways[name] = {
            "views": _WAYS[name][0],
            "tiles": 1 if regions is None else len(regions.regions),
            "promise": outlook.headline,
        }
    rng = np.random.default_rng(given.seed)
    above: dict[str, dict[int, list[bool]]] = {
        name: {size: [] for size in (0, *_SIZES)} for name in trained
    }
    times: dict[str, list[float]] = {name: [] for name in trained}
    with ExitStack() as stack:
        inspectors = {
            name: stack.enter_context(open_inspector(bundle)) for name, bundle in trained.items()
        }
        for name, inspector in inspectors.items():
            ways[name]["runtime"] = inspector.name
            inspector.warm_up()
        for number in range(given.shown):
            good = tray(len("test/good"), number)
            for size in (0, *_SIZES):
                pixels = with_spot(good, [Box.around(good)], size, rng) if size else good
                for name, inspector in inspectors.items():
                    began = perf_counter()
                    score = inspector.inspect(pixels).score
                    times[name].append(1e3 * (perf_counter() - began))
                    above[name][size].append(score > thresholds[name])
    for name, way in ways.items():
        way["good_rejected"] = sum(above[name][0])
        way["spots_found"] = {str(size): float(np.mean(above[name][size])) for size in _SIZES}
        way["ms"] = round(median(times[name]), 1)
    return ways


if __name__ == "__main__":
    main()
