"""Workers: at once, in order, and no end of a worker leaves the others waiting."""

import threading
from collections.abc import Callable

import pytest

from agent.clock import ManualClock
from agent.part import Part
from agent.station.queue import PartQueue
from agent.station.workers import Progress, run_workers
from tests.agent.parts import part


def through(parts, inspect: Callable[[Part], object], leave: Callable[..., object], workers=1):
    """Lead parts through `inspect` beside others, and what it gives through `leave` in order."""

    def life(one):
        found = inspect(one)
        yield
        leave(found)

    progress = Progress(ManualClock())
    run_workers(parts, life, workers=workers, progress=progress)
    return progress


@pytest.fixture
def belt():
    """`belt(n)` is a queue that gets n parts and is closed then; without n it stays open."""
    threads, queues = [], []

    def start(count: int | None = None) -> PartQueue:
        parts = PartQueue(["main"])
        queues.append(parts)

        def feed() -> None:
            for number in range(100 if count is None else count):
                parts.put(part(number + 1))
            if count is not None:
                parts.close()

        threads.append(threading.Thread(target=feed))
        threads[-1].start()
        return parts

    yield start
    for parts in queues:
        parts.close()
    for thread in threads:
        thread.join(60)


def number_of(one: Part) -> int:
    return one.frame.number


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_all_parts_leave_once_and_in_order(belt, workers):
    released = []
    through(belt(60), number_of, released.append, workers)
    assert released == list(range(60))


def test_two_parts_are_in_hand_at_once_and_the_earlier_leaves_first(belt):
    second_done, released = threading.Event(), []
    threads = set()

    def inspect(one: Part) -> int:
        threads.add(threading.get_ident())
        if one.frame.number == 0:
            assert second_done.wait(60), "part 1 was not inspected beside part 0"
        else:
            second_done.set()
        return one.frame.number

    through(belt(2), inspect, released.append, 2)
    assert released == [0, 1]
    assert len(threads) == 2


def test_a_part_does_not_wait_for_the_next_one_to_arrive():
    parts, released = PartQueue(["main"]), threading.Event()
    parts.put(part())

    def end() -> None:
        assert released.wait(60)
        parts.close()

    ending = threading.Thread(target=end)
    ending.start()
    through(parts, number_of, lambda _: released.set(), 2)
    ending.join()


def test_one_worker_is_the_calling_thread(belt):
    threads = []
    through(
        belt(3),
        lambda _part: threads.append(threading.get_ident()),
        lambda _found: threads.append(threading.get_ident()),
    )
    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("at", ["inspect", "release"])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_ends_every_worker_although_the_camera_goes_on(belt, workers, at):
    def fail_at(here: str, number: int) -> int:
        if here == at and number == 5:
            raise RuntimeError("a bug")
        return number

    released = []

    def release(number: int) -> None:
        released.append(fail_at("release", number))

    with pytest.raises(RuntimeError, match="a bug"):
        through(belt(), lambda one: fail_at("inspect", one.frame.number), release, workers)
    assert released == sorted(released)
    assert 5 not in released


def test_progress_is_that_of_the_oldest_part_in_hand(belt):
    clock, seen = ManualClock(), []
    progress = Progress(clock)
    both = threading.Barrier(2, timeout=60)

    def life(one):
        both.wait()
        if one.frame.number == 1:
            clock.advance(3.0)
            seen.append(progress.in_hand_s())
        both.wait()
        yield

    run_workers(belt(2), life, workers=2, progress=progress)
    assert seen == [3.0]
    assert progress.in_hand_s() == 0


def test_a_part_in_hand_holds_up_its_own_camera_s_verdicts_only():
    parts, released = PartQueue(["slow", "fast"]), []
    last = threading.Event()
    for number in (1, 2):
        for camera in ("slow", "fast"):
            parts.put(part(number, camera=camera))
    parts.close()

    def inspect(one):
        if (one.camera, one.frame.number) == ("slow", 0):
            assert last.wait(60), "the others were not released beside it"
        return one.camera, one.frame.number

    def release(found):
        released.append(found)
        if found == ("fast", 1):
            last.set()

    through(parts, inspect, release, 2)
    assert released == [("fast", 0), ("fast", 1), ("slow", 0), ("slow", 1)]
