"""A GigE Vision camera over a cable: its frames, its features, and how it is found."""

import time

import cv2
import pytest
from pydantic import ValidationError
from typer import Typer
from typer.testing import CliRunner

from agent.camera_child.device import BlockIds
from agent.cameras.genicam import GenicamSettings, found
from agent.commands.cameras import cameras, lines
from agent.doctor import examine
from agent.ports import CameraContext
from agent.registry import open_camera
from agent.settings import load_config
from agent.triggers.software import SoftwareSettings
from engine.errors import CameraError, ConfigurationError

pytest_plugins = ["tests.gige"]
_SOFTWARE = {"TriggerMode": "On", "TriggerSource": "Software"}


def whole(camera):
    """The next frame that came complete: on a busy machine packets may be lost."""
    while (frame := camera.read()).problem is not None:
        pass
    return frame


def diagnosed(path):
    """What doctor says of the camera, from a frame that came complete."""
    while True:
        (finding,) = (each for each in examine(path) if each.check == "camera")
        if "such parts end as ERROR" not in finding.message:
            return finding


def application():
    application = Typer()
    application.command()(cameras)
    return application


def test_frames_carry_what_the_camera_says_of_them_over_the_wrap_of_its_ids(opened, gige):
    with opened(TriggerMode="Off") as camera:
        assert (camera.opened.model, camera.opened.serial) == ("Fake", gige.serial)
        assert not camera.triggered
        frames = [whole(camera) for _ in range(150)]
    ids = [frame.block_id for frame in frames]
    assert ids[0] < 65_535 < ids[-1]
    assert ids == sorted(set(ids))
    assert [frame.number for frame in frames] == [block_id - ids[0] for block_id in ids]
    assert {(frame.device_id, frame.exposure_us, frame.pixels.shape) for frame in frames} == {
        (gige.serial, 10_000.0, (48, 64))
    }
    times = [frame.device_ns for frame in frames]
    assert times == sorted(times)
    assert all(abs(frame.captured_ns - time.time_ns()) < 60e9 for frame in frames)
    assert len({frame.pixels.tobytes() for frame in frames}) > 100


@pytest.mark.parametrize(
    ("pixel_format", "code"),
    [
        ("BayerRG8", cv2.COLOR_BayerRGGB2RGB),
        ("BayerGR8", cv2.COLOR_BayerGRBG2RGB),
        ("BayerGB8", cv2.COLOR_BayerGBRG2RGB),
        ("BayerBG8", cv2.COLOR_BayerBGGR2RGB),
        ("RGB8", None),
        ("Mono16", None),
    ],
)
def test_each_pixel_format_of_the_camera_arrives(opened, context, pixel_format, code):
    raw = CameraContext(stop=context.stop, takes_bayer=lambda: True)
    with opened(context=raw, TriggerMode="Off", PixelFormat=pixel_format) as camera:
        frame = whole(camera)
    is_colour = pixel_format == "RGB8"
    assert frame.pixels.shape == ((48, 64, 3) if is_colour else (48, 64))
    assert frame.pixels.std() > 10
    assert (frame.bayer is not None) == (code is not None)
    with opened(TriggerMode="Off", PixelFormat=pixel_format) as camera:
        converted = whole(camera)
    assert converted.bayer is None
    assert converted.pixels.ndim == (3 if is_colour or code is not None else 2)


def test_features_are_written_in_order_and_read_back(opened):
    with opened(trigger=SoftwareSettings(), **_SOFTWARE, ExposureTimeAbs=4000) as camera:
        assert camera.opened.features["ExposureTimeAbs"] == 4000.0
        assert camera.opened.features["TriggerMode"] == "On"
        assert camera.opened.packet_size == 8000
        assert camera.triggered
        camera.fire()
        assert camera.read().exposure_us == 4000.0


PRODUCTS = {
    "cola": (("ExposureTimeAbs", 4000.0), ("Width", 64)),
    "lemon": (("ExposureTimeAbs", 9000.0), ("Width", 32)),
    "beer": (("ExposureTimeAbs", 9000.0), ("Width", 4096)),
    "large": (("ExposureTimeAbs", 5000.0), ("Width", 1024)),
}


def until_it_is_for(camera, product):
    """The first frame for a product, whose settings each frame must have had."""
    while (frame := whole(camera)).product != product:
        known = dict(PRODUCTS.get(frame.product, ()))
        assert frame.exposure_us == known.get("ExposureTimeAbs", frame.exposure_us)
        assert frame.pixels.shape[1] == known.get("Width", frame.pixels.shape[1])
    return frame


def test_a_camera_is_set_up_for_another_product_while_it_runs(opened, context):
    of_products = CameraContext(stop=context.stop, features=PRODUCTS)
    with opened(context=of_products, TriggerMode="Off") as camera:
        first = until_it_is_for(camera, "cola")
        child = camera.child_pid
        answer = camera.adjust("lemon")
        lemon = until_it_is_for(camera, "lemon")
        assert answer.result(0) is None
        assert (lemon.exposure_us, lemon.pixels.shape) == (9000.0, (48, 32))
        refused = camera.adjust("beer")
        until_it_is_for(camera, "")
        assert "does not take features.Width 4096: write a whole number" in refused.result(0)
        assert "parts of beer end as ERROR" in camera.fault
        camera.adjust("cola")
        again = until_it_is_for(camera, "cola")
        assert (again.exposure_us, again.pixels.shape, camera.fault) == (4000.0, (48, 64), None)
        assert first.number < lemon.number < again.number
        assert camera.child_pid == child
        camera.adjust("large")
        with pytest.raises(CameraError, match="its frames are larger now"):
            until_it_is_for(camera, "large")
    with camera:
        assert whole(camera).pixels.shape == (48, 1024)


def test_a_camera_that_the_agent_exposes_does_so_when_it_is_set_up(opened, context):
    of_products = CameraContext(stop=context.stop, features=PRODUCTS)
    camera = opened(context=of_products, trigger=SoftwareSettings(), **_SOFTWARE)
    with camera:
        for product in ("cola", "lemon", "cola", "cola"):
            camera.adjust(product)
            camera.fire()
            frame = camera.read()
            assert (frame.product, frame.exposure_us) == (product, PRODUCTS[product][0][1])


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("Exposure", 4000, "the camera has no such feature"),
        ("ExposureTime", 4000, "the camera has no such feature; did you mean ExposureTimeAbs?"),
        ("ExposureTimeAbs", 1e9, "write a number from 10 to 1e+07"),
        ("Width", 4096, "write a whole number from 1 to 2048"),
        ("Width", "wide", "write a whole number from 1 to 2048"),
        ("PixelFormat", "Mono12", "write BayerBG8 or"),
        ("TriggerSoftware", 1, "is a command; write true to have it executed"),
    ],
)
def test_what_the_camera_cannot_take_is_refused_with_what_it_can(opened, name, value, remedy):
    with pytest.raises(ConfigurationError) as caught, opened(**{name: value}):
        pass
    assert caught.value.key == f"camera main, features.{name}"
    assert caught.value.remedy.startswith(remedy)


def test_a_camera_that_waits_for_triggers_that_nobody_named_is_refused(opened):
    with opened(trigger=SoftwareSettings(), **_SOFTWARE):
        pass
    with pytest.raises(ConfigurationError, match="write TriggerMode: On or TriggerMode: Off"):
        opened().__enter__()


def test_the_lines_for_a_camera_that_waits_for_the_agent_have_a_trigger(opened, gige):
    with opened(trigger=SoftwareSettings(), **_SOFTWARE):
        pass
    mine = next(each for each in found() if gige.serial in each.title)
    assert 'trigger: {"type": "software"}' in lines(mine)
    assert "TriggerSource: Software" in lines(mine)


def test_cameras_are_listed_with_lines_that_use_them(gige, tmp_path):
    shown = CliRunner().invoke(application(), [])
    mine = next(part for part in shown.output.split("\n\n") if gige.serial in part)
    title, _, pasted = mine.partition("\n")
    assert title == f"Aravis Fake, serial {gige.serial}, {gige.address}, GigEVision"
    path = tmp_path / "agent.yaml"
    path.write_text(f"agent: {{id: a}}\nbundle: {{path: b}}\nmqtt: {{host: h}}\n{pasted}\n")
    (camera,) = load_config(path).cameras
    with open_camera(camera) as opened:
        assert whole(opened).pixels.shape == (512, 512)


def test_doctor_shows_the_device_what_it_changed_and_one_frame(gige, tmp_path):
    text = (
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: 127.0.0.1, port: 1}\n"
        f"camera: {{type: genicam, device: {gige.serial},\n"
        "  features: {ExposureTimeAbs: 4000, GevSCPSPacketSize: 8000}}\n"
    )
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    finding = diagnosed(path)
    assert finding.level == "ok"
    for said in ("512×512 mono frames", "is white", "sharpness", f"serial {gige.serial}",
                 "firmware 0.8", "packets of 8000 bytes", "ExposureTimeAbs 4000.0 (was 10000.0)",
                 "PixelFormat Mono8"):  # fmt: skip
        assert said in finding.message
    waits = "TriggerMode: On, TriggerSource: Software}, trigger: {type: software}}"
    path.write_text(text.replace("GevSCPSPacketSize: 8000}}", waits))
    assert "512×512 mono frames" in diagnosed(path).message
    path.write_text(text.replace(", GevSCPSPacketSize: 8000", ""))
    gige.stop()
    gige.start()
    finding = diagnosed(path)
    assert finding.level == "warn"
    assert "write GevSCPSPacketSize: 8000 below features" in finding.message


def test_ids_are_unwrapped_and_a_count_that_falls_is_one_frame():
    ids = BlockIds()
    seen = (65_533, 65_535, 1, 2, 2, 1, 70_000, 3)
    assert [ids.number(each) for each in seen] == [
        65_533, 65_535, 65_536, 65_537, 65_538, 65_539, 135_538, 135_539
    ]  # fmt: skip
    ids.restart()
    assert [ids.number(each) for each in (1 << 40, (1 << 40) + 1, 5)] == [
        1 << 40, (1 << 40) + 1, (1 << 40) + 2
    ]  # fmt: skip


def test_features_are_a_mapping_or_a_list_of_them_and_software_needs_a_trigger(tmp_path):
    once = GenicamSettings(features={"Width": 64, "Gain": 1.5})
    assert once.features == (("Width", 64), ("Gain", 1.5))
    lines = [{"LineSelector": "Line1", "LineMode": "Input"}, {"LineSelector": "Line2"}]
    assert len(GenicamSettings(features=lines).features) == 3
    for wrong, said in (
        (4, "features with their values"),
        (["Width"], "features with their values"),
        ({"no name": 1}, "the name 'no name' should"),
        ({"Width": [1]}, "the value of Width should"),
    ):
        with pytest.raises(ValidationError, match=said):
            GenicamSettings(features=wrong)
    with pytest.raises(ValidationError, match="needs a trigger that announces parts"):
        GenicamSettings(features=_SOFTWARE)
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\n"
        "camera: {type: genicam, device: CAM1, features: {PixelFormat: Mono8, TriggerMode: On}}\n"
    )
    (camera,) = load_config(path).cameras
    assert camera.features == (("PixelFormat", "Mono8"), ("TriggerMode", True))
    assert camera.is_triggered
