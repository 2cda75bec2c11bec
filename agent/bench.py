"""How fast a bundle is on this machine."""

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

from engine.backends import Backend
from engine.bundle import Manifest


def bare_rate(backend: Backend, manifest: Manifest, *, seconds: float) -> float:
    """Passes a second of the network alone: every lane runs one view over and over."""
    side = manifest.view.side
    view = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    backend.run(view)  # the first run allocates
    began = perf_counter()
    until = began + seconds

    def lane() -> int:
        passes = 0
        while perf_counter() < until:
            backend.run(view)
            passes += 1
        return passes

    with ThreadPoolExecutor(backend.lanes) as pool:
        lanes = [pool.submit(lane) for _ in range(backend.lanes)]
        passes = sum(each.result() for each in lanes)
    return passes / (perf_counter() - began)
