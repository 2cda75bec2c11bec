"""Lanes: at once, in order, and no end of a lane leaves the others waiting."""

import threading

import numpy as np
import pytest

from agent.acquisition import Arrival, Handover
from agent.heartbeat import Progress
from agent.lanes import through_lanes
from agent.verdict import Trigger
from engine.frame import Frame

PIXELS = np.zeros((2, 2), np.uint8)


def arrival(number: int) -> Arrival:
    return Arrival(
        trigger=Trigger(sequence=number + 1, camera="main", part_id="", triggered_ns=0),
        frame=Frame(pixels=PIXELS, number=number, captured_ns=0),
        received=0.0,
    )


@pytest.fixture
def belt():
    """`belt(n)` is a handover that gets n arrivals and is closed then; without n it stays open."""
    threads, handovers = [], []

    def start(parts: int | None = None) -> Handover:
        handover = Handover(["main"])
        handovers.append(handover)

        def feed() -> None:
            for number in range(100 if parts is None else parts):
                handover.put(arrival(number))
            if parts is not None:
                handover.close()

        threads.append(threading.Thread(target=feed))
        threads[-1].start()
        return handover

    yield start
    for handover in handovers:
        handover.close()
    for thread in threads:
        thread.join(10)


def number_of(part: Arrival) -> int:
    return part.frame.number


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_all_parts_leave_once_and_in_order(belt, lanes):
    released = []
    through_lanes(belt(60), number_of, released.append, lanes=lanes, progress=Progress())
    assert released == list(range(60))


def test_two_parts_are_in_hand_at_once_and_the_earlier_leaves_first(belt):
    second_done, released = threading.Event(), []
    threads = set()

    def inspect(part: Arrival) -> int:
        threads.add(threading.get_ident())
        if part.frame.number == 0:
            assert second_done.wait(10), "part 1 was not inspected beside part 0"
        else:
            second_done.set()
        return part.frame.number

    through_lanes(belt(2), inspect, released.append, lanes=2, progress=Progress())
    assert released == [0, 1]
    assert len(threads) == 2


def test_a_part_does_not_wait_for_the_next_one_to_arrive():
    handover, released = Handover(["main"]), threading.Event()
    handover.put(arrival(0))

    def end() -> None:
        assert released.wait(10)
        handover.close()

    ending = threading.Thread(target=end)
    ending.start()
    through_lanes(handover, number_of, lambda _: released.set(), lanes=2, progress=Progress())
    ending.join()


def test_one_lane_is_the_calling_thread(belt):
    threads = []
    through_lanes(
        belt(3),
        lambda _part: threads.append(threading.get_ident()),
        lambda _found: threads.append(threading.get_ident()),
        lanes=1,
        progress=Progress(),
    )
    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("at", ["inspect", "release"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_an_error_ends_every_lane_although_the_camera_goes_on(belt, lanes, at):
    def fail_at(here: str, number: int) -> int:
        if here == at and number == 5:
            raise RuntimeError("a bug")
        return number

    released = []

    def release(number: int) -> None:
        released.append(fail_at("release", number))

    with pytest.raises(RuntimeError, match="a bug"):
        through_lanes(
            belt(),
            lambda part: fail_at("inspect", part.frame.number),
            release,
            lanes=lanes,
            progress=Progress(),
        )
    assert released == sorted(released)
    assert 5 not in released


def test_progress_is_that_of_the_oldest_part_in_hand(belt):
    progress, seen = Progress(), []
    both = threading.Barrier(2, timeout=10)

    def inspect(part: Arrival) -> None:
        both.wait()
        if part.frame.number == 1:
            seen.append(progress.in_hand_s())
        both.wait()

    through_lanes(belt(2), inspect, lambda _found: None, lanes=2, progress=progress)
    assert seen[0] > 0
    assert progress.in_hand_s() == 0
