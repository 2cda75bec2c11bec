"""Real parts that lie anywhere: trained, calibrated and run by their own outline, and without it.

    python -m benchmarks.moved_parts --data ../shared/data --weights resnet18_layer3.safetensors \
        --out runs/moved --result benchmarks/results/moved_parts.json

mvtec_pill is parted at random by the seed. Each photograph gets room around it, and is moved by up
to 60 px and turned by up to 25°. Then the commands of a user: `agent train --regions`, `agent
calibrate`, `agent run` on a folder of parts that nobody has seen. Three times: the parts as they
were photographed, moved without `outline`, and moved with it; the crop is the same. What the ledger
says of each part is compared with its folder and, where the outline is looked for, the box of its
region with where the part was laid.
"""

import argparse
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from benchmarks.machine import described, write_result
from benchmarks.part_finding import CONTRAST, FRAME, WITHIN, laid, photograph, somewhere
from engine.frame import Pixels
from engine.region_spec import Motion
from train.evaluate import auroc

_AGENT: Final = [sys.executable, "-c", "from agent.cli import main; main()"]
_LEARNT, _CALIBRATE, _SHOWN = 100, 60, 60
_CROP: Final = (206, 256, 606, 556)
_DEGREES: Final = 25.0
_WAYS: Final = {
    "as photographed": (False, False),
    "moved, without outline": (True, False),
    "moved, with outline": (True, True),
}
"""Whether parts are moved, and whether their outline is looked for."""


def main() -> None:
    """Go each way once, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds mvtec_pill")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--parts", type=int, default=_SHOWN, help="of each label, to be shown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    ways = {}
    for name, (is_moved, has_outline) in _WAYS.items():
        folder = given.out / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        ways[name] = gone(given, folder, is_moved=is_moved, has_outline=has_outline)
    found = {
        "machine": described(),
        "set": "mvtec_pill",
        "recipe": "nearest",
        "backbone": given.backbone,
        "seed": given.seed,
        "learnt": _LEARNT,
        "calibrated": _CALIBRATE,
        "ways": ways,
    }
    write_result(found, given.result)


def gone(
    given: argparse.Namespace, folder: Path, *, is_moved: bool, has_outline: bool
) -> dict[str, Any]:
    """Lay the parts, train, calibrate and run; what came of it."""
    truths = spread(given, folder, is_moved=is_moved)
    outline = f"outline: {{within: {list(WITHIN)}, drawn_on: drawn_on.png, contrast: {CONTRAST}}}\n"
    (folder / "regions.yaml").write_text(
        f"frame: {list(FRAME)}\nregions: [{{name: pill, crop: {list(_CROP)}}}]\n"
        + (outline if has_outline else "")
    )
    bundle = folder / "bundle"
    run("train", "--good", folder / "learn", "--recipe", "nearest", "--backbone", given.backbone,
        "--backbone-weights", given.weights, "--regions", folder / "regions.yaml",
        "--seed", given.seed, "--out", bundle)  # fmt: skip
    run("calibrate", "--bundle", bundle, "--good", folder / "calibrate")
    (folder / "agent.yaml").write_text(
        "agent: {id: moved}\nbundle: {path: bundle}\ncamera: {type: folder, path: shown}\n"
        "mqtt: {host: 127.0.0.1, port: 1, drain_s: 0}\nevidence: {thumbnails: false}\n"
    )
    run("run", "--config", folder / "agent.yaml")
    return judged(folder / "ledger.sqlite", truths if has_outline else {})


def spread(given: argparse.Namespace, folder: Path, *, is_moved: bool) -> dict[str, Motion]:
    """Write the pictures; how each part was moved, by its path below `shown`."""
    source = given.data / "mvtec_pill"
    rng = np.random.default_rng(given.seed)
    good = sorted((source / "train" / "good").iterdir()) + sorted(
        (source / "test" / "good").iterdir()
    )
    defective = sorted(
        path
        for kind in (source / "test").iterdir()
        if kind.name != "good"
        for path in kind.iterdir()
    )
    for files in (good, defective):
        random.Random(given.seed).shuffle(files)
    cut = (_LEARNT, _LEARNT + _CALIBRATE)
    truths: dict[str, Motion] = {}
    for place, files in {
        "learn": good[: cut[0]],
        "calibrate": good[cut[0] : cut[1]],
        "shown/good": good[cut[1] : cut[1] + given.parts],
        "shown/defective": defective[: given.parts],
    }.items():
        (folder / place).mkdir(parents=True)
        for number, file in enumerate(files):
            pixels, truth = photograph(file), somewhere(rng, _DEGREES)
            name = f"{place}/{number:03}.png"
            written(folder / name, laid(pixels, truth) if is_moved else pixels)
            truths[name.removeprefix("shown/")] = truth
    written(folder / "drawn_on.png", photograph(good[0]))
    return truths


def written(path: Path, pixels: Pixels) -> None:
    """Write an RGB picture."""
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


def judged(ledger: Path, truths: dict[str, Motion]) -> dict[str, Any]:
    """What the ledger says: states by label, AUROC, and by how much regions were missed."""
    with closing(sqlite3.connect(ledger)) as file:
        rows = file.execute(
            "SELECT part_id, state, score, evidence FROM triggers ORDER BY sequence"
        ).fetchall()
    states = {label: Counter(row[1] for row in rows if row[0].startswith(label))
              for label in ("good", "defective")}  # fmt: skip
    scored = [row for row in rows if row[2] is not None]
    found: dict[str, Any] = {
        "states": {label: dict(counts) for label, counts in states.items()},
        "auroc": auroc(
            np.array([row[2] for row in scored]),
            np.array([row[0].startswith("defective") for row in scored]),
        ),
    }
    if truths:
        missed = [
            float(np.hypot(*(middle(json.loads(row[3])) - laid_at(truths[row[0]]))))
            for row in scored
        ]
        found["region_missed_px"] = {"median": float(np.median(missed)), "largest": max(missed)}
    return found


def middle(evidence: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Of the region's box."""
    (region,) = evidence["regions"]
    left, top, right, bottom = region["box"]
    return np.array([(left + right) / 2, (top + bottom) / 2])


def laid_at(truth: Motion) -> np.ndarray[Any, Any]:
    """Where the middle of the crop has gone."""
    left, top, right, bottom = _CROP
    moved: np.ndarray[Any, Any] = truth @ np.array([(left + right) / 2, (top + bottom) / 2, 1.0])
    return moved


def run(*arguments: object) -> None:
    """A command of `agent`."""
    subprocess.run([*_AGENT, *map(str, arguments)], stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
