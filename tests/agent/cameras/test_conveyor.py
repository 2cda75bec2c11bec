"""The conveyor shows the parts of its seed, at its pace."""

import threading
import time

import numpy as np

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.clock import ManualClock
from agent.ports import CameraContext
from agent.registry import open_camera
from agent.synthetic.flange import DEFECTS, part


def test_the_camera_shows_what_its_truth_says_and_about_as_many_defects_as_asked_for():
    settings = ConveyorSettings(seed=2, defect_rate=0.25, parts=6)
    camera = open_camera(settings)
    assert camera.triggered
    with camera:
        frames = []
        while (frame := camera.read()) is not None:
            frames.append(frame)
    assert [frame.number for frame in frames] == list(range(6))
    for frame in frames:
        assert np.array_equal(frame.pixels, part(2, frame.number, 0.25).pixels)
    conveyor = ConveyorCamera(settings, CameraContext())
    truths = [conveyor.truth(number) for number in range(2000)]
    assert 430 <= sum(kind != "good" for kind in truths) <= 570
    assert set(truths) == {"good", *DEFECTS}


def test_a_belt_with_a_rate_brings_a_part_each_interval_and_ends_when_it_is_stopped():
    clock, stop = ManualClock(), threading.Event()
    settings = ConveyorSettings(parts_per_minute=60)
    with ConveyorCamera(settings, CameraContext(stop=stop, clock=clock)) as camera:
        assert camera.read().captured_ns == clock.utc_ns()
        seen = []
        waiting = threading.Thread(target=lambda: seen.extend([camera.read(), camera.read()]))
        waiting.start()
        while not clock.waiting:
            time.sleep(0.001)
        assert seen == []
        clock.advance(1.0)
        stop_when_waiting(clock, stop)
        waiting.join()
    assert [frame and frame.number for frame in seen] == [1, None]


def stop_when_waiting(clock, stop):
    """Stop it in its wait for the third part."""
    while clock.waiting:
        time.sleep(0.001)
    while not clock.waiting:
        time.sleep(0.001)
    stop.set()
