"""Workers: threads that inspect several parts at once; parts leave in the order they came.

    queue ─▶ worker 1: inspect ─┐
         └─▶ worker 2: inspect ─┴▶ decide, one by one, each camera's in the order of the queue

While one worker makes views and boxes, another uses the network. A backend says how many workers it
can serve. With one worker everything happens in the calling thread.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from agent.part import Part
from agent.ports import Clock
from agent.station.queue import PartQueue


class Progress:
    """Since when each worker has been inspecting its part; read by other threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}

    def begin(self) -> None:
        """The calling thread begins with a part."""
        self._since[threading.get_ident()] = self._clock.now()

    def end(self) -> None:
        """The part has its verdict, and the verdict is on its way to the ledger."""
        del self._since[threading.get_ident()]

    def in_hand_s(self) -> float:
        """For how many seconds the oldest part has been with a worker; 0 while there is none."""
        # A copy: the workers continue meanwhile.
        since = tuple(self._since.values())
        return self._clock.now() - min(since) if since else 0.0


def run_workers(
    parts: PartQueue,
    life: Callable[[Part], Iterator[None]],
    *,
    workers: int,
    progress: Progress,
) -> None:
    """Take every part from the queue through `life`, `workers` parts at once.

    The calling thread is one of the workers. Returns when the queue has ended and all parts have
    left. An error in `life` closes the queue, so that every worker ends, and is raised here.

    Args:
        parts: The queue; ended by those who fill it.
        life: What happens to a part. Up to its one `yield` in a worker, beside other parts; what
            follows in one thread at a time, as soon as all earlier parts of the same camera are
            through: in the order in which a camera's parts came, and no camera waits for another.
        workers: How many parts are inspected at once.
        progress: Notes when a part is taken and when it has left.
    """
    taking, leaving = threading.Lock(), threading.Lock()
    coming = iter(parts)
    waiting: dict[tuple[str, int], Iterator[None]] = {}
    taken, left = Counter[str](), Counter[str]()

    def take() -> tuple[int, Part] | None:
        with taking:
            part = next(coming, None)
            if part is None:
                return None
            taken[part.camera] += 1
            return taken[part.camera], part

    def leave(camera: str, turn: int, rest: Iterator[None]) -> None:
        with leaving:
            waiting[camera, turn] = rest
            while (due := (camera, left[camera] + 1)) in waiting:
                left[camera] += 1
                next(waiting.pop(due), None)

    def work() -> None:
        try:
            while (found := take()) is not None:
                turn, part = found
                progress.begin()
                rest = life(part)
                next(rest)
                leave(part.camera, turn, rest)
                progress.end()
        except BaseException:
            parts.close()
            raise

    with ThreadPoolExecutor(max(1, workers - 1), thread_name_prefix="atac-worker") as pool:
        others = [pool.submit(work) for _ in range(workers - 1)]
        work()
    for other in others:
        other.result()
