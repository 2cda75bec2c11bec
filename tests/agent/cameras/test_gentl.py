"""A camera by a GenTL producer: the one that comes with genicam, whose three cameras are drawn."""

import os
import signal
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from agent.cameras.gentl import GentlSettings, found
from agent.ports import CameraContext
from agent.registry import open_camera
from agent.settings import load_config
from agent.triggers.software import SoftwareSettings
from engine.errors import CameraError, ConfigurationError
from tests.agent.cameras.set_up import follows_products

pytest.importorskip("harvesters", reason="needs harvesters: pip install '.[gentl]'")
PRODUCER = Path(find_spec("genicam").origin).with_name("viky.cti")
_FAST = {"AcquisitionFrameRate": 200.0, "Width": 120}


@pytest.fixture
def stop():
    """Set in the end, also of a test that would wait for ever."""
    stop = threading.Event()
    watchdog = threading.Timer(120, stop.set)
    watchdog.start()
    yield stop
    watchdog.cancel()


def settings_of(**more):
    features = _FAST | more.pop("features", {})
    return GentlSettings(producer=PRODUCER, features=features, **({"device": "1"} | more))


def read_on(camera):
    """Read until the camera says what is wrong."""
    while camera.read():
        pass


def test_frames_come_with_their_ids_and_features_are_as_written(stop):
    with open_camera(settings_of(), stop) as camera:
        assert not camera.triggered
        assert (camera.opened.model, camera.opened.serial) == ("Viky", "1")
        assert camera.opened.features["Width"] == 120
        frames = [camera.read() for _ in range(5)]
    assert {frame.pixels.shape[1:] for frame in frames} == {(120, 3)}
    assert all(frame.block_id > 0 for frame in frames)
    assert [frame.block_id for frame in frames] == sorted({frame.block_id for frame in frames})
    assert {frame.device_id for frame in frames} == {"1"}
    # The second camera draws in green.
    assert frames[0].pixels[..., 1].mean() > frames[0].pixels[..., 0].mean()


def test_it_is_set_up_for_another_product_while_it_runs(stop):
    features = {"cola": (("Width", 200),), "lemon": (("Width", 100),), "beer": (("Width", 7),)}
    with open_camera(settings_of(), stop, features=features) as camera:
        follows_products(camera, 200, 100, "does not take features.Width 7")


def test_a_mono_format_gives_mono_frames(stop):
    settings = settings_of(device="VikyTL_DEV_red", features={"PixelFormat": "Mono8"})
    with open_camera(settings, stop) as camera:
        assert camera.read().pixels.ndim == 2


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"Width": 7}, r"features\.Width: 7: write a whole number from 100 to 800"),
        ({"AcquisitionFrameRate": "x"}, "write a number from 1 to 200"),
        ({"PixelFormat": "Mono12"}, "write RGBa8 or Mono8"),
        ({"Exposure": 4}, "the camera has no such feature"),
    ],
)
def test_a_feature_that_cannot_be_written_is_refused_with_what_can(stop, features, said):
    with pytest.raises(ConfigurationError, match=said):
        open_camera(settings_of(features=features), stop).__enter__()


@pytest.mark.parametrize(
    ("device", "said"),
    [("CAM9", "was not found: write device: with one of 0, 1, 2"), (None, "among 3 cameras")],
)
def test_a_camera_that_is_not_there_or_not_named_is_said(stop, device, said):
    with pytest.raises(CameraError, match=said):
        open_camera(settings_of(device=device), stop).__enter__()


def test_what_is_no_producer_is_said(stop, tmp_path):
    for name in ("none.cti", "text.cti"):
        (tmp_path / "text.cti").write_text("no library")
        settings = GentlSettings(producer=tmp_path / name)
        with pytest.raises(CameraError, match="is no usable producer"):
            open_camera(settings, stop).__enter__()


def test_a_child_that_is_killed_costs_its_camera_alone(stop):
    camera = open_camera(settings_of(), stop)
    with camera:
        camera.read()
        os.kill(camera._child.pid, signal.SIGKILL)
        with pytest.raises(CameraError, match="was ended by SIGKILL"):
            read_on(camera)
    with camera:
        assert camera.read() is not None


def test_cameras_are_found_where_installers_say(monkeypatch, tmp_path):
    (tmp_path / "viky.cti").symlink_to(PRODUCER)
    monkeypatch.setenv("GENICAM_GENTL64_PATH", f"{tmp_path}{os.pathsep}{tmp_path / 'none'}")
    cameras = found()
    assert [each.settings["device"] for each in cameras] == ["0", "1", "2"]
    assert {each.settings["producer"] for each in cameras} == {str(tmp_path / "viky.cti")}
    assert "Viky" in cameras[0].title


def test_a_configuration_names_producer_and_features(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\n"
        "camera: {type: gentl, producer: maker.cti, features: {TriggerMode: On, "
        "TriggerSource: Line1}}\n"
    )
    (camera,) = load_config(path).cameras
    assert camera.producer == tmp_path / "maker.cti"
    assert camera.is_triggered
    assert not camera.is_fired
    with pytest.raises(ValueError, match="needs a trigger that announces parts"):
        settings_of(features={"TriggerMode": True, "TriggerSource": "Software"})
    fired = settings_of(
        features={"TriggerMode": True, "TriggerSource": "Software"}, trigger=SoftwareSettings()
    )
    assert fired.is_fired
    assert open_camera(fired, CameraContext().stop).fires
