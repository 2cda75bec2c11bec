"""A network camera by RTSP: a GStreamer server with an H.264 encoder stands for it."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from agent.cameras.rtsp import RtspSettings
from agent.registry import open_camera
from agent.settings import load_config
from engine.errors import CameraError, ConfigurationError

SERVER = Path(__file__).parents[2] / "rtsp_server.py"
SECRET = "s3cret@/:x"


class Camera:
    """The server as a process; `port` is where it listens."""

    def __init__(self, *login):
        self._process = subprocess.Popen(
            ["/usr/bin/python3", SERVER, *login],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.port = self._process.stdout.readline().strip()
        if not self.port:
            self.ends()
            pytest.skip(
                "needs an RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi "
                "gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad "
                "gstreamer1.0-plugins-ugly"
            )

    def url(self, path="cam"):
        return f"rtsp://127.0.0.1:{self.port}/{path}"

    def freezes(self):
        self._process.send_signal(signal.SIGSTOP)

    def ends(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def served():
    made = []

    def serve(*login):
        made.append(Camera(*login))
        return made[-1]

    yield serve
    for one in made:
        one.ends()


@pytest.fixture
def stop():
    """Set in the end, also of a test that would wait for ever."""
    stop = threading.Event()
    watchdog = threading.Timer(120, stop.set)
    watchdog.start()
    yield stop
    watchdog.cancel()


def read_on(camera):
    """Read until the camera says what is wrong."""
    while camera.read():
        pass


def test_frames_are_read_and_a_camera_that_freezes_or_goes_is_said(served, stop):
    camera = served()
    settings = RtspSettings(url=camera.url(), silent_s=1)
    with open_camera(settings, stop) as opened:
        assert not opened.triggered
        frames = [opened.read() for _ in range(5)]
        assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
        assert {frame.pixels.shape for frame in frames} == {(240, 320, 3)}
        assert max(int(frame.pixels.max()) for frame in frames) > 200
        assert all(abs(frame.captured_ns - time.time_ns()) < 60e9 for frame in frames)
        camera.freezes()
        with pytest.raises(CameraError, match="gives no more frames; it is opened again"):
            read_on(opened)


def test_a_camera_that_is_not_there_is_said(stop):
    settings = RtspSettings(url="rtsp://127.0.0.1:9/cam", open_s=1)
    with pytest.raises(CameraError, match=r"at 127\.0\.0\.1:9 gives no stream within 1 s"):
        open_camera(settings, stop).__enter__()


def test_a_password_opens_the_stream_and_is_seen_by_nobody(served, stop, tmp_path, caplog):
    camera = served("viewer", SECRET)
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    settings = RtspSettings(url=camera.url(), user="viewer", password_file=file)
    with open_camera(settings, stop) as opened:
        assert opened.read().pixels.shape == (240, 320, 3)
        child = Path("/proc") / str(opened._child.pid)
        for place in ("cmdline", "environ"):
            assert SECRET.encode() not in (child / place).read_bytes()
            assert b"s3cret" not in (child / place).read_bytes()
    file.write_text("wrong" + SECRET)
    with pytest.raises(CameraError, match="user and password") as refused:
        open_camera(settings, stop).__enter__()
    assert "s3cret" not in str(refused.value) + caplog.text


def test_a_child_that_is_killed_costs_its_camera_alone(served, stop):
    camera = served()
    opened = open_camera(RtspSettings(url=camera.url()), stop)
    with opened:
        opened.read()
        os.kill(opened._child.pid, signal.SIGKILL)
        with pytest.raises(CameraError, match="was ended by SIGKILL"):
            read_on(opened)
    with opened:
        assert opened.read() is not None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("url: camera/1", "write an address that starts with rtsp://"),
        ('url: "http://camera/1"', "write an address that starts with rtsp://"),
        ('url: "rtsp://u:s3cret@camera/1"', "without user and password"),
        ('url: "rtsp://camera/1", password: s3cret', "passwords do not belong here"),
        ('url: "rtsp://camera/1", open_s: 0', "open_s"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_without_its_password(tmp_path, keys, said):
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: a}\nbundle: {path: b}\nmqtt: {host: h}\n"
        f"camera: {{type: rtsp, {keys}}}\n"
    )
    with pytest.raises(ConfigurationError, match=said) as refused:
        load_config(path)
    assert "s3cret" not in str(refused.value)


def test_a_password_without_a_user_is_refused(stop, monkeypatch):
    monkeypatch.setenv("CAMERA_PASSWORD", SECRET)
    settings = RtspSettings(url="rtsp://camera/1", password_variable="CAMERA_PASSWORD")
    with pytest.raises(ConfigurationError, match=r"user: is missing beside the password"):
        open_camera(settings, stop)
