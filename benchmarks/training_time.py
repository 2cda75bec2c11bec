"""How long `agent train` takes on 200 images and two cores.

    python -m benchmarks.training_time --data ../shared/data --weights resnet50_layer3.safetensors \
        --result benchmarks/results/training_time.json

The images are 190 good and 10 defective ones of a set, beside the good ones that the recipe holds
out. What is timed is the command that a user types, from nothing to the bundle and its page, on
so many cores of this machine; the goal is ten minutes. `busy` is the processor time over what
these cores had to give: far below 1, the command waited, for a disk or for other programs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import described
from train.datasets import GOOD, draw_split, find_source
from train.recipes import RECIPES

GOOD_IMAGES, DEFECTS = 190, 10
GOAL_SECONDS = 600.0
AGENT = str(Path(sys.executable).parent / "agent")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The time of agent train.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--set", default="mvtec_pill", help="a folder in MVTec's layout")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet ResNet-50")
    parser.add_argument("--recipe", choices=RECIPES.names(), default="line")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the bundle here")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as folder:
        data = some_of(options.data / options.set, Path(folder) / "data", options.recipe)
        result = measured(data, options.out or Path(folder) / "bundle", options)
    if options.result:
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(sentence(result))


def some_of(source: Path, folder: Path, recipe: str) -> Path:
    """Links to as many images of `source` as leave `GOOD_IMAGES` to train on."""
    share = RECIPES.find(recipe).settings().hold_out
    wanted = next(n for n in range(10_000) if n - round(share * n) == GOOD_IMAGES)
    good = sorted((source / "train" / GOOD).iterdir())
    if len(good) < wanted:
        sys.exit(f"{source} has {len(good)} good images to train on; {wanted} are needed")
    (folder / "train" / GOOD).mkdir(parents=True)
    for path in good[:wanted]:
        (folder / "train" / GOOD / path.name).symlink_to(path.resolve())
    for part in ("test", "ground_truth"):
        (folder / part).symlink_to((source / part).resolve())
    split = draw_split(find_source(folder, None, None), defects=DEFECTS, hold_out=share, seed=0)
    assert len(split.training) == GOOD_IMAGES + DEFECTS, "some images repeat others"
    return folder


def measured(data: Path, bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, cores)  # the child inherits it, and torch counts its threads by it
    command = [AGENT, "train", "--data", data, "--out", bundle, "--recipe", options.recipe]
    command += ["--backbone-weights", options.weights, "--defects", str(DEFECTS), "--json"]
    usual = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, env=usual, check=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    training = json.loads(done.stdout)["training"]
    return {
        "machine": described(),
        "set": options.set,
        "recipe": options.recipe,
        "good": training["good"],
        "defective": training["defective"],
        "cores": len(cores),
        "seconds": round(seconds, 1),
        "of_these_epochs": training["seconds"],
        "processor_seconds": round(processor, 1),
        "busy": round(processor / seconds / len(cores), 2),
        "goal_seconds": GOAL_SECONDS,
    }


def sentence(result: dict[str, Any]) -> str:
    return (
        f"agent train --recipe {result['recipe']} on {result['good'] + result['defective']} "
        f"images of {result['set']}, {result['cores']} cores: {result['seconds'] / 60:.1f} min "
        f"({result['of_these_epochs'] / 60:.1f} of them epochs, cores {result['busy']:.0%} busy); "
        f"goal {result['goal_seconds'] / 60:.0f} min"
    )


if __name__ == "__main__":
    main()
