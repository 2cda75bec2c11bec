"""A camera of Video4Linux2. There is no device here: all but its frames."""

import os
import threading

import numpy as np
import pytest

from agent.camera_child.capture import Capture
from agent.camera_child.wire import GoneError
from agent.cameras import v4l2
from agent.registry import open_camera
from agent.settings import load_config
from engine.errors import CameraError


def test_a_device_that_is_not_there_is_said(tmp_path):
    settings = v4l2.V4l2Settings(device=tmp_path / "video0", width=640, height=480, fourcc="MJPG")
    with pytest.raises(CameraError, match="video0 gives no stream within 5 s; check that"):
        open_camera(settings, threading.Event()).__enter__()


def test_devices_are_listed_by_their_names(tmp_path, monkeypatch):
    (tmp_path / "video2").mkdir()
    (tmp_path / "video2" / "name").write_text("HD Webcam: HD Webcam\n")
    monkeypatch.setattr(v4l2, "_NAMES", tmp_path)
    (camera,) = v4l2.found()
    assert camera.title == "HD Webcam: HD Webcam, /dev/video2"
    assert camera.settings == {"type": "v4l2", "device": "/dev/video2"}


def test_a_configuration_names_device_and_format(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\n"
        "camera: {type: v4l2, device: /dev/video0, width: 1920, height: 1080, fourcc: MJPG}\n"
    )
    (camera,) = load_config(path).cameras
    assert (camera.width, camera.height, camera.fourcc) == (1920, 1080, "MJPG")


class Played:
    """What OpenCV gives, by a script: pictures, then nothing more until it is let go."""

    def __init__(self, *pictures):
        self.pictures, self.over = list(pictures), threading.Event()

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def read(self):
        if not self.pictures:
            self.over.wait(60)
            return False, None
        return True, self.pictures.pop(0)


def read_on(capture):
    """Wait for frames until the device says what is wrong."""
    while capture.next(0.1) is None:
        pass


@pytest.fixture
def memory():
    file = os.memfd_create("test")
    yield file
    os.close(file)


def test_only_what_is_given_counts_and_silence_is_said(memory, eventually):
    pictures = [np.full((4, 6, 3), value, np.uint8) for value in range(5)]
    played = Played(*pictures)
    capture = Capture(memory, lambda: played, remedy="x", open_s=1, silent_s=0.2)
    assert capture.open(lambda: None)["pixel_format"] == "BGR8"
    eventually(lambda: not played.pictures)
    told = capture.next(1)
    assert (told["block_id"], told["width"], told["height"]) == (1, 6, 4)
    assert bytes(capture._slots.view(told["frame"])[:72]) == pictures[-1].tobytes()
    capture.free(told["frame"])
    with pytest.raises(GoneError, match="gives no more frames"):
        read_on(capture)
    played.over.set()
