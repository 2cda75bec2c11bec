"""A camera by pylon: its own emulation of two cameras, which fails buffers when it is told to."""

import os
import signal
import threading
from importlib.util import find_spec

import pytest

from agent.cameras import basler
from agent.cameras.basler import BaslerSettings
from agent.registry import open_camera
from agent.triggers.software import SoftwareSettings
from engine.errors import CameraError, ConfigurationError
from tests.agent.cameras.set_up import follows_products

emulated = pytest.mark.skipif(
    find_spec("pypylon") is None,
    reason="needs pylon (proprietary, 240 MB): pip install '.[basler]'",
)
_SMALL = {"PixelFormat": "Mono8", "Width": 64, "Height": 48, "AcquisitionFrameRate": 50.0}
_SOFTWARE = {"TriggerSelector": "FrameStart", "TriggerMode": "On", "TriggerSource": "Software"}


@pytest.fixture(autouse=True)
def _emulation(monkeypatch):
    monkeypatch.setenv("PYLON_CAMEMU", "2")


@pytest.fixture
def stop():
    """Set in the end, also of a test that would wait for ever."""
    stop = threading.Event()
    watchdog = threading.Timer(120, stop.set)
    watchdog.start()
    yield stop
    watchdog.cancel()


def settings_of(device="0815-0000", **features):
    trigger = SoftwareSettings() if features.get("TriggerSource") == "Software" else None
    return BaslerSettings(device=device, features=_SMALL | features, trigger=trigger)


def read_on(camera):
    """Read until the camera says what is wrong."""
    while camera.read():
        pass


@emulated
def test_the_camera_exposes_when_it_is_told_to(stop):
    with open_camera(settings_of(**_SOFTWARE), stop) as camera:
        assert camera.triggered
        assert camera.opened.serial == "0815-0000"
        frames = []
        for _ in range(3):
            camera.fire()
            frames.append(camera.read())
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert {(frame.device_id, frame.pixels.shape) for frame in frames} == {("0815-0000", (48, 64))}
    assert all(frame.exposure_us for frame in frames)


@emulated
def test_it_is_set_up_for_another_product_while_it_runs(stop):
    features = {"cola": (("Width", 64),), "lemon": (("Width", 32),), "beer": (("Width", 5000),)}
    with open_camera(settings_of(TriggerMode="Off"), stop, features=features) as camera:
        follows_products(camera, 64, 32, "does not take features.Width 5000")


@emulated
def test_a_buffer_that_failed_is_a_frame_that_may_not_be_inspected(stop):
    features = {"TriggerMode": "Off", "ForceFailedBufferCount": 3, "ForceFailedBuffer": True}
    with open_camera(settings_of(**features), stop) as camera:
        frames = [camera.read() for _ in range(8)]
    problems = [frame.problem for frame in frames if frame.problem]
    assert len(problems) == 3
    assert "the frame is incomplete" in problems[0]
    assert any(frame.problem is None and frame.pixels.shape == (48, 64) for frame in frames)


@emulated
@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"Width": 5000}, r"features\.Width: 5000: write a whole number from 1 to 4096"),
        ({"PixelFormat": "Mono7"}, "write Mono8 or"),
        ({"Exposure": 4}, "the camera has no such feature"),
    ],
)
def test_a_feature_that_cannot_be_written_is_refused_with_what_can(stop, features, said):
    with pytest.raises(ConfigurationError, match=said):
        open_camera(settings_of(**features), stop).__enter__()


@emulated
def test_a_camera_that_is_not_there_or_dies_costs_itself_alone(stop):
    with pytest.raises(CameraError, match="write device: with one of 0815-0000, 0815-0001"):
        open_camera(settings_of("40012345"), stop).__enter__()
    camera = open_camera(settings_of(TriggerMode="Off"), stop)
    with camera:
        camera.read()
        os.kill(camera._child.pid, signal.SIGKILL)
        with pytest.raises(CameraError, match="was ended by SIGKILL"):
            read_on(camera)
    with camera:
        assert camera.read() is not None


@emulated
def test_cameras_are_found():
    assert [each.settings for each in basler.found()] == [
        {"type": "basler", "device": "0815-0000"},
        {"type": "basler", "device": "0815-0001"},
    ]


def test_without_pylon_nothing_is_found_and_the_remedy_is_said(monkeypatch, stop):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert basler.found() == []
    with pytest.raises(ConfigurationError, match="needs pypylon; install it with"):
        open_camera(settings_of(), stop)
