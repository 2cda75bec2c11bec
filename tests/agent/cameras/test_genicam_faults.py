"""Everything that can go wrong between a GigE Vision camera and the agent, over a real cable."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.cameras.genicam import GenicamCamera, GenicamSettings
from engine.errors import CameraError

pytest_plugins = ["tests.gige"]


def read_on(camera):
    """Read until the camera says what is wrong."""
    while camera.read():
        pass


def back(camera):
    """The first frame after entering it again, as often as it takes, and how long that took."""
    begun = time.monotonic()
    while True:
        try:
            with camera:
                while (frame := camera.read()).problem is not None:
                    pass
                return frame, time.monotonic() - begun
        except CameraError:
            time.sleep(0.25)


def test_a_child_that_is_killed_or_hangs_is_replaced(opened):
    camera = opened(TriggerMode="Off")
    for number in (signal.SIGSEGV, signal.SIGSTOP):
        with camera:
            first = camera.read()
            os.kill(camera.child_pid, number)
            with pytest.raises(CameraError, match="the process that reads it"):
                read_on(camera)
        frame, took_s = back(camera)
        assert took_s < 15  # five seconds, where the machine is not busy
        assert frame.number > first.number


def test_a_camera_that_is_unplugged_is_away_until_it_is_back(opened, gige):
    camera = opened(TriggerMode="Off")
    with camera:
        camera.read()
        gige.stop()
        with pytest.raises(CameraError, match=r"gives no more frames|was lost"):
            read_on(camera)
    gige.start()
    assert back(camera)[0].pixels.shape == (48, 64)


def test_a_camera_that_is_not_there_says_which_are(gige, context):
    settings = GenicamSettings(device="NOSUCH", features={})
    with pytest.raises(CameraError) as caught, GenicamCamera(settings, context):
        pass
    assert "camera NOSUCH was not found" in str(caught.value)
    assert gige.serial in str(caught.value)


def test_a_camera_that_another_program_holds_says_so(opened):
    with opened(TriggerMode="Off") as first:
        with pytest.raises(CameraError, match="is held by another program"), opened():
            pass
        assert first.read() is not None
    with opened(TriggerMode="Off") as camera:  # it was given back
        assert camera.read() is not None


def test_a_frame_whose_packets_were_lost_says_so_and_has_no_pixels(opened, gige):
    gige.stop()
    gige.start(lost_per_thousand=300)
    with opened(TriggerMode="Off", Width=512, Height=512, GevSCPSPacketSize=1500) as camera:
        frames = [camera.read() for _ in range(5)]
    spoilt = [frame for frame in frames if frame.problem]
    assert spoilt
    assert "the frame is incomplete" in spoilt[0].problem
    assert "check cable, switch and network card" in spoilt[0].problem
    assert spoilt[0].pixels.size == 0


def test_packets_larger_than_the_network_takes_are_named_with_the_remedy(opened, cable):
    cable.mtu(1500)
    try:
        with opened(TriggerMode="Off", Width=512, Height=512) as camera:
            (note,) = camera.opened.notes
            problem = camera.read().problem
    finally:
        cable.mtu(9000)
    remedy = f"ip link set {cable.ours} mtu 9000"
    assert "8000 bytes are larger than the MTU 1500" in note
    assert remedy in note
    assert "packets of 8000 bytes do not pass" in problem
    assert remedy in problem


def test_a_machine_without_aravis_says_what_to_install(context, monkeypatch):
    monkeypatch.setattr(GenicamCamera, "python", sys.executable)
    with pytest.raises(CameraError, match=r"install the packages gir1\.2-aravis-0\.8"):
        GenicamCamera(GenicamSettings(), context).__enter__()


def test_a_child_that_takes_too_much_memory_ends_itself(opened, monkeypatch):
    camera = opened()
    little = camera.child_settings() | {"max_memory": 8_000_000}
    monkeypatch.setattr(camera, "child_settings", lambda: little)
    with pytest.raises(CameraError, match="the process that reads it ended"):
        camera.__enter__()


CHANGED = """
import json, os, sys
sys.path.append(sys.argv[1])
from agent.camera_child.genicam import _Camera
camera = _Camera(
    os.memfd_create("frames"),
    sys.argv[2],
    [["Width", 64], ["Height", 48], ["TriggerMode", "Off"], ["AcquisitionFrameRate", 100.0]],
    is_free_running=True,
    trigger_count_chunk=None,
)
camera.open(lambda: None)
camera._camera.set_pixel_format_from_string("Mono16")  # as another program might
told = []
try:
    while True:
        if (frame := camera.next(2.0)) is not None:
            told.append(frame)
            camera.free(frame["frame"])
except OSError as error:
    told.append(str(error))
camera.close()
print(json.dumps(told[-2:]))
"""


def test_a_pixel_format_that_changes_while_it_runs_spoils_the_frame_and_the_camera_is_set_up_again(
    gige,
):
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", CHANGED, root, gige.address],
        check=True,
        capture_output=True,
        text=True,
    )
    frame, end = json.loads(done.stdout)
    assert (
        "frame is larger than" in frame["problem"] or "changed its PixelFormat" in frame["problem"]
    )
    assert "changed its PixelFormat from Mono8 to Mono16 while it ran" in end
