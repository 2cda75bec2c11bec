"""A pace keeps its rate, and does not run faster to catch up."""

import threading
import time

from agent.cameras.pace import Pace, PacedCamera, interval_s
from agent.clock import ManualClock
from agent.ports import CameraContext


def ticks(pace: Pace, clock: ManualClock, seconds: float) -> int:
    """How many ticks come without waiting, then how far the clock has to go for the next."""
    count = 0
    thread_done = threading.Event()

    def run():
        nonlocal count
        while count < 50 and pace.wait():
            count += 1
        thread_done.set()

    threading.Thread(target=run, daemon=True).start()
    while not clock.waiting and not thread_done.is_set():
        time.sleep(0.001)
    clock.advance(seconds)
    return count


def test_a_pace_does_not_run_faster_to_catch_up():
    clock = ManualClock()
    pace = Pace(1.0, CameraContext(clock=clock))
    clock.advance(100.0)  # as after a long stall
    assert ticks(pace, clock, 0.0) == 1


def test_without_a_rate_there_is_no_wait():
    clock = ManualClock()
    stop = threading.Event()
    pace = Pace(interval_s(None), CameraContext(clock=clock, stop=stop))
    assert all(pace.wait() for _ in range(1000))
    stop.set()
    assert not pace.wait()
    assert interval_s(120) == 0.5


def test_frames_are_counted_and_the_newest_hundred_have_names():
    camera = PacedCamera(CameraContext())
    for number in range(150):
        camera.count(f"{number}.png", f"source {number}")
    assert (camera.part_id(149), camera.source(149)) == ("149.png", "source 149")
    assert (camera.part_id(40), camera.source(40)) == (None, None)
    assert camera.number == 150
