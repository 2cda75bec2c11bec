"""The tables of the two-stage paper on real images.

    python -m benchmarks.two_stage run --data DATA --weights resnet18_layer3.safetensors \\
        --select --workers 3
    python -m benchmarks.two_stage report > benchmarks/results/two_stage.md

`run` trains what the tables need and writes a line for each training as it ends into the folder
`--out`; with `--select` it first compares settings on validation images and takes the better ones.
Three workers fill a GPU; on CPUs one does. After `--minutes` no result is waited for.
"""

import argparse
import json
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from benchmarks.machine import described
from benchmarks.two_stage.dcgan import DCGAN_JSON, DcganResult, of_cifar
from benchmarks.two_stage.jobs import RESULT_JSON, Result
from benchmarks.two_stage.plan import BASE, DRAWS, SETS, chosen, selection, tables
from benchmarks.two_stage.report import report
from benchmarks.two_stage.workers import Pool, make_views, say
from train.recipes import RECIPE_JSON

RESULTS = Path("benchmarks/results/two_stage")
LEDGERS = Path("benchmarks/results/tables")
_DRY_IMAGES = 12


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The tables of the two-stage paper.")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="train and test")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--weights", type=Path, required=True, help="ImageNet ResNet-18")
    run.add_argument("--out", type=Path, default=RESULTS)
    run.add_argument("--minutes", type=float, default=1e9)
    run.add_argument("--select", action="store_true", help="choose settings first")
    run.add_argument("--select-minutes", type=float, default=1e9, help="of the minutes, for that")
    run.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    run.add_argument("--draws", nargs="+", type=int, choices=DRAWS, default=list(DRAWS))
    run.add_argument("--side", type=int, default=BASE.view.side, help="of the views, in pixels")
    run.add_argument("--epochs", type=int, default=BASE.epochs, help="of both stages together")
    run.add_argument("--workers", type=int, default=1)
    run.add_argument("--dry", action="store_true", help="a few images and steps: it works")
    run.set_defaults(does=run_all)
    tables = commands.add_parser("report", help="print the tables as Markdown")
    tables.add_argument("--results", type=Path, default=RESULTS)
    tables.add_argument("--ledgers", type=Path, default=LEDGERS)
    tables.set_defaults(does=lambda options: print(report(options.results, options.ledgers)))

    cifar = commands.add_parser("cifar", help="Table 1 on CIFAR-10, class by class")
    cifar.add_argument("--folder", type=Path, required=True, help="of the Python batches")
    cifar.add_argument("--seed", type=int, default=0)
    cifar.set_defaults(does=run_cifar)

    options = parser.parse_args(arguments)
    does = options.__dict__.pop("does")  # no process but this one can find it
    does(options)


def run_all(options: argparse.Namespace) -> None:
    began = time.monotonic()

    def left(minutes: float) -> float:
        return 60 * minutes - (time.monotonic() - began)

    base, sets, images = BASE.lasting(options.epochs), tuple(options.sets), None
    base = replace(base, view=replace(base.view, side=options.side))
    if options.dry:
        sets, images = sets[:2], _DRY_IMAGES
        view = replace(base.view, side=64)
        base = replace(base, epochs=2, adgan_from=1, least_steps=2, batch=2, view=view)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = Pool(options, folder, images)  # its processes begin to load
        make_views(sets, options.data, base.view, folder, images=images)
        say(f"views made, {time.monotonic() - began:.0f} s")
        settings = base
        if options.select:
            results: list[Result] = []
            for job in selection(base)[: 4 if options.dry else None]:
                pool.put("select", job)

            def keep(answer: list[Result]) -> None:
                results.extend(answer)
                for each in answer:
                    _append(options.out / "select.jsonl", RESULT_JSON.dump_json(each))

            pool.wait(left(options.select_minutes), keep)
            pool.drop()
            settings, leads = chosen(base, results)
            choice = {"leads": leads, "settings": RECIPE_JSON.dump_python(settings, mode="json")}
            (options.out / "chosen.json").write_text(json.dumps(choice, indent=1) + "\n")
            say(f"chosen, {time.monotonic() - began:.0f} s: {leads}")
        wanted = [job for job in tables(settings) if job.set in sets and job.draw in options.draws]
        for job in wanted[:: 6 if options.dry else 1]:
            pool.put("table", job)

        def write(answer: Result | DcganResult | list[Result]) -> None:
            if isinstance(answer, Result):  # a list is a choice that came too late
                _append(options.out / "jobs.jsonl", RESULT_JSON.dump_json(answer))
            elif isinstance(answer, DcganResult):
                _append(options.out / "dcgan.jsonl", DCGAN_JSON.dump_json(answer))

        pool.wait(left(options.minutes), write)
        pool.end()
    with suppress(PackageNotFoundError):  # where only what training needs is at hand
        text = json.dumps(described() | {"workers": options.workers}, indent=1)
        (options.out / "machine.json").write_text(text + "\n")
    say(f"{time.monotonic() - began:.0f} s")


def run_cifar(options: argparse.Namespace) -> None:
    for name, variant, found in of_cifar(options.folder, seed=options.seed):
        print(f"{name:<12} {variant:<12} AUROC {found:.3f}", flush=True)


def _append(path: Path, line: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(line + b"\n")


if __name__ == "__main__":
    main()
