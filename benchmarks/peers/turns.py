"""What this product's environment and the peers' share: turns, and how a failure is told."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

PEERS = Path("build/peers")
EXPORTS = "exports.json"
SIDE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one contender did in its turn. `passes_per_second` is the sum over its lanes."""

    parts: int
    passes: int
    passes_per_second: float


def turn(look: Callable[[Any], int], frames: Sequence[Any], *, lanes: int, seconds: float) -> Turn:
    """As many frames as `lanes` threads can look at in `seconds`; `look` says its passes.

    Each lane looks once before its time begins, and finishes the part that it has begun. Its rate
    is over its own time: a lane that waits for the other's last part has lost nothing.
    """
    numbers = count()

    def lane() -> tuple[int, int, float]:
        look(frames[0])
        parts = passes = 0
        began = now = perf_counter()
        while now < began + seconds:
            passes += look(frames[next(numbers) % len(frames)])
            parts += 1
            now = perf_counter()
        return parts, passes, passes / max(now - began, 1e-9)

    with ThreadPoolExecutor(lanes) as pool:
        done = [each.result() for each in [pool.submit(lane) for _ in range(lanes)]]
    parts, passes, rates = zip(*done, strict=True)
    return Turn(parts=sum(parts), passes=sum(passes), passes_per_second=sum(rates))


def told(error: object) -> str:
    """A failure in one line for a result that others read: no folder or host of this machine."""
    text = " ".join(str(error).split())
    text = re.sub(r"\w+://\S+", "…", text)
    text = re.sub(r"(?<![\w./])/(?=\S)(?:[^\s:'\",]*/)?", "", text)[:200]
    return f"{type(error).__name__}: {text}" if isinstance(error, Exception) else text
