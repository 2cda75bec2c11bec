"""How much scores, boxes and ranking move when the picture does, and what CLAHE is worth.

    python -m benchmarks.robustness runs/real_line/*/bundle --data ../shared/data \
        --weights resnet50_layer3.safetensors --out runs/robustness \
        --result benchmarks/results/robustness.json

Each bundle lies at `<set>/bundle`; its images are those of `<data>/<set>/test` that its training
never saw. Every image is inspected as it is and disturbed: one pixel to each side, through JPEG of
quality 90, 2 % darker and brighter, turned by one degree either way. A score's move is told as a
share of the room between the median good score and the threshold; flips are verdicts that change.
What leaves the frame is continued from its edge.

With `--weights` each recipe is trained once more, on the same split, without CLAHE (into `--out`,
where a later run finds it), and both are ranked under other light, in fp32. Of each label 20 images
are looked at, evenly spread over their names, so that a set takes some minutes of one core beside
that training; `--images` takes more, 0 all.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import described
from calibration.record import read_calibration
from engine.backends.base import Backend
from engine.backends.opening import open_backend
from engine.bundle import MANIFEST, Bundle, open_bundle
from engine.errors import AtacError, CalibrationError, ConfigurationError
from engine.frame import Box, Inspection, Pixels
from engine.methods import open_method
from engine.methods.atac import atac_of
from engine.parity import box_iou
from engine.score import top_k_mean
from engine.view import view
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
from train.recipes import RECIPE, RECIPE_JSON
from train.run import train_bundle
from train.weights import read_weights

BATCH = 8
Change = Callable[[Pixels], Pixels]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Scores and boxes under small disturbances.")
    parser.add_argument("bundles", type=Path, nargs="+", help="<set>/bundle")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, help="ImageNet weights, to train without CLAHE")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "int8"))
    parser.add_argument("--images", type=int, default=20, help="of each label, a set; 0: all")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--show", action="store_true", help="only print the table of --result")
    options = parser.parse_args(arguments)

    if options.show:
        print(table(json.loads(options.result.read_text(encoding="utf-8"))))
        return
    try:
        print(table(compare(options)))
    except AtacError as error:
        parser.exit(2, f"{error}\n")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """What is written to `--result`: the figures of every bundle's set."""
    result: dict[str, Any] = {
        "machine": described(),
        "precision": options.precision,
        "images": (
            f"{options.images} of each label, evenly spread over their names"
            if options.images
            else "all"
        ),
        "sets": {},
    }
    for path in options.bundles:
        name = path.resolve().parent.name
        result["sets"][name] = measured(open_bundle(path), options.data / name, options)
        if options.result:  # what is known so far outlives an interruption
            options.result.parent.mkdir(parents=True, exist_ok=True)
            options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def measured(bundle: Bundle, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every figure of one set; `seconds` are without the training."""
    source = find_source(data, None, None)
    items = chosen(unseen_images(source, bundle), options.images)
    compared = {"with_clahe": bundle}
    if options.weights:
        folder = options.out / data.name / "without_clahe"
        compared["without_clahe"] = without_clahe(bundle, source, folder, options.weights)
    started = time.perf_counter()
    frames = [read_listed(source, item) for item in items]
    faulty = np.array([item.defective for item in items])
    threshold, origin = threshold_of(bundle, options.precision)
    with open_backend(bundle, precision=options.precision) as backend:
        plain = inspected(backend, bundle, frames)
        scores = np.array([one.score for one in plain])
        room = threshold - float(np.median(scores[~faulty]))
        row: dict[str, Any] = {
            "good": int((~faulty).sum()),
            "defective": int(faulty.sum()),
            "backend": backend.name,
            "threshold": threshold,
            "threshold_from": origin,
            "room": room,
            "auroc": ranking(plain, faulty),
            "disturbed": {
                name: moved(
                    plain,
                    [inspected(backend, bundle, [change(f) for f in frames]) for change in changes],
                    faulty,
                    threshold,
                    room,
                )
                for name, changes in DISTURBANCES.items()
            },
            "batch": batched(backend, bundle, frames),
        }
    row["light"] = {}
    for name, one in compared.items():
        with open_backend(one) as backend:
            row["light"][name] = under_light(backend, one, frames, faulty)
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def chosen(items: Sequence[Listed], count: int) -> list[Listed]:
    """`count` items of each label, evenly spread over their order; 0: all."""
    if not count:
        return list(items)
    picked = []
    for label in (False, True):
        of_label = [item for item in items if item.defective == label]
        places = np.linspace(0, len(of_label) - 1, min(count, len(of_label))).round().astype(int)
        picked += [of_label[place] for place in places]
    return picked


def threshold_of(bundle: Bundle, precision: str) -> tuple[float, str]:
    """The calibrated threshold, else the highest score of a held-out good image."""
    try:
        return read_calibration(bundle, precision=precision).calibration.threshold, "calibration"
    except CalibrationError:
        return max(bundle.manifest.training.held_out_scores), "highest held-out score"


def inspected(backend: Backend, bundle: Bundle, frames: Sequence[Pixels]) -> list[Inspection]:
    inspector = open_method(bundle.manifest.method, backend)
    return [inspector.inspect(frame) for frame in frames]


def ranking(found: Sequence[Inspection], faulty: np.ndarray) -> float:
    return auroc(np.array([one.score for one in found]), faulty)


def moved(
    plain: Sequence[Inspection],
    disturbed: Sequence[Sequence[Inspection]],
    faulty: np.ndarray,
    threshold: float,
    room: float,
) -> dict[str, Any]:
    """How far `disturbed`, one list for each variant, is from `plain`; all variants together."""
    pairs = [
        (before, after, bad)
        for variant in disturbed
        for before, after, bad in zip(plain, variant, faulty, strict=True)
    ]
    moves = np.array([abs(after.score - before.score) / room for before, after, _ in pairs])
    overlaps = [box_iou(before.box, after.box) for before, after, _ in pairs]
    flips = [
        bool(bad)
        for before, after, bad in pairs
        if (before.score > threshold) != (after.score > threshold)
    ]
    return {
        "inspections": len(pairs),
        "median_move": float(np.median(moves)),
        "p95_move": float(np.quantile(moves, 0.95)),
        "most_move": float(moves.max()),
        "median_box_iou": float(np.median(overlaps)),
        "p05_box_iou": float(np.quantile(overlaps, 0.05)),
        "flips_good": flips.count(False),
        "flips_defective": flips.count(True),
        "auroc": [ranking(variant, faulty) for variant in disturbed],
    }


def batched(backend: Backend, bundle: Bundle, frames: Sequence[Pixels]) -> dict[str, float]:
    """The largest difference between views one by one and `BATCH` at a time."""
    spec, share = atac_of(bundle).view, atac_of(bundle).score.top_k
    views = np.stack([view(frame, Box.around(frame), spec) for frame in frames[:BATCH]])
    together = backend.run(views)
    worst = {"views": float(len(views)), "score_map": 0.0, "attention": 0.0, "score": 0.0}
    for index, one in enumerate(views):
        alone = backend.run(one[None])
        score_map, attention = alone["score_map"][0], alone["attention"][0]
        differences = {
            "score_map": np.abs(score_map - together["score_map"][index]).max(),
            "attention": np.abs(attention - together["attention"][index]).max(),
            "score": abs(
                top_k_mean(score_map, share) - top_k_mean(together["score_map"][index], share)
            ),
        }
        worst |= {name: max(worst[name], float(value)) for name, value in differences.items()}
    return worst


def under_light(
    backend: Backend, bundle: Bundle, frames: Sequence[Pixels], faulty: np.ndarray
) -> dict[str, float]:
    """AUROC where every image is seen in the same other light."""
    return {
        name: ranking(inspected(backend, bundle, [change(f) for f in frames]), faulty)
        for name, change in LIGHTS.items()
    }


def without_clahe(bundle: Bundle, source: Source, folder: Path, weights: Path) -> Bundle:
    """The recipe and the split of `bundle`, trained without CLAHE; made once, then opened."""
    settings = RECIPE_JSON.validate_json(bundle.read(RECIPE))
    split = SPLIT_JSON.validate_json(bundle.read(SPLIT))
    held = len(split.held_out_good)
    without = replace(
        settings,
        view=replace(settings.view, equalise="never"),
        hold_out=held / (held + len(split.train_good)),
    )
    if (folder / MANIFEST).exists():
        made = open_bundle(folder)
    else:
        pretrained = read_weights(weights, option="--weights")
        made = train_bundle(
            source,
            folder,
            without,
            weights=pretrained,
            defects=len(split.train_defective),
            seed=split.seed,
            resume=True,
            accept_flips=True,
        ).written.bundle
    # One from an earlier run may be another recipe's, or know images that are tested here.
    if (
        RECIPE_JSON.validate_json(made.read(RECIPE)) != without
        or SPLIT_JSON.validate_json(made.read(SPLIT)) != split
    ):
        raise ConfigurationError(
            "--out",
            str(folder),
            f"was not trained as {bundle.path} was; remove it, or name another folder",
        )
    return made


def shifted(right: int, down: int) -> Change:
    return warped(np.array([[1, 0, right], [0, 1, down]], dtype=np.float64))


def turned(degrees: float) -> Change:
    def change(pixels: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        centre = (width - 1) / 2, (height - 1) / 2
        return warped(cv2.getRotationMatrix2D(centre, degrees, 1.0))(pixels)

    return change


def warped(matrix: np.ndarray) -> Change:
    def change(pixels: Pixels) -> Pixels:
        size = pixels.shape[1], pixels.shape[0]
        return cv2.warpAffine(
            pixels, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )

    return change


def jpeg(quality: int) -> Change:
    def change(pixels: Pixels) -> Pixels:
        bgr = np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        found = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        return np.ascontiguousarray(found[..., ::-1]) if found.ndim == 3 else found

    return change


def lit(gain: float = 1.0, *, offset: float = 0.0, gamma: float = 1.0) -> Change:
    """(p / 255)^gamma · gain + offset, rounded and clipped to 0 … 255."""
    table = 255 * (np.arange(256) / 255) ** gamma * gain + offset
    rounded = table.round().clip(0, 255).astype(np.uint8)
    return lambda pixels: rounded[pixels]


def sidelit(darkest: float) -> Change:
    """From `darkest` at the left edge to full brightness at the right."""

    def change(pixels: Pixels) -> Pixels:
        ramp = np.linspace(darkest, 1, pixels.shape[1])
        ramp = ramp[:, None] if pixels.ndim == 3 else ramp
        return (pixels * ramp).round().astype(np.uint8)

    return change


DISTURBANCES: dict[str, tuple[Change, ...]] = {
    "±1 px": (shifted(1, 0), shifted(-1, 0), shifted(0, 1), shifted(0, -1)),
    "JPEG 90": (jpeg(90),),
    "±2 % gain": (lit(0.98), lit(1.02)),
    "±1° turn": (turned(1), turned(-1)),
}
LIGHTS: dict[str, Change] = {
    "as it is": lambda pixels: pixels,
    "gain 0.6": lit(0.6),
    "gain 0.8": lit(0.8),
    "gain 1.25": lit(1.25),
    "gamma 0.7": lit(gamma=0.7),
    "gamma 1.4": lit(gamma=1.4),
    "offset +30": lit(offset=30),
    "from the side": sidelit(0.5),
}


def table(result: dict[str, Any]) -> str:
    """Every set's figures as Markdown."""
    return "\n".join(lines(result["sets"]))


def lines(sets: dict[str, Any]) -> Iterator[str]:
    yield "| set | disturbance | score moves (median, 95 %, most) | box IoU (median, 5 %) |"
    yield "|---|---|---|---|"
    yield from (
        f"| {name} | {kind} | {found['median_move']:.3f}, {found['p95_move']:.3f}, "
        f"{found['most_move']:.3f} | {found['median_box_iou']:.2f}, {found['p05_box_iou']:.2f} |"
        for name, row in sets.items()
        for kind, found in row["disturbed"].items()
    )
    yield "\n| set | disturbance | flips good, defective | AUROC as it is | AUROC, least |"
    yield "|---|---|---|---|---|"
    yield from (
        f"| {name} | {kind} | {found['flips_good']}, {found['flips_defective']} "
        f"of {found['inspections']} | {row['auroc']:.4f} | {min(found['auroc']):.4f} |"
        for name, row in sets.items()
        for kind, found in row["disturbed"].items()
    )
    yield "\n| set | light | AUROC with CLAHE | without |"
    yield "|---|---|---|---|"
    for name, row in sets.items():
        bare = row["light"].get("without_clahe", {})
        for kind, value in row["light"]["with_clahe"].items():
            yield f"| {name} | {kind} | {value:.4f} | {number(bare.get(kind))} |"
    yield "\n| set | views | score map | attention | score |"
    yield "|---|---|---|---|---|"
    for name, row in sets.items():
        found = row["batch"]
        cells = " | ".join(f"{found[key]:.2g}" for key in ("score_map", "attention", "score"))
        yield f"| {name} | {found['views']:.0f} one by one or together | {cells} |"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
