"""The papers' tables on real images.

    python -m benchmarks.tables draw   --data ../shared/data
    python -m benchmarks.tables run    --data ../shared/data --weights resnet50_layer3.safetensors \
        --rows line memory --draws 0 1 2 --shard 0/2
    python -m benchmarks.tables report > benchmarks/results/tables.md

`draw` wrote the splits that are committed; it is there for new sets. `run` trains and tests what
no ledger in the folder `--ledgers` has yet; interrupted, it goes on where it was. Each shard
writes a ledger of its own, so that shards can run on different machines.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.tables.report import report
from benchmarks.tables.rows import ROWS
from benchmarks.tables.runs import append, is_done, measured, read_ledger, runs
from benchmarks.tables.sets import (
    DEFECTS,
    DRAWS,
    MANIFEST_JSON,
    SETS,
    drawn_manifest,
    manifest_path,
)
from train.backbone import read_weights

LEDGERS = Path("benchmarks/results/tables")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The papers' tables on real images.")
    commands = parser.add_subparsers(required=True)

    draw = commands.add_parser("draw", help="write the splits of sets")
    draw.add_argument("--data", type=Path, required=True)
    draw.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    draw.set_defaults(does=draw_splits)

    run = commands.add_parser("run", help="train and test what the ledgers do not have")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--weights", type=Path, help="ImageNet ResNet-50; without: from scratch")
    run.add_argument("--form", choices=("v1", "v1.5"), help="default: what the weights say")
    run.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    run.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    run.add_argument("--defects", nargs="+", type=int, choices=DEFECTS, default=list(DEFECTS))
    run.add_argument("--draws", nargs="+", type=int, choices=range(DRAWS), default=[*range(DRAWS)])
    run.add_argument("--unseen-kinds", action="store_true", help="one known type, tested on others")
    run.add_argument("--shard", type=_shard, default=(0, 1), help="i/n: every n-th run from i")
    run.add_argument("--ledgers", type=Path, default=LEDGERS)
    run.add_argument("--runs", type=Path, default=Path("runs/tables"), help="for checkpoints")
    run.set_defaults(does=run_shard)

    tables = commands.add_parser("report", help="print the tables as Markdown")
    tables.add_argument("--ledgers", type=Path, default=LEDGERS)
    tables.set_defaults(does=lambda options: print(report(read_ledger(options.ledgers).values())))

    options = parser.parse_args(arguments)
    options.does(options)


def draw_splits(options: argparse.Namespace) -> None:
    for name in options.sets:
        manifest = drawn_manifest(SETS[name], options.data / name)
        path = manifest_path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(MANIFEST_JSON.dump_json(manifest, indent=0) + b"\n")
        print(f"{path}: {len(manifest.images)} images, {len(manifest.draws)} draws")


def run_shard(options: argparse.Namespace) -> None:
    number, of = options.shard
    ledger = options.ledgers / f"shard-{number}-of-{of}.jsonl"
    weights = read_weights(options.weights, form=options.form) if options.weights else None
    wanted = runs(
        sets=options.sets,
        rows=options.rows,
        defects=options.defects,
        draws=options.draws,
        unseen_kinds=options.unseen_kinds,
    )[number::of]
    done = read_ledger(options.ledgers)
    for run in wanted:
        if is_done(run, done, weights):
            continue
        print(run.key, file=sys.stderr, flush=True)
        record = measured(run, options.data, weights, options.runs)
        append(ledger, record)
        print(f"  AUROC {record.ranking.auroc:.4f}", file=sys.stderr, flush=True)


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text}: give i/n with i from 0 to n - 1")
    return int(number), int(of)


if __name__ == "__main__":
    main()
