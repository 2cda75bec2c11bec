"""A video as a camera: each frame number ends in one state, also where the file is damaged."""

import os
import shutil
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.cameras.video import VideoCamera, VideoSettings
from agent.clock import ManualClock
from agent.ports import CameraContext
from engine.errors import CameraError, FrameLostError


def film(path: Path, frames: int, rate: float = 100.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (64, 48))
    for index in range(frames):
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[..., 2] = 250  # red in OpenCV's order
        picture[..., 1] = index
        writer.write(picture)
    writer.release()
    return path


def video(path: Path) -> VideoCamera:
    return VideoCamera(VideoSettings(path=path, realtime=False), CameraContext())


def numbers(camera: VideoCamera) -> tuple[list[int], list[int]]:
    """The numbers of the frames that came, and of those that were lost."""
    came, lost = [], []
    while True:
        try:
            frame = camera.read()
        except FrameLostError:
            lost.append(camera.number - 1)
            continue
        if frame is None:
            return came, lost
        came.append(frame.number)


def test_frames_are_rgb_and_numbered(tmp_path):
    camera = video(film(tmp_path / "a.mp4", 5))
    assert camera.triggered
    for _ in range(2):  # it can be entered again
        with camera:
            frames = []
            while (frame := camera.read()) is not None:
                frames.append(frame)
        assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
        assert camera.part_id(4) is None  # its place in the file names no part
    red, green, blue = frames[0].pixels.reshape(-1, 3).mean(axis=0)
    assert red > 200
    assert max(green, blue) < 60
    assert frames[0].pixels.dtype == np.uint8
    assert frames[0].pixels.shape == (48, 64, 3)


def test_in_real_time_it_keeps_its_own_rate_and_runs_freely(tmp_path):
    clock = ManualClock()
    settings = VideoSettings(path=film(tmp_path / "a.mp4", 3, rate=50))
    camera = VideoCamera(settings, CameraContext(clock=clock))
    assert not camera.triggered
    with camera:
        assert camera.read().number == 0
        assert camera.pace._due == pytest.approx(clock.now() + 1 / 50)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path, "is not there"),
        (lambda path: path.write_bytes(os.urandom(5000)), "not a video, or damaged"),
        (lambda path: path.mkdir(), "is not a file"),
        (os.mkfifo, "is not a file"),
    ],
)
def test_what_is_no_video_is_a_camera_that_is_not_ready(tmp_path, make, why):
    make(tmp_path / "a.mp4")
    with pytest.raises(CameraError, match=why), video(tmp_path / "a.mp4"):
        pass


@pytest.mark.parametrize("name", ["12:30.mp4", "rtsp:a.mp4", "http:b.mp4", "%d.mp4", "ä ö.mp4"])
def test_any_name_is_the_name_of_a_file(tmp_path, monkeypatch, name):
    shutil.move(film(tmp_path / "a.mp4", 3), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with video(Path(name)) as camera:
        assert numbers(camera) == ([0, 1, 2], [])


def test_a_file_that_names_an_address_opens_no_connection(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        (tmp_path / "a.mp4").write_text(
            "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
            f"http://user:secret@127.0.0.1:{port}/b.ts\n#EXT-X-ENDLIST\n"
        )
        with pytest.raises(CameraError) as caught, video(tmp_path / "a.mp4") as camera:
            camera.read()
        assert "secret" not in str(caught.value)
        with pytest.raises(TimeoutError):
            server.accept()


def test_frames_that_damage_has_taken_are_lost_frames(tmp_path):
    path = film(tmp_path / "a.mp4", 120)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(bytes(data))
    with video(path) as camera:
        came, lost = numbers(camera)
    assert sorted(came + lost) == list(range(120))
    assert came == sorted(came)


def test_a_video_cut_short_says_so_and_accounts_for_the_rest(tmp_path, caplog):
    path = film(tmp_path / "a.avi", 40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with video(path) as camera:
        came, lost = numbers(camera)
    assert 0 < len(came) < 40
    assert came + lost == list(range(40))
    assert f"after {len(came)} of its 40 frames" in caplog.text


def test_a_video_that_is_lost_midway_continues_where_it_was(tmp_path):
    path = film(tmp_path / "a.mp4", 8)
    with video(path) as camera:
        assert [camera.read().number for _ in range(3)] == [0, 1, 2]
        camera._child._process.kill()
        with pytest.raises(CameraError, match="SIGKILL"):
            camera.read()
    with camera:
        assert numbers(camera) == ([3, 4, 5, 6, 7], [])
