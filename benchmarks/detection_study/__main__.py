"""The study behind ADR 18: what a second version of the recipe `line` could gain.

    export OMP_NUM_THREADS=1
    python -m benchmarks.detection_study features --data ../shared/data \
        --weights resnet50_layer3.safetensors
    python -m benchmarks.detection_study memory   …            # 0 known defects
    python -m benchmarks.detection_study memory   … --side 320
    python -m benchmarks.detection_study closer   …
    python -m benchmarks.detection_study heads    … --known 10 5 2 1 --draws 0 1 2
    python -m benchmarks.detection_study resample … --sets mvtec_pill magnetic_tile
    python -m benchmarks.detection_study test     … --known 0 10 --closer

`…` stands for the same `--data` and `--weights`. Without `--sets` it is mvtec_pill alone, without
`--draws` draw 0. `--images 8` takes eight images of each kind, to see whether a command works.

What each takes for mvtec_pill, by the logs of the scripts that these were made from, on a machine
that was busy with other work:

    features   keeps the features of whole views: 49 s, 0.5 GB; with --side 320 67 s, 1.1 GB
    memory     the memory bank alone: 2.5 min; with --side 320 1.5 to 8 min
    closer     the closer pass alone, in sums and behind a gate: 8 min, 0.8 GB more
    heads      learnt heads by their weight: 4 to 110 s a fold, five folds for each of --known
    resample   thresholds of cross-fitted scores on new good parts: 5.5 min for 1 000 resamplings
    test       the test, with three folds of heads: 7 min

Every command computes the features it lacks into the folder `--features`, in fp16: about 9.5 GB for
all five sets at both sizes and with the closer views of one draw. `test` keeps its results in
`--results`; what is there is shown and not computed again.

All commands but `test` show validation: good images of the pool, each scored by a model that has
not seen it, against known defects that were left out. Look at `test` once, when all is chosen. One
thread, as two wait for each other on a busy machine.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.detection_study.bank import SHARE, SIZE, Memory, between_images, top_mean
from benchmarks.detection_study.closer import GATE, closer_memory, gated
from benchmarks.detection_study.features import Features, kept_features, view_spec, whole_views
from benchmarks.detection_study.heads import WEIGHTS, cross_fitted, evidence_weight
from benchmarks.detection_study.images import Images, Rows, read_images
from benchmarks.detection_study.resampling import RATES, WAYS, nearest_by_image, resampled
from benchmarks.detection_study.scores import (
    Scores,
    as_z,
    figures,
    is_promised,
    order_threshold,
    ranking,
    summed,
    tail_ranks,
)
from benchmarks.tables.sets import DRAWS, SETS
from engine.errors import AtacError
from train.weights import Weights, read_weights

_SIDE = 224
_VALIDATION_FOLDS = 5
_TEST_FOLDS = 3
_HEADER = f"{'set':14s} draw {'':40s} AUROC found at .98 at .95"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)

    features = _command(commands, "features", "keep the features of whole views")
    features.add_argument("--side", type=int, choices=(224, 320), default=_SIDE)
    features.set_defaults(does=keep_features)

    memory = _command(commands, "memory", "the memory bank alone")
    memory.add_argument("--side", type=int, choices=(224, 320), default=_SIDE)
    memory.add_argument("--random", action="store_true", help="no k-centre search")
    memory.add_argument("--size", type=int, default=SIZE, help="patches in the bank")
    memory.add_argument("--share", type=float, default=SHARE, help="of the patches, as the score")
    memory.set_defaults(does=validate_memory)

    closer = _command(commands, "closer", "the closer pass")
    closer.set_defaults(does=validate_closer)

    heads = _command(commands, "heads", "learnt heads beside the memory bank")
    heads.add_argument("--known", type=int, nargs="+", choices=(10, 5, 2, 1), default=[10])
    heads.set_defaults(does=validate_heads)

    resample = _command(commands, "resample", "thresholds of cross-fitted scores")
    resample.add_argument("--repeats", type=int, default=1000)
    resample.set_defaults(does=check_thresholds)

    test = _command(commands, "test", "the test: last, once")
    test.add_argument("--known", type=int, nargs="+", choices=(0, 1, 10), default=[0])
    test.add_argument("--closer", action="store_true", help="with the closer pass")
    test.add_argument("--results", type=Path, default=Path("runs/detection_study/results"))
    test.set_defaults(does=show_test)

    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    try:
        options.does(options, read_weights(options.weights, option="--weights"))
    except AtacError as error:
        parser.exit(2, f"{error}\n")


def keep_features(options: argparse.Namespace, weights: Weights) -> None:
    for images, draw in _asked(options):
        kept = _features(options, images, weights, options.side)
        print(f"{images.name} draw {draw}: {len(kept)} views, {kept.nbytes / 1e9:.2f} GB")


def validate_memory(options: argparse.Namespace, weights: Weights) -> None:
    print(_HEADER)
    for images, draw in _asked(options):
        memory = Memory(
            _features(options, images, weights, options.side),
            images.pool,
            size=options.size,
            greedy=not options.random,
        )
        good = memory.distances(images.pool)
        others = memory.distances(images.validation)
        scores = Scores(top_mean(good, options.share), top_mean(others, options.share))
        _show(images, draw, f"M at {options.side}", scores)
        share = between_images(good)
        print(f"  between images {share:.2f} of the variance; kept {memory.projection.kept:.2f}")


def validate_closer(options: argparse.Namespace, weights: Weights) -> None:
    print(_HEADER)
    for images, draw in _asked(options):
        memory = _memory(options, images, weights)
        first = as_z(_bank_scores(memory, images, images.validation))
        closer = as_z(_closer_scores(options, images, memory, weights, images.validation))
        _show(images, draw, "M", first)
        _show(images, draw, "closer pass alone", closer)
        _show(images, draw, "both, sum of z", summed(first, closer))
        _show(images, draw, "both, sum of ranks", summed(tail_ranks(first), tail_ranks(closer)))
        for quantile in (0.5, 0.7, GATE, 0.9):
            passes = 1 + (first.good >= np.quantile(first.good, quantile)).mean()
            said = f"sum of z above {quantile}, {passes:.2f} passes a good part"
            _show(images, draw, said, gated(first, closer, quantile))


def validate_heads(options: argparse.Namespace, weights: Weights) -> None:
    print(_HEADER)
    for images, draw in _asked(options):
        memory = _memory(options, images, weights)
        first = as_z(_bank_scores(memory, images, images.known))
        for count in options.known:
            # Two or five of ten, evenly; the single one is the draw's own.
            known = (
                images.one if count == 1 else images.known[:: max(1, len(images.known) // count)]
            )
            fitted = cross_fitted(
                memory, images, known, images.known, folds=_VALIDATION_FOLDS, draw=draw
            )
            heads = as_z(fitted.unseen())
            is_known = np.isin(images.known, known)
            # Ten leave none that is not evidence, so each is judged by heads that left it out.
            judged = is_known if is_known.all() else ~is_known
            weighed = {f"w {weight}": weight for weight in WEIGHTS}
            weighed[f"w n/(n+10) = {count / (count + 10):.2f}"] = count / (count + 10)
            if not is_known.all():
                evidence = evidence_weight(first, heads, np.flatnonzero(is_known))
                weighed[f"w by evidence = {evidence}"] = evidence
            for said, weight in weighed.items():
                both = summed(first, heads, weight) if weight else first
                shown = Scores(both.good, both.others[judged])
                _show(images, draw, f"{count} known, {said}", shown)


def check_thresholds(options: argparse.Namespace, weights: Weights) -> None:
    print("realised (exact); beyond what an exact threshold has in 95 of 100 (exact); found")
    for images, draw in _asked(options):
        good = np.sort(np.concatenate([images.pool, images.tested_good]))
        features = _features(options, images, weights, _SIDE)
        nearest, defects = nearest_by_image(features, images.pool, good, images.validation)
        missing = {(way, rate) for way in WAYS for rate in RATES}
        for one in resampled(nearest, defects, repeats=options.repeats):
            missing.remove((one.way, one.asked))
            print(
                f"{images.name:14s} draw {draw} {one.way:5s} {one.asked:.2f} "
                f"n={one.parts} j={one.allowed}: {one.rate:.4f} ({one.exact_rate:.4f}); "
                f"{one.beyond:.3f} ({one.exact_beyond:.3f}); found {one.found:.3f}",
                flush=True,
            )
        for way, rate in sorted(missing):
            print(f"{images.name:14s} draw {draw} {way:5s} {rate:.2f} too few good parts")


def show_test(options: argparse.Namespace, weights: Weights) -> None:
    print("AUROC, found at 3 % 95 %, false rejects")
    for images, draw in _asked(options):
        for count in options.known:
            parts = images.name, str(draw), str(count), *(["closer"] * options.closer)
            file = options.results / f"{'-'.join(parts)}.json"
            if options.images is None and file.exists():
                print(file.read_text(encoding="utf-8").strip())
                continue
            result = json.dumps(_tested(options, images, draw, count, weights))
            print(result, flush=True)
            if options.images is None:
                options.results.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{result}\n", encoding="utf-8")


def _tested(
    options: argparse.Namespace,
    images: Images,
    draw: int,
    count: int,
    weights: Weights,
) -> dict[str, object]:
    memory = _memory(options, images, weights)
    known = images.one if count == 1 else images.known  # without heads no test has them either
    tested = np.concatenate([images.tested_good, np.setdiff1d(images.defects, known)])
    scores = as_z(_bank_scores(memory, images, tested))
    if count:
        fitted = cross_fitted(memory, images, known, tested, folds=_TEST_FOLDS, draw=draw)
        scores = as_z(summed(scores, as_z(fitted.unseen()), count / (count + 10)))
    if options.closer:
        scores = gated(scores, as_z(_closer_scores(options, images, memory, weights, tested)))
    good, defects = np.split(scores.others, [len(images.tested_good)])
    threshold = order_threshold(scores.good)
    return {
        "set": images.name,
        "draw": draw,
        "known": count,
        "closer": options.closer,
        "auroc": round(ranking(good, defects), 4),
        "found": round(float((defects > threshold).mean()), 4),
        "false_rejects": int((good > threshold).sum()),
        "good": len(good),
        "defects": len(defects),
        "promised": is_promised(len(scores.good)),
    }


def _memory(options: argparse.Namespace, images: Images, weights: Weights) -> Memory:
    return Memory(_features(options, images, weights, _SIDE), images.pool)


def _bank_scores(memory: Memory, images: Images, others: Rows) -> Scores:
    good, rest = (top_mean(memory.distances(rows), SHARE) for rows in (images.pool, others))
    return Scores(good, rest)


def _closer_scores(
    options: argparse.Namespace,
    images: Images,
    first: Memory,
    weights: Weights,
    others: Rows,
) -> Scores:
    memory = closer_memory(options.features, images, first, spec=view_spec(_SIDE), weights=weights)
    return _bank_scores(memory, images, others)


def _features(options: argparse.Namespace, images: Images, weights: Weights, side: int) -> Features:
    spec = view_spec(side)
    return kept_features(
        options.features, images, whole_views(images, spec), spec=spec, weights=weights
    )


def _asked(options: argparse.Namespace) -> Iterator[tuple[Images, int]]:
    for name in options.sets:
        for draw in options.draws:
            yield read_images(name, draw, options.data, limit=options.images), draw


def _show(images: Images, draw: int, said: str, scores: Scores) -> None:
    few = "" if is_promised(len(scores.good)) else "  (too few good parts for 3 %)"
    print(f"{images.name:14s} {draw:4d} {said:40s} {figures(scores)}{few}", flush=True)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, said: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=said, description=said)
    command.add_argument("--data", type=Path, required=True, help="the sets are folders in it")
    command.add_argument("--weights", type=Path, required=True, help="ImageNet's, of a ResNet-50")
    command.add_argument("--features", type=Path, default=Path("runs/detection_study/features"))
    command.add_argument("--sets", nargs="+", choices=list(SETS), default=["mvtec_pill"])
    command.add_argument("--draws", nargs="+", type=int, choices=range(DRAWS), default=[0])
    command.add_argument("--images", type=int, help="of each kind, for a quick look")
    return command


if __name__ == "__main__":
    main()
