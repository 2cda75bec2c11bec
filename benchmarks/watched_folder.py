"""How soon a watched folder's new image is seen, what watching costs, and how fast files are read.

    python -m benchmarks.watched_folder --files 50000

A folder with so many images, all of them inspected before, is watched. New ones are written, and
the time from the end of writing to the frame is measured; then the processor time of agent and
child together while nothing comes. Last, the same pictures are read by a folder camera,
by `read_image` and by Pillow alone, in turns.
"""

import argparse
import io
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from agent.cameras.folder import FolderCamera, FolderSettings
from agent.ports import CameraContext
from agent.synthetic.flange import part
from benchmarks.machine import described
from engine.frame import Pixels
from engine.image import read_image

READ = 200


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of watching while none comes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atac-watched-") as folder:
        found = watched(Path(folder), options.files, options.seconds)
    with tempfile.TemporaryDirectory(prefix="atac-read-") as folder:
        found |= read(Path(folder))
    print(json.dumps({"machine": described(), **found}, indent=2))


def watched(folder: Path, files: int, seconds: float) -> dict[str, object]:
    """Latencies of ten new images, and the share of a processor while none comes."""
    small = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
    for number in range(files):
        small.save(folder / f"{number:06d}.jpg")
    everything = CameraContext(stop=threading.Event(), recorded=Known())
    settings = FolderSettings(path=folder, after_last="watch")
    began = time.perf_counter()
    with FolderCamera(settings, everything) as camera:
        ready_s = time.perf_counter() - began
        everything.recorded.is_known = False
        latencies = []
        for number in range(10):
            written: list[float] = []

            def write(number: int, written: list[float]) -> None:
                time.sleep(0.5)
                Image.fromarray(part(0, number, 0.0).pixels).save(folder / f"new-{number}.jpg")
                written.append(time.perf_counter())

            writer = threading.Thread(target=write, args=(number, written))
            writer.start()
            assert camera.read() is not None
            seen = time.perf_counter()
            writer.join()
            latencies.append((seen - written[0]) * 1e3)
        processes = [psutil.Process(), psutil.Process(camera._child.pid)]  # noqa: SLF001
        before = sum(sum(each.cpu_times()[:2]) for each in processes)
        threading.Timer(seconds, everything.stop.set).start()
        camera.read()
        cpu = sum(sum(each.cpu_times()[:2]) for each in processes) - before
        child_mb = processes[1].memory_info().rss / 1e6
    return {
        "files": files,
        "ready_s": round(ready_s, 2),
        "seen_after_ms": {
            "median": round(float(np.median(latencies)), 1),
            "most": round(max(latencies), 1),
        },
        "watching_percent_of_a_core": round(100 * cpu / seconds, 2),
        "child_mb": round(child_mb),
    }


class Known:
    """A ledger that knows everything, then nothing."""

    def __init__(self) -> None:
        self.is_known = True

    def __call__(self, sources):  # noqa: ANN001, ANN204
        return set(sources) if self.is_known else set()


def read(folder: Path) -> dict[str, object]:
    """Images a second, by a folder camera and without one, in turns."""
    rates: dict[str, list[float]] = {"camera": [], "alone": [], "pillow": []}
    for number in range(READ):
        Image.fromarray(part(0, number, 0.0).pixels).save(folder / f"{number:03d}.jpg", quality=92)
    files = sorted(folder.iterdir())
    for _ in range(5):
        with FolderCamera(FolderSettings(path=folder), CameraContext()) as camera:
            camera.read()
            began = time.perf_counter()
            while camera.read() is not None:
                pass
            rates["camera"].append((READ - 1) / (time.perf_counter() - began))
        for name, one in (("alone", read_image), ("pillow", by_pillow)):
            began = time.perf_counter()
            for file in files:
                one(file)
            rates[name].append(READ / (time.perf_counter() - began))
    return {
        "images_per_second": {name: round(float(np.median(each))) for name, each in rates.items()}
    }


def by_pillow(file: Path) -> Pixels:
    """As it was before damage was noticed."""
    return np.array(Image.open(io.BytesIO(file.read_bytes())))


if __name__ == "__main__":
    main()
