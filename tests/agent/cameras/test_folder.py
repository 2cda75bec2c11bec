"""A folder as a camera: real files, every content a part, trouble named."""

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from pydantic import ValidationError

from agent.camera_child.process import CameraChild
from agent.cameras.folder import FolderCamera, FolderSettings
from agent.clock import ManualClock
from agent.ports import CameraContext
from agent.registry import open_camera
from engine.errors import CameraError, ImageError
from tests.tiny_bundle import good_part


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


def once(path: Path, **settings: object) -> FolderCamera:
    return FolderCamera(FolderSettings(path=path, **settings), CameraContext())


def test_a_folder_is_shown_in_the_order_of_names_then_ends(parts):
    (parts / "notes.txt").write_text("not a part")
    camera = open_camera(FolderSettings(path=parts))
    assert camera.triggered
    assert seen(camera) == [(0, "a/2.png", 0), (1, "a/3.png", 1), (2, "b/1.png", 2)]


def test_a_folder_can_be_repeated(parts):
    with once(parts, after_last="repeat") as camera:
        frames = [camera.read() for _ in range(7)]
    assert [frame.number for frame in frames] == list(range(7))
    assert [int(frame.pixels[0, 0]) for frame in frames] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("after_last", ["end", "repeat"])
def test_an_empty_or_missing_folder_is_a_camera_that_is_not_ready(tmp_path, after_last):
    for path, why in ((tmp_path, "holds no images"), (tmp_path / "none", "is not there")):
        with pytest.raises(CameraError, match=f"{path} {why}"), once(path, after_last=after_last):
            pass
    write(tmp_path / "late.png", 9)
    with once(tmp_path, after_last=after_last) as camera:
        assert camera.read().pixels[0, 0] == 9


@pytest.mark.parametrize("after_last", ["end", "watch", "repeat"])
def test_a_file_or_a_device_given_as_a_folder_is_named(tmp_path, after_last):
    write(tmp_path / "a.png", 1)
    for path in (tmp_path / "a.png", Path("/dev/null")):
        with pytest.raises(CameraError, match="is not a folder"), once(path, after_last=after_last):
            pass


def test_a_folder_where_something_should_be_mounted_is_not_ready_while_nothing_is(tmp_path):
    with (
        pytest.raises(CameraError, match="has nothing mounted on it"),
        once(tmp_path, after_last="watch", must_be_mount=True),
    ):
        pass


def test_a_folder_that_is_lost_and_comes_back_continues_where_it_was(parts, tmp_path):
    camera = once(parts)
    with pytest.raises(CameraError, match="is not there"), camera:  # noqa: PT012 - the state matters
        assert camera.read().number == 0
        shutil.move(parts, tmp_path / "away")
        camera.read()  # may have been read ahead
        camera.read()
    with pytest.raises(CameraError, match="is not there"), camera:
        pass
    number = camera.number
    shutil.move(tmp_path / "away", parts)
    assert seen(camera) == [(1, "a/3.png", 1), (2, "b/1.png", 2)][number - 1 :]


def test_an_unusable_image_is_a_frame_of_its_own(parts):
    (parts / "a" / "3.png").write_bytes((parts / "a" / "3.png").read_bytes()[:-20])
    (parts / "a" / "4.png").write_bytes(b"")
    with once(parts) as camera:
        assert camera.read().number == 0
        with pytest.raises(ImageError, match=r"3\.png: is damaged"):
            camera.read()
        assert camera.part_id(1) == "a/3.png"
        with pytest.raises(ImageError, match=r"4\.png: is empty"):
            camera.read()
        assert camera.read().number == 3
        assert camera.read() is None


def test_an_image_removed_meanwhile_is_a_frame_of_its_own(parts):
    with once(parts) as camera:
        camera.read()
        (parts / "b" / "1.png").unlink()  # the one before it may have been read ahead
        camera.read()
        with pytest.raises(ImageError, match=r"1\.png: cannot be read"):
            camera.read()
        assert camera.read() is None


def test_what_is_left_out_is_said_in_one_line(parts, caplog):
    write(parts / "@eaDir" / "2.png" / "thumb.png", 9)
    write(parts / ".Trash-0" / "files" / "deleted.png", 9)
    (parts / "a" / "._2.png").write_bytes(bytes(4096))
    (parts / "a" / "2.avif").write_bytes(b"x")
    assert [name for _, name, _ in seen(once(parts))] == ["a/2.png", "a/3.png", "b/1.png"]
    lines = [line for line in caplog.messages if "left out" in line]
    said = (
        f"camera main: {parts}: left out: 2 hidden (first: .Trash-0), 1 images of a format that is "
        "not read (first: a/2.avif), 1 made by another program (first: @eaDir)"
    )
    assert lines == [said]


def test_stop_ends_a_long_wait(parts):
    stop, clock = threading.Event(), ManualClock()
    settings = FolderSettings(path=parts, parts_per_minute=0.1)
    with FolderCamera(settings, CameraContext(stop=stop, clock=clock)) as camera:
        assert camera.read() is not None
        waiting = threading.Thread(target=lambda: frames.append(camera.read()))
        frames: list[object] = []
        waiting.start()
        while not clock.waiting:
            time.sleep(0.001)
        stop.set()
        waiting.join()
        assert frames == [None]


# ---- a watched folder


class Watch:
    """A watched folder, read by a thread; `recorded` stands for the ledger."""

    def __init__(self, path: Path, recorded: set[str] | None = None, **settings: object) -> None:
        self.stop = threading.Event()
        self.recorded = set() if recorded is None else recorded
        context = CameraContext(stop=self.stop, recorded=lambda some: self.recorded & set(some))
        self.camera = FolderCamera(
            FolderSettings(**{"path": path, "after_last": "watch", **settings}), context
        )

    def __enter__(self):
        self.camera.__enter__()
        return self

    def __exit__(self, *error):
        self.camera.__exit__(*error)

    def next(self) -> tuple[str, int | str]:
        """The next part, and its grey value or what is wrong with it."""
        try:
            frame = self.camera.read()
        except ImageError as error:
            return self.camera.part_id(self.camera.number - 1), error.reason
        return self.camera.part_id(frame.number), int(frame.pixels.flat[0])

    def record(self) -> None:
        """The ledger has the newest part."""
        self.recorded.add(self.camera.source(self.camera.number - 1))

    def nothing_more(self) -> bool:
        """Whether no other part comes before one that is written now."""
        write(self.camera._settings.path / "zz-last.png", 200)
        return self.next() == ("zz-last.png", 200)


def test_a_watched_folder_shows_what_is_there_then_what_arrives(parts):
    with Watch(parts) as watch:
        assert [watch.next()[1] for _ in range(3)] == [0, 1, 2]
        write(parts / "new" / "folder" / "4.png", 4)
        assert watch.next() == ("new/folder/4.png", 4)
        (parts / "5.part").write_bytes((parts / "a" / "2.png").read_bytes())
        (parts / "5.part").rename(parts / "5.png")
        assert watch.next() == ("5.png", 0)
        assert watch.nothing_more()
        threading.Timer(0.1, watch.stop.set).start()
        assert watch.camera.read() is None


def test_each_new_content_under_one_name_is_a_part(tmp_path):
    latest = tmp_path / "latest.png"
    write(latest, 1)
    with Watch(tmp_path) as watch:
        assert watch.next() == ("latest.png", 1)
        write(latest, 2)
        assert watch.next() == ("latest.png", 2)
        latest.unlink()
        write(latest, 3)
        assert watch.next() == ("latest.png", 3)
        write(tmp_path / "other.tmp.png", 4)
        assert watch.next() == ("other.tmp.png", 4)
        (tmp_path / "other.tmp.png").replace(latest)  # this content was inspected under its name
        assert watch.nothing_more()


def test_what_was_inspected_is_not_inspected_again_after_a_restart(parts):
    with Watch(parts) as watch:
        for _ in range(2):
            watch.next()
            watch.record()
    with Watch(parts, watch.recorded) as again:
        assert again.next() == ("b/1.png", 2)
        assert again.nothing_more()


def test_a_folder_that_comes_back_shows_only_what_is_new(parts, tmp_path):
    watch = Watch(parts)
    with pytest.raises(CameraError, match="is not there"), watch:  # noqa: PT012 - the state matters
        assert [watch.next()[1] for _ in range(3)] == [0, 1, 2]
        shutil.move(parts, tmp_path / "away")
        watch.next()
    with pytest.raises(CameraError, match="is not there"), watch:
        pass
    shutil.move(tmp_path / "away", parts)
    with watch:
        assert watch.nothing_more()


def test_a_picture_that_arrives_in_pieces_is_one_part(tmp_path):
    Image.fromarray(good_part(1)).save(tmp_path / "source.bmp")
    Image.fromarray(good_part(1)).save(tmp_path / "source.jpg")
    folder = tmp_path / "in"
    folder.mkdir()
    with Watch(folder, settle_s=0.2) as watch:
        for name in ("source.jpg", "source.bmp"):
            data = (tmp_path / name).read_bytes()

            def upload(data=data, name=name):
                with (folder / name).open("wb") as file:
                    file.write(data[: len(data) // 2])
                    file.flush()
                    time.sleep(1.0)  # longer than the patience, with the file still open
                    file.write(data[len(data) // 2 :])

            writer = threading.Thread(target=upload)
            writer.start()
            assert isinstance(watch.next()[1], int)
            writer.join()
        assert watch.nothing_more()


def test_a_cut_file_is_an_error_and_the_whole_one_that_follows_a_part(tmp_path):
    Image.fromarray(good_part(1)).save(tmp_path / "source.png")
    data = (tmp_path / "source.png").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    with Watch(folder, settle_s=0.2) as watch:
        (folder / "a.png").write_bytes(data[:-100])
        name, reason = watch.next()
        assert name == "a.png"
        assert "is damaged" in reason
        (folder / "a.png").write_bytes(data)
        assert watch.next() == ("a.png", int(good_part(1)[0, 0, 0]))


@pytest.mark.parametrize("done", ["move", "delete"])
def test_files_are_tidied_up_once_their_parts_are_in_the_ledger(parts, tmp_path, done):
    done_folder = {"done_folder": tmp_path / "done"} if done == "move" else {}
    with Watch(parts, done=done, **done_folder) as watch:
        assert watch.next() == ("a/2.png", 0)
        assert watch.next() == ("a/3.png", 1)
        assert (parts / "a" / "2.png").exists()  # nobody has it yet
        watch.recorded.add(watch.camera.source(0))
        assert watch.next() == ("b/1.png", 2)
        assert not (parts / "a" / "2.png").exists()
        assert (parts / "a" / "3.png").exists()
        write(parts / "a" / "3.png", 9)  # another part by now
        watch.recorded.add(watch.camera.source(1))
        assert watch.next() == ("a/3.png", 9)
        assert (parts / "a" / "3.png").exists()
    if done == "move":
        assert (tmp_path / "done" / "a" / "2.png").exists()
    with Watch(parts, watch.recorded | {watch.camera.source(2)}, done=done, **done_folder) as watch:
        assert watch.next() == ("a/3.png", 9)
        assert not (parts / "b" / "1.png").exists()  # what an earlier run could not do any more


def test_what_cannot_be_moved_away_is_a_fault_that_holds_up_no_part(parts, tmp_path):
    done = tmp_path / "done"
    done.write_text("no folder")
    with Watch(parts, done="move", done_folder=done) as watch:
        for grey in (0, 1, 2):
            assert watch.next()[1] == grey
            watch.record()
        assert watch.camera.fault == (
            f"files that are done with cannot be moved to {done} (Not a directory)"
        )
    done.unlink()
    with Watch(parts, watch.recorded, done="move", done_folder=done) as watch:
        assert watch.nothing_more()
        watch.record()
        assert watch.nothing_more()
        assert watch.camera.fault is None
    assert sorted(path.name for path in done.rglob("*.png"))[:3] == ["1.png", "2.png", "3.png"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"done": "delete"}, "needs after_last: watch"),
        ({"done": "move", "after_last": "watch"}, "done_folder"),
        ({"done_folder": "elsewhere", "after_last": "watch"}, "done_folder"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, why):
    with pytest.raises(ValidationError, match=why):
        FolderSettings(path="in", **settings)


# ---- a child that may die


def the_child(camera) -> psutil.Process:
    return psutil.Process(camera._child.pid)


@pytest.mark.parametrize(
    ("blow", "why"),
    [(signal.SIGKILL, "was ended by SIGKILL"), (signal.SIGSTOP, "has not answered for 2 s")],
)
@pytest.mark.parametrize("after_last", ["end", "watch"])
def test_a_file_that_its_decoder_does_not_survive_is_passed_over(
    parts, monkeypatch, blow, why, after_last
):
    monkeypatch.setattr("agent.camera_child.camera.ChildCamera.stuck_s", 2.0)
    struck = []
    hear = CameraChild.hear

    def heard(child, within_s):
        if child in struck:
            if blow is signal.SIGSTOP:
                return None
            raise ConnectionError(child._end())
        told = hear(child, within_s)
        if told is not None and (told.get("doing"), told.get("name")) == ("decode", "a/3.png"):
            struck.append(child)
            os.kill(child.pid, blow)
        return told

    monkeypatch.setattr(CameraChild, "hear", heard)
    with Watch(parts, after_last=after_last) as watch:
        assert watch.next() == ("a/2.png", 0)
        name, reason = watch.next()
        assert (name, why in reason) == ("a/3.png", True), reason
        assert watch.next() == ("b/1.png", 2)
    assert len(struck) == 1


def test_a_child_that_dies_beside_its_work_is_a_camera_that_is_not_ready(parts):
    with Watch(parts) as watch:
        assert watch.next() == ("a/2.png", 0)
        the_child(watch.camera).kill()
        with pytest.raises(CameraError, match=r"was ended by SIGKILL"):
            watch.next()
    with watch:
        assert watch.next() == ("a/3.png", 1)


def test_hostile_images_end_as_errors_within_the_memory(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(50_000_000_000)
    subprocess.run(["cp", "/bin/true", str(tmp_path / "b.png")], check=True)
    (tmp_path / "c.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.zeros((10_000, 10_000), np.uint16)).save(tmp_path / "d.png")
    Image.new("RGB", (4_900, 4_900)).save(tmp_path / "e.jpg", progressive=True)
    write(tmp_path / "f.png", 6)
    reasons = []
    with once(tmp_path) as camera:
        for _ in range(6):
            try:
                reasons.append(camera.read().pixels.shape)
            except ImageError as error:
                reasons.append(error.reason)
        most = the_child(camera).memory_info().rss
        peak = Path(f"/proc/{camera._child.pid}/status").read_text()
    assert "50000 MB" in reasons[0]
    assert "not an image" in reasons[1]
    assert "not an image" in reasons[2]
    assert "more than the 25000000 allowed" in reasons[3]
    assert reasons[4] == (4_900, 4_900, 3)
    assert reasons[5] == (8, 10)
    (high,) = [int(line.split()[1]) for line in peak.splitlines() if line.startswith("VmHWM")]
    assert most < 600e6
    assert high * 1024 < 600e6


# ---- a share


@pytest.fixture
def share(tmp_path):
    """A folder over FUSE that can be killed, stopped and mounted again."""
    if shutil.which("bindfs") is None or not Path("/dev/fuse").exists():
        pytest.skip("needs bindfs and FUSE")
    made = Share(tmp_path)
    yield made
    made.unmount()


class Share:
    def __init__(self, place: Path) -> None:
        self.behind, self.path = place / "behind", place / "share"
        self.behind.mkdir()
        self.path.mkdir()
        self.mount()

    def mount(self) -> None:
        command = ["bindfs", "-f", str(self.behind), str(self.path)]
        self.server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not os.path.ismount(self.path):
            if self.server.poll() is not None:
                pytest.skip("FUSE does not work here")
            time.sleep(0.02)

    def unmount(self) -> None:
        self.server.kill()
        self.server.wait()
        subprocess.run(["fusermount", "-uz", str(self.path)], check=False, capture_output=True)


def test_a_share_that_dies_is_not_ready_and_comes_back_by_itself(share):
    write(share.behind / "1.png", 1)
    watch = Watch(share.path)
    with pytest.raises(CameraError, match="Transport endpoint"), watch:  # noqa: PT012 - the state matters
        assert watch.next() == ("1.png", 1)
        write(share.behind / "2.png", 2)  # of which the system tells nothing here
        assert watch.next() == ("2.png", 2)
        share.server.kill()
        share.server.wait()
        watch.next()
    share.unmount()
    with pytest.raises(CameraError, match="has nothing mounted on it"), watch:
        pass
    share.mount()
    write(share.behind / "3.png", 3)
    with watch:
        assert watch.next() == ("3.png", 3)
        assert watch.nothing_more()


def test_a_share_that_hangs_is_not_ready(share, monkeypatch):
    monkeypatch.setattr("agent.camera_child.camera.ChildCamera.stuck_s", 2.0)
    write(share.behind / "1.png", 1)
    watch = Watch(share.path)
    with pytest.raises(CameraError, match="has not answered for 2 s"), watch:  # noqa: PT012 - the state matters
        assert watch.next() == ("1.png", 1)
        share.server.send_signal(signal.SIGSTOP)
        watch.next()
    share.server.send_signal(signal.SIGCONT)
    write(share.behind / "2.png", 2)
    with watch:
        assert watch.next() == ("2.png", 2)
