"""A camera that hangs, freezes or gives garbage: noticed, said once, and done without."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.cameras.folder import FolderCamera, FolderSettings
from agent.cameras.video import VideoCamera, VideoSettings
from agent.clock import ManualClock
from agent.part import Part, Trigger
from agent.ports import CameraContext
from agent.station.acquisition import Acquisition, FrameIntake
from agent.station.queue import PartQueue
from engine.errors import CameraError, ImageError
from engine.frame import Frame
from tests.tiny_bundle import good_part

SILENCE_S = 0.4


class FaultyCamera:
    """A live camera that shows part after part, and does what `act(number)` does.

    An act may raise, wait, or give other pixels for the picture. What is `renewed` goes on.
    """

    triggered = True
    is_live = True
    silence_s = SILENCE_S
    fault = None

    def __init__(self, act, parts, number=0, opened=None):
        self.act = act
        self.parts = parts
        self.number = number
        self.opened = [] if opened is None else opened

    def __enter__(self):
        self.opened.append(self)
        return self

    def __exit__(self, *_error):
        self.opened.remove(self)

    def read(self):
        if self.number >= self.parts:
            return None
        self.number += 1
        pixels = self.act(self.number - 1)
        if pixels is None:
            pixels = good_part(self.number)
        return Frame(pixels=pixels, number=self.number - 1, captured_ns=time.time_ns())

    def renewed(self):
        return FaultyCamera(self.act, self.parts, self.number, self.opened)

    def part_id(self, number):
        return f"p{number}"

    def source(self, _number):
        return None


class Line:
    """Takes all that a camera gives: `good` part ids, and how the others `ended`."""

    def __init__(self, camera):
        self.good = []
        self.ended = []
        self._sequence = 0
        self.clock = ManualClock()
        self.stop = threading.Event()
        self.parts = PartQueue(["main"])
        intake = FrameIntake(
            "main", self.parts, begin=self.begin, end=self.end, clock=self.clock, waits=True
        )
        self.acquisition = Acquisition(
            "main", camera, intake, self.parts, stop=self.stop, clock=self.clock
        )
        self.thread = threading.Thread(target=self._run)

    def begin(self, camera, *, received, triggered_ns, part_id, source, is_dated=True):
        self._sequence += 1
        trigger = Trigger(sequence=self._sequence, camera=camera, triggered_ns=triggered_ns)
        return Part(trigger=trigger, received=received, part_id=part_id, source=source)

    def end(self, part, state, reason):
        self.ended.append((part.part_id, state.value, reason))

    def _run(self):
        with self.acquisition:
            for part in self.parts:
                self.good.append(part.part_id)

    def run(self):
        """Until the camera has ended; no time passes, unless its faults let it."""
        self.thread.start()
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self

    def let_time_pass(self, until):
        """A little at a time, so that what gets on is never taken for hanging."""
        for _ in range(20_000):
            if until():
                return
            self.clock.advance(0.1)
            time.sleep(0.001)
        raise AssertionError("it did not happen")


class Noting(list):
    """A list that tells of what is appended."""

    def __init__(self, tell):
        super().__init__()
        self.append = tell


def said(caplog):
    return [record.message for record in caplog.records if record.name == "atac_agent.camera"]


def test_a_read_that_does_not_return_is_left_and_another_camera_goes_on(caplog, eventually):
    released, hangs = threading.Event(), threading.Event()

    def hang(number):
        if number == 2 and not released.is_set():
            hangs.set()
            released.wait(60)

    before = threading.active_count()
    camera = FaultyCamera(hang, parts=5)
    line = Line(camera)
    line.thread.start()
    try:
        assert hangs.wait(60)
        line.let_time_pass(lambda: said(caplog))
        line.thread.join(60)
    finally:
        released.set()
    # The number that was taken when the read began is the hanging one's; the next goes on.
    assert line.good == ["p0", "p1", "p3", "p4"]
    assert line.ended == []
    assert said(caplog) == [
        f"camera main: has not answered for {SILENCE_S} s; trying again until it is back",
        "camera main: is back",
    ]
    # What was left has let go.
    eventually(lambda: threading.active_count() <= before and not camera.opened)


def test_no_more_than_three_reads_are_left_behind(caplog):
    released = threading.Event()
    names = []

    def hang(number):
        names.append(threading.current_thread().name)
        released.wait(60)

    line = Line(FaultyCamera(hang, parts=100))
    line.thread.start()
    line.let_time_pass(lambda: len(names) == 4)
    until = line.clock.now() + 100 * SILENCE_S
    line.let_time_pass(lambda: line.clock.now() > until)
    assert line.acquisition.fault.startswith("has not answered")
    assert len(names) == 4
    released.set()
    line.stop.set()
    line.thread.join(60)
    assert not line.thread.is_alive()
    assert len(said(caplog)) <= 2


def test_a_hanging_camera_does_not_keep_the_agent_from_stopping():
    released = threading.Event()
    hangs = threading.Event()

    def hang(_number):
        hangs.set()
        released.wait(60)

    line = Line(FaultyCamera(hang, parts=3))
    line.thread.start()
    assert hangs.wait(60)
    line.stop.set()
    line.let_time_pass(lambda: not line.thread.is_alive())
    released.set()


def test_a_frozen_picture_is_an_error_each_time_and_never_looked_at(caplog):
    still = good_part(99)
    line = Line(FaultyCamera(lambda number: still if 2 <= number < 6 else None, parts=8)).run()
    assert line.good == ["p0", "p1", "p2", "p6", "p7"]  # the first of them was new
    reason = "the camera shows the same picture again"
    assert line.ended == [(f"p{number}", "ERROR", reason) for number in (3, 4, 5)]
    assert said(caplog) == []


def test_a_camera_that_stays_frozen_is_connected_anew(caplog):
    still = good_part(99)
    thawed = threading.Event()

    def freeze(number):
        line.clock.advance(0.1)
        return None if thawed.is_set() or number == 0 else still

    class Camera(FaultyCamera):
        silence_s = None

        def __exit__(self, *error):
            thawed.set()
            super().__exit__(*error)

    line = Line(Camera(freeze, parts=10_000))
    line.thread.start()
    line.let_time_pass(lambda: "camera main: is back" in said(caplog))
    line.stop.set()
    line.thread.join(60)
    assert said(caplog)[0].startswith(
        "camera main: the camera shows the same picture again; trying"
    )
    assert len(said(caplog)) == 2
    assert not {part for part, *_ in line.ended} & set(line.good)


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (np.zeros((4, 4, 3), np.float32), "gave float32 (4, 4, 3)"),
        (np.zeros((4, 4, 4), np.uint8), "gave uint8 (4, 4, 4)"),
        (np.zeros(9, np.uint8), "gave uint8 (9,)"),
        (np.zeros((0, 0), np.uint8), "a picture of 0×0 pixels"),
        (np.broadcast_to(np.uint8(1), (20_000, 20_000)), "a picture of 20000×20000 pixels"),
    ],
)
def test_garbage_ends_its_part_as_error(garbage, reason):
    line = Line(FaultyCamera(lambda number: garbage if number == 1 else None, parts=3)).run()
    assert line.good == ["p0", "p2"]
    ((part, state, told),) = line.ended
    assert (part, state) == ("p1", "ERROR")
    assert reason in told


def test_pictures_of_a_folder_may_repeat_and_may_all_be_bad():
    """What is not live is never connected anew for what it shows, which would change nothing."""
    still = good_part(1)

    def fault(number):
        if number in {4, 5, 6}:
            line.clock.advance(5.0)
            raise ImageError(f"{number}.png", "is damaged")
        return still

    camera = FaultyCamera(fault, parts=8)
    camera.is_live = False
    camera.silence_s = None
    line, seen = Line(camera), []
    line.ended = Noting(lambda end: seen.append((end[0], line.acquisition.fault)))
    line.run()
    assert line.good == ["p0", "p1", "p2", "p3", "p7"]
    assert [fault for _, fault in seen] == [None, None, "5.png: is damaged"]
    assert line.acquisition.fault is None


def test_a_camera_that_goes_away_keeps_being_tried():
    left = iter([CameraError("gone")] * 3)

    def go(number):
        if number == 1 and (error := next(left, None)):
            camera.number -= 1
            raise error

    camera = FaultyCamera(go, parts=3)
    camera.silence_s = None
    line = Line(camera)
    line.thread.start()
    line.let_time_pass(lambda: not line.thread.is_alive())
    assert line.good == ["p0", "p1", "p2"]


def test_a_camera_that_waits_for_parts_is_back_before_the_first_of_them(caplog):
    part = threading.Event()

    def act(number):
        if number == 1 and not part.is_set():
            if not said(caplog):
                camera.number -= 1
                raise CameraError("gone")
            assert part.wait(60)

    camera = FaultyCamera(act, parts=2)
    camera.silence_s = None
    line = Line(camera)
    line.thread.start()
    line.let_time_pass(lambda: len(said(caplog)) == 2)
    assert said(caplog) == [
        "camera main: gone; trying again until it is back",
        "camera main: is back",
    ]
    assert line.acquisition.fault is None
    part.set()
    line.let_time_pass(lambda: not line.thread.is_alive())
    assert line.good == ["p0", "p1"]


def test_every_camera_goes_on_where_it_was_when_renewed(tmp_path):
    conveyor = ConveyorCamera(ConveyorSettings(parts=3), CameraContext())
    with conveyor:
        conveyor.read()
    with conveyor.renewed() as again:
        assert [again.read().number, again.read().number, again.read()] == [1, 2, None]

    for number in range(3):
        Image.fromarray(good_part(number)).save(tmp_path / f"{number}.png")
    folder = FolderCamera(FolderSettings(path=tmp_path), CameraContext())
    with folder:
        folder.read()
    with folder.renewed() as again:
        frame = again.read()
        assert (frame.number, again.part_id(1)) == (1, "1.png")
        assert folder.part_id(1) is None  # nothing is shared

    video = VideoCamera(VideoSettings(path=Path("none.mp4")), CameraContext())
    assert video.renewed() is not video
    assert (video.is_live, folder.is_live, conveyor.is_live) == (False, False, True)


@pytest.mark.parametrize(("per_minute", "silence_s"), [(None, 2.0), (600, 2.0), (6, 30.0)])
def test_how_long_a_camera_may_be_silent(per_minute, silence_s):
    assert (
        ConveyorCamera(ConveyorSettings(parts_per_minute=per_minute), CameraContext()).silence_s
        == silence_s
    )
    watched = FolderSettings(path=Path(), after_last="watch")
    assert (
        FolderCamera(watched, CameraContext()).silence_s is None
    )  # its child is watched by itself
