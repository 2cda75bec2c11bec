"""What a process holds: threads, open files, resident memory. For figures that nothing may grow."""

import gc
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a process holds at one moment."""

    threads: int
    files: int
    rss_kb: int


def held(pid: int | str = "self") -> Held:
    """What a process holds now; garbage is collected first where it is this one."""
    if pid == "self":
        gc.collect()
    process = Path("/proc") / str(pid)
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    assert "VmRSS" in status, f"process {pid} has ended"
    return Held(
        threads=int(status["Threads"]),
        files=len(list((process / "fd").iterdir())),
        rss_kb=int(status["VmRSS"].split()[0]),
    )


def slope(times_s: list[float], sizes_kb: list[int]) -> float:
    """Growth in MB an hour: the median slope between samples half of the time apart (Theil–Sen)."""
    half = len(sizes_kb) // 2
    times, sizes = np.asarray(times_s), np.asarray(sizes_kb, float)
    slopes = (sizes[half:] - sizes[: len(sizes) - half]) / (
        times[half:] - times[: len(times) - half]
    )
    return float(np.median(slopes)) * 3600 / 1000
