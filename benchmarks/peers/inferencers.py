"""anomalib's own inferencer on what `export` made: a process that takes turns when told to.

Runs in the environment that `benchmarks.peers.set_up` makes. Each line that it reads is JSON: first
where frames and models are, then which model is to have a turn. It is answered with a `Turn`, or
with what `failed`. A user would resize a frame with OpenCV and hand it to the inferencer, and so
does this.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import cv2
import numpy as np

from benchmarks.peers.importing import anomalib
from benchmarks.peers.turns import SIDE, told, turn


def main() -> None:
    answers = os.fdopen(int(sys.argv[1]), "w")  # libraries print what they like
    cv2.setNumThreads(1)
    inferencer = anomalib("deploy").OpenVINOInferencer
    task = json.loads(sys.stdin.readline())
    with np.load(task["frames"]) as kept:
        frames = [kept[name] for name in kept.files]
    os.chdir(task["folder"])  # the inferencer caches what it compiles where it stands
    print("{}", file=answers, flush=True)
    opened: dict[str, tuple[int, Callable[[Any], int]]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        file, lanes = asked["file"], asked["lanes"]
        try:
            if file not in opened or opened[file][0] != lanes:
                threads = task["cores"] // lanes
                opened[file] = lanes, looking(inferencer, Path(file), lanes=lanes, threads=threads)
            seen = turn(opened[file][1], frames, lanes=lanes, seconds=asked["seconds"])
            answer = asdict(seen)
        except Exception as error:  # noqa: BLE001 - the others go on, and this one is told
            answer = {"failed": told(error)}
        print(json.dumps(answer), file=answers, flush=True)


def looking(inferencer: Any, file: Path, *, lanes: int, threads: int) -> Callable[[Any], int]:
    """Looks at a frame with whichever of `lanes` inferencers is free."""
    settings = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    free: SimpleQueue[Any] = SimpleQueue()
    for _ in range(lanes):
        free.put(inferencer(file, device="CPU", config=settings))

    def look(pixels: Any) -> int:
        small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if small.ndim == 2:
            small = cv2.cvtColor(small, cv2.COLOR_GRAY2RGB)
        one = free.get()
        try:
            one.predict(small)
        finally:
            free.put(one)
        return 1

    return look


if __name__ == "__main__":
    main()
