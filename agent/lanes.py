"""Lanes: threads that inspect several parts at once; what they find leaves in order of arrival.

    handover ─▶ lane 1: inspect ─┐
             └▶ lane 2: inspect ─┴▶ release, one by one, in the order of the handover

While one lane makes views and looks for boxes, another has the network. A backend says how many
lanes it can serve. With one lane everything happens in the calling thread.
"""

import threading
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

    The calling thread is one of the lanes. `release` is called by one thread at a time, in the
    order in which the parts arrived, as soon as a part and all before it are done. Returns when
    there are no more arrivals and all are released. An error of either function closes
    `arrivals`, so that every lane ends, and is raised here.
    """
    taking, releasing = threading.Lock(), threading.Lock()
    parts = iter(arrivals)
    done: dict[int, _Found] = {}
    taken = due = 0

    def next_part() -> tuple[int, Arrival | None]:
        nonlocal taken
        with taking:
            arrival = next(parts, None)
            taken += 1
            return taken - 1, arrival

    def finish(number: int, found: _Found) -> None:
        nonlocal due
        with releasing:
            done[number] = found
            while due in done:
                due += 1
                release(done.pop(due - 1))

    def lane() -> None:
        try:
            while True:
                number, arrival = next_part()
                if arrival is None:
                    return
                progress.begin()
                finish(number, inspect(arrival))
                progress.end()
        except BaseException:
            arrivals.close()
            raise

    with ThreadPoolExecutor(max(1, lanes - 1), thread_name_prefix="atac-lane") as pool:
        others = [pool.submit(lane) for _ in range(lanes - 1)]
        lane()
    for other in others:
        other.result()
