"""Lanes: threads that inspect several parts at once; what they find leaves in order of arrival.

    handover ─▶ lane 1: inspect ─┐
             └▶ lane 2: inspect ─┴▶ release, one by one, each camera's in the order of the handover

While one lane makes views and looks for boxes, another has the network. A backend says how many
lanes it can serve. With one lane everything happens in the calling thread.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agent.acquisition import Arrival, Handover
from agent.heartbeat import Progress

_Found = TypeVar("_Found")


def through_lanes(
    arrivals: Handover,
    inspect: Callable[[Arrival], _Found],
    release: Callable[[_Found], None],
    *,
    lanes: int,
    progress: Progress,
) -> None:
    """Give every arrival to `inspect`, in one of `lanes` threads, and what it finds to `release`.

    The calling thread is one of the lanes. `release` is called by one thread at a time, as soon as
    a part and all of its camera before it are done: in the order in which a camera's parts arrived,
    and no camera waits for another's. Returns when there are no more arrivals and all are released.
    An error of either function closes `arrivals`, so that every lane ends, and is raised here.
    """
    taking, releasing = threading.Lock(), threading.Lock()
    parts = iter(arrivals)
    done: dict[tuple[str, int], _Found] = {}
    taken, released = Counter[str](), Counter[str]()

    def next_part() -> tuple[int, Arrival | None]:
        with taking:
            arrival = next(parts, None)
            if arrival is None:
                return 0, None
            taken[arrival.trigger.camera] += 1
            return taken[arrival.trigger.camera], arrival

    def finish(camera: str, number: int, found: _Found) -> None:
        with releasing:
            done[camera, number] = found
            while (due := (camera, released[camera] + 1)) in done:
                released[camera] += 1
                release(done.pop(due))

    def lane() -> None:
        try:
            while True:
                number, arrival = next_part()
                if arrival is None:
                    return
                progress.begin()
                finish(arrival.trigger.camera, number, inspect(arrival))
                progress.end()
        except BaseException:
            arrivals.close()
            raise

    with ThreadPoolExecutor(max(1, lanes - 1), thread_name_prefix="atac-lane") as pool:
        others = [pool.submit(lane) for _ in range(lanes - 1)]
        lane()
    for other in others:
        other.result()
