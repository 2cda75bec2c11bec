"""Folder, video and conveyor: real files, every frame numbered, trouble named."""

import os
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from agent.cameras.conveyor import (
    DEFECTS,
    ConveyorCamera,
    ConveyorSettings,
    part,
    truth,
    write_parts,
)
from agent.cameras.folder import FolderCamera, FolderSettings
from agent.cameras.pace import Pace
from agent.cameras.video import VideoCamera, VideoSettings
from agent.registry import open_camera
from engine.errors import CameraError, ImageError
from engine.image import read_image


def write(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10), grey, np.uint8)).save(path)


@pytest.fixture
def parts(tmp_path):
    """Three images, in sub-folders, whose grey value is their place in the order of names."""
    folder = tmp_path / "parts"
    for index, name in enumerate(("a/2.png", "a/3.png", "b/1.png")):
        write(folder / name, index)
    return folder


def seen(camera) -> list[tuple[int, str, int]]:
    with camera:
        found = []
        while (frame := camera.read()) is not None:
            found.append((frame.number, camera.part_id(frame.number), int(frame.pixels[0, 0])))
        return found


def test_a_folder_is_shown_in_the_order_of_names_then_ends(parts):
    (parts / "notes.txt").write_text("not a part")
    camera = open_camera(FolderSettings(path=parts))
    assert camera.triggered
    assert seen(camera) == [(0, "a/2.png", 0), (1, "a/3.png", 1), (2, "b/1.png", 2)]


def test_a_folder_can_be_repeated(parts):
    with FolderCamera(FolderSettings(path=parts, after_last="repeat")) as camera:
        frames = [camera.read() for _ in range(7)]
    assert [frame.number for frame in frames] == list(range(7))
    assert [int(frame.pixels[0, 0]) for frame in frames] == [0, 1, 2, 0, 1, 2, 0]


def test_a_watched_folder_shows_images_that_arrive_once_they_are_complete(parts):
    stop = threading.Event()
    settings = FolderSettings(path=parts, after_last="watch")
    with FolderCamera(settings, stop) as camera:
        assert [int(camera.read().pixels[0, 0]) for _ in range(3)] == [0, 1, 2]

        def write_slowly() -> None:
            source = parts.parent / "new.png"
            Image.fromarray(np.full((300, 300), 7, np.uint8)).save(source)
            data = source.read_bytes()
            with (parts / "c.png").open("wb") as file:
                for start in range(0, len(data), len(data) // 8):
                    file.write(data[start : start + len(data) // 8])
                    file.flush()
                    time.sleep(0.05)

        writer = threading.Thread(target=write_slowly)
        writer.start()
        frame = camera.read()
        writer.join()
        assert (frame.number, int(frame.pixels[0, 0])) == (3, 7)
        threading.Timer(0.1, stop.set).start()
        assert camera.read() is None


@pytest.mark.parametrize("after_last", ["end", "repeat"])
def test_an_empty_or_missing_folder_is_a_camera_that_is_not_ready(tmp_path, after_last):
    for path in (tmp_path, tmp_path / "none"):
        camera = FolderCamera(FolderSettings(path=path, after_last=after_last))
        with pytest.raises(CameraError, match=str(path)), camera:
            pass
    write(tmp_path / "late.png", 9)
    camera = FolderCamera(FolderSettings(path=tmp_path, after_last=after_last))
    with camera:
        assert camera.read().pixels[0, 0] == 9


def test_a_folder_that_is_lost_and_comes_back_goes_on_where_it_was(parts, tmp_path):
    camera = FolderCamera(FolderSettings(path=parts))
    with pytest.raises(CameraError, match="gone"), camera:  # noqa: PT012 - the state matters
        assert camera.read().number == 0
        shutil.move(parts, tmp_path / "away")
        camera.read()
    with pytest.raises(CameraError, match="not there"), camera:
        pass
    shutil.move(tmp_path / "away", parts)
    assert seen(camera) == [(1, "a/3.png", 1), (2, "b/1.png", 2)]


def test_an_unusable_image_is_a_frame_of_its_own(parts):
    (parts / "a" / "3.png").write_bytes((parts / "a" / "3.png").read_bytes()[:-20])
    (parts / "a" / "4.png").write_bytes(b"")
    with FolderCamera(FolderSettings(path=parts)) as camera:
        assert camera.read().number == 0
        with pytest.raises(ImageError, match=r"3\.png: is damaged"):
            camera.read()
        assert camera.part_id(1) == "a/3.png"
        with pytest.raises(ImageError, match=r"4\.png: is empty"):
            camera.read()
        assert camera.read().number == 3
        assert camera.read() is None


def test_an_image_removed_meanwhile_is_a_frame_of_its_own(parts):
    with FolderCamera(FolderSettings(path=parts)) as camera:
        camera.read()
        (parts / "a" / "3.png").unlink()
        with pytest.raises(ImageError, match=r"3\.png: cannot be read"):
            camera.read()
        assert camera.read().number == 2


def test_stop_ends_a_long_wait(parts):
    stop = threading.Event()
    with FolderCamera(FolderSettings(path=parts, parts_per_minute=0.1), stop) as camera:
        assert camera.read() is not None
        threading.Timer(0.05, stop.set).start()
        assert camera.read() is None  # else 600 s


def test_a_pace_does_not_run_faster_to_catch_up():
    pace = Pace(0.02, threading.Event())
    pace._due -= 100.0  # as after a long stall
    started = time.monotonic()
    for _ in range(6):
        assert pace.wait()
    assert time.monotonic() - started > 0.09


def film(path: Path, frames: int, rate: float = 100.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (64, 48))
    for index in range(frames):
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[..., 2] = 250  # red in OpenCV's order
        picture[..., 1] = index
        writer.write(picture)
    writer.release()
    return path


def test_a_video_s_frames_are_rgb_and_numbered(tmp_path):
    camera = VideoCamera(VideoSettings(path=film(tmp_path / "a.mp4", 5), realtime=False))
    assert camera.triggered
    for _ in range(2):  # it can be entered again
        with camera:
            frames = []
            while (frame := camera.read()) is not None:
                frames.append(frame)
        assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
        assert camera.part_id(4) == "frame-000004"
    red, green, blue = frames[0].pixels.reshape(-1, 3).mean(axis=0)
    assert red > 200
    assert max(green, blue) < 60
    assert frames[0].pixels.dtype == np.uint8
    assert frames[0].pixels.shape == (48, 64, 3)


def test_a_video_in_real_time_keeps_its_own_rate_and_runs_freely(tmp_path):
    camera = VideoCamera(VideoSettings(path=film(tmp_path / "a.mp4", 12, rate=50)))
    assert not camera.triggered
    with camera:
        started = time.monotonic()
        while camera.read() is not None:
            pass
        assert time.monotonic() - started >= 11 / 50


def test_a_missing_or_damaged_video_is_a_camera_that_is_not_ready(tmp_path, capfd):
    with (
        pytest.raises(CameraError, match="is not there"),
        VideoCamera(VideoSettings(path=tmp_path / "none.mp4")),
    ):
        pass
    (tmp_path / "noise.mp4").write_bytes(os.urandom(5000))
    with (
        pytest.raises(CameraError, match="cannot be read"),
        VideoCamera(VideoSettings(path=tmp_path / "noise.mp4")),
    ):
        pass


def test_a_video_cut_short_says_so(tmp_path, caplog):
    path = film(tmp_path / "a.avi", 40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    camera = VideoCamera(VideoSettings(path=path, realtime=False))
    with camera:
        count = 0
        while camera.read() is not None:
            count += 1
    assert 0 < count < 40
    assert f"after {count} of its 40 frames" in caplog.text


def test_generated_parts_are_a_pure_function_of_seed_and_number():
    one, same, other = part(5, 3, 1.0), part(5, 3, 1.0), part(6, 3, 1.0)
    assert np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)
    assert one.pixels.shape == (480, 640, 3)
    assert one.pixels.dtype == np.uint8
    assert part(5, 3, 0.0).defect is None
    assert not part(5, 3, 0.0).mask.any()


def test_every_kind_of_defect_changes_the_picture_where_its_mask_says():
    found = {}
    number = 0
    while set(found) != set(DEFECTS):
        made = part(1, number, 1.0)
        assert truth(1, number, 1.0) == made.defect
        found.setdefault(made.defect, []).append(made)
        number += 1
    for made in (each for kind in found.values() for each in kind):
        assert set(np.unique(made.mask)) == {0, 255}
        share = (made.mask > 0).mean()
        assert 0.00005 < share < 0.03


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
    conveyor = ConveyorCamera(settings)
    truths = [conveyor.truth(number) for number in range(2000)]
    assert 430 <= sum(kind != "good" for kind in truths) <= 570
    assert set(truths) == {"good", *DEFECTS}


def test_parts_are_written_in_the_layout_of_mvtec(tmp_path):
    write_parts(tmp_path, seed=1, good=3, defective=7)
    count = {
        path.relative_to(tmp_path).as_posix(): len(list(path.glob("*.png")))
        for path in sorted(tmp_path.rglob("*"))
        if path.is_dir() and any(path.glob("*.png"))
    }
    kinds = {kind: 2 if kind == DEFECTS[0] else 1 for kind in DEFECTS}
    assert count == (
        {"train/good": 3, "test/good": 7}
        | {f"test/{kind}": n for kind, n in kinds.items()}
        | {f"ground_truth/{kind}": n for kind, n in kinds.items()}
    )
    for kind in DEFECTS:
        mask = read_image(tmp_path / "ground_truth" / kind / "000_mask.png")
        assert mask.shape == (480, 640)
        assert set(np.unique(mask)) == {0, 255}
        assert read_image(tmp_path / "test" / kind / "000.png").shape == (480, 640, 3)
