"""The papers' tables on real images.

    python -m benchmarks.tables draw   --data ../shared/data
    python -m benchmarks.tables run    --data ../shared/data --weights resnet50_layer3.safetensors \
        --rows line memory --draws 0 1 2 --shard 0/2
    python -m benchmarks.tables run    --data ../shared/data --weights resnet50_layer3.safetensors \
        --rows options --draws 0
    python -m benchmarks.tables report > benchmarks/results/tables.md
    python -m benchmarks.tables figures --data ../shared/data --sets mvtec_pill \
        --weights resnet50_layer3.safetensors

A set is a folder below `--data`: one of the five that the committed results are of, or any other
that `agent train --data` takes. `draw` wrote the splits that are committed; those of another set
are drawn before its first run. `run` trains and tests what no ledger in the folder `--ledgers` has
yet; interrupted, it continues where it was. Each shard writes a ledger of its own, so that shards
can run on different machines. Rows that are options of `line`, or all of them as `options`, are
validated on folds, and `line` with them. `figures` writes one page a set; what `run` has trained
of it is not trained again.
"""

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.tables.report import report
from benchmarks.tables.rows import FROZEN, OPTIONS, ROWS, VERSIONS, row_of, weights_of
from benchmarks.tables.runs import (
    append,
    is_done,
    measured,
    read_ledger,
    runs,
    state_folder,
    validations,
)
from benchmarks.tables.sets import (
    DEFECTS,
    DRAWS,
    FOLDS,
    SETS,
    manifest_path,
    write_manifest,
)
from engine.errors import AtacError
from train.weights import Weights, read_weights

LEDGERS = Path("benchmarks/results/tables")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The papers' tables on real images.")
    commands = parser.add_subparsers(required=True)

    draw = commands.add_parser("draw", help="write the splits of sets")
    _add_sets(draw)
    draw.set_defaults(does=draw_splits)

    run = commands.add_parser("run", help="train and test what the ledgers do not have")
    _add_training(run)
    run.add_argument(
        "--rows",
        nargs="+",
        choices=[*ROWS, *OPTIONS, "options"],
        default=[row for row in ROWS if row not in FROZEN],
    )
    run.add_argument("--defects", nargs="+", type=int, choices=DEFECTS, default=list(DEFECTS))
    run.add_argument("--draws", nargs="+", type=int, choices=range(DRAWS), default=[*range(DRAWS)])
    run.add_argument("--folds", nargs="+", type=int, choices=range(FOLDS), default=[*range(FOLDS)])
    run.add_argument("--unseen-kinds", action="store_true", help="one known type, tested on others")
    run.add_argument("--shard", type=_shard, default=(0, 1), help="i/n: every n-th run from i")
    run.add_argument("--ledgers", type=Path, default=LEDGERS)
    run.set_defaults(does=run_shard)

    tables = commands.add_parser("report", help="print the tables as Markdown")
    tables.add_argument("--ledgers", type=Path, default=LEDGERS)
    tables.set_defaults(does=lambda options: print(report(read_ledger(options.ledgers).values())))

    figures = commands.add_parser("figures", help="scores, features and attention, a page a set")
    _add_training(figures)
    figures.add_argument(
        "--rows", nargs="+", choices=VERSIONS, default=["deviation", "grad_cam", "line"]
    )
    figures.add_argument("--out", type=Path, default=Path("runs/figures"))
    figures.set_defaults(does=draw_figures)

    options = parser.parse_args(arguments)
    try:
        options.does(options)
    except AtacError as error:
        parser.exit(2, f"{error}\n")


def draw_splits(options: argparse.Namespace) -> None:
    _draw(options.sets, options.data)


def run_shard(options: argparse.Namespace) -> None:
    number, of = options.shard
    ledger = options.ledgers / f"shard-{number}-of-{of}.jsonl"
    offered = _weights(options)
    _draw(_undrawn(options.sets), options.data)
    chosen = {"line", *OPTIONS} if "options" in options.rows else {*options.rows}
    wanted = runs(
        sets=options.sets,
        rows=[row for row in ROWS if row in options.rows],
        defects=options.defects,
        draws=options.draws,
        unseen_kinds=options.unseen_kinds,
    )
    if chosen & OPTIONS.keys():
        wanted += validations(
            sets=options.sets,
            rows=["line", *(row for row in OPTIONS if row in chosen)],
            draws=options.draws,
            folds=options.folds,
        )
    done = read_ledger(options.ledgers)
    planned = [(run, weights_of(row_of(run.row), offered)) for run in wanted[number::of]]
    for run, weights in planned:
        if is_done(run, done, weights):
            continue
        print(run.key, file=sys.stderr, flush=True)
        record = measured(run, options.data, weights, options.runs)
        append(ledger, record)
        if not run.pictured:
            shutil.rmtree(options.runs / state_folder(run, weights), ignore_errors=True)
        print(f"  AUROC {record.ranking.auroc:.4f}", file=sys.stderr, flush=True)


def draw_figures(options: argparse.Namespace) -> None:
    from benchmarks.tables.figures import write_figures

    weights = weights_of(ROWS["line"], _weights(options))
    _draw(_undrawn(options.sets), options.data)
    for name in options.sets:
        page = write_figures(
            options.out,
            name,
            options.rows,
            data=options.data,
            weights=weights,
            run_folder=options.runs,
        )
        print(page)


def _undrawn(names: list[str]) -> list[str]:
    return [name for name in names if not manifest_path(name).exists()]


def _draw(names: list[str], data: Path) -> None:
    for name in names:
        manifest = write_manifest(name, data)
        said = f"{len(manifest.images)} images, {len(manifest.draws)} draws"
        print(f"{manifest_path(name)}: {said}", file=sys.stderr, flush=True)


def _add_sets(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, required=True, help="the sets are folders in it")
    command.add_argument("--sets", nargs="+", default=list(SETS), metavar="NAME")


def _add_training(command: argparse.ArgumentParser) -> None:
    _add_sets(command)
    command.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        default=[],
        help="ImageNet ResNet-50, and ResNet-18 for DRA; without any: from scratch",
    )
    command.add_argument("--runs", type=Path, default=Path("runs/tables"), help="for checkpoints")


def _weights(options: argparse.Namespace) -> list[Weights]:
    return [read_weights(path, option="--weights") for path in options.weights]


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text}: give i/n with i from 0 to n - 1")
    return int(number), int(of)


if __name__ == "__main__":
    main()
