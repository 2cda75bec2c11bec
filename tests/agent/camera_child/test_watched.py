"""Which images of a folder are new: events, looks where there are none, patience, bounds."""

import os
import time
from pathlib import Path

import pytest

from agent.camera_child import watched as module
from agent.camera_child.watched import Watched
from agent.camera_child.wire import GoneError
from agent.clock import ManualClock


class Watching:
    """A folder that is watched by a clock that tests drive; `recorded` is what is known of it."""

    def __init__(self, root, recorded=()):
        self.clock = ManualClock()
        self.recorded = set(recorded)
        self.watched = Watched(
            root,
            settle_s=2.0,
            recorded=lambda files: {each for each, _ in files if each in self.recorded},
            clock=self.clock.now,
        )

    def new(self):
        """The names of all that is offered now; all are taken."""
        names = []
        while (candidate := self.watched.next()) is not None:
            names.append(Path(candidate.path).name)
            self.recorded.add(candidate.content)
            self.watched.settled(candidate)
        return names

    def new_within(self, seconds):
        """As `new`, after some time has passed by the clock."""
        self.clock.advance(seconds)
        return self.new()


@pytest.fixture
def watch():
    """Makes watched folders, and closes them."""
    made = []

    def watch(root, recorded=()):
        made.append(Watching(root, recorded))
        return made[-1]

    yield watch
    for each in made:
        each.watched.close()


@pytest.fixture(params=["events", "looks"])
def told_by(request, monkeypatch):
    """How the folder is watched: by the system's events, or by looking."""
    if request.param == "looks":

        def refused(**_options):
            raise OSError(24, "too many")

        monkeypatch.setattr(module, "INotify", refused)
    return request.param


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_what_is_there_comes_in_the_order_of_names_then_what_is_new(watch, tmp_path, told_by):
    touch(tmp_path, "b.png", "a/c.png", "a/b.png")
    watching = watch(tmp_path)
    assert watching.new() == ["b.png", "c.png", "b.png"]
    touch(tmp_path, "d.png", "new/sub/e.png", ".hidden.png", "@eaDir/f.png", "g.part")
    assert sorted(watching.new_within(0.3)) == ["d.png", "e.png"]
    (tmp_path / "g.part").rename(tmp_path / "g.png")
    assert watching.new_within(0.3) == ["g.png"]
    assert watching.new_within(10) == []


def test_an_overwritten_file_is_new_and_a_renamed_or_linked_one_is_not(watch, tmp_path, told_by):
    touch(tmp_path, "latest.png")
    watching = watch(tmp_path)
    assert watching.new() == ["latest.png"]
    (tmp_path / "latest.png").write_bytes(b"something else")
    assert watching.new_within(10) == ["latest.png"]
    (tmp_path / "latest.png").rename(tmp_path / "renamed.png")
    os.link(tmp_path / "renamed.png", tmp_path / "linked.png")
    assert watching.new_within(10) == []
    touch(tmp_path, "latest.png")
    assert watching.new_within(10) == ["latest.png"]


def test_without_lasting_inodes_a_path_stands_for_the_file(watch, tmp_path, told_by, monkeypatch):
    monkeypatch.setattr(module, "_LASTING", frozenset())
    touch(tmp_path, "a.png")
    watching = watch(tmp_path)
    assert watching.new() == ["a.png"]
    status = (tmp_path / "a.png").stat()
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    os.utime(tmp_path / "copy.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert watching.new_within(10) == ["copy.png"]
    (tmp_path / "copy.png").replace(tmp_path / "a.png")  # another inode, all else the same
    assert watching.new_within(10) == []


def test_a_file_that_cannot_be_used_is_waited_for_until_it_has_settled(watch, tmp_path):
    watching = watch(tmp_path)
    touch(tmp_path, "half.png")
    candidate = watching.watched.next()
    assert watching.watched.postponed(candidate)
    assert watching.watched.next() is None
    watching.clock.advance(1.5)
    (tmp_path / "half.png").write_bytes(b"more of it")
    candidate = watching.watched.next()
    assert watching.watched.postponed(candidate)  # it has changed just now
    watching.clock.advance(1.9)
    assert watching.watched.next() is None
    watching.clock.advance(0.2)
    candidate = watching.watched.next()
    assert not watching.watched.postponed(candidate)
    watching.watched.settled(candidate)
    (tmp_path / "half.png").write_bytes(b"all of it at last")
    assert watching.new_within(0.3) == ["half.png"]


def test_a_file_that_somebody_still_writes_to_is_waited_for_longer(watch, tmp_path):
    watching = watch(tmp_path)
    with (tmp_path / "slow.png").open("wb") as file:
        file.write(b"half")
        file.flush()
        assert watching.watched.postponed(watching.watched.next())
        watching.clock.advance(30)
        while (candidate := watching.watched.next()) is not None:
            assert watching.watched.postponed(candidate)
        file.write(b" and the rest")
    assert watching.new() == ["slow.png"]


def test_what_is_recorded_is_not_offered(watch, tmp_path):
    touch(tmp_path, "a.png", "b.png")
    first = watch(tmp_path)
    assert first.new() == ["a.png", "b.png"]
    again = watch(tmp_path, first.recorded)
    touch(tmp_path, "c.png")
    assert again.new_within(0.3) == ["c.png"]


def test_the_ledger_is_asked_once_a_day_about_what_is_still_there(watch, tmp_path):
    touch(tmp_path, "a.png", "b.png")
    watching = watch(tmp_path)
    watching.new()
    asked = []
    watching.watched._recorded = lambda files: [asked.append(path) for _, path in files] and []
    watching.new_within(3600)
    assert asked == []
    watching.new_within(86_400)
    assert sorted(Path(path).name for path in asked) == ["a.png", "b.png"]


def test_a_folder_that_cannot_be_read_is_left_out_until_it_can_be(watch, tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "shut/b.png")
    allowed, shut = os.access, [True]
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: not (shut[0] and path.endswith("shut")) and allowed(path, mode),
    )
    watching = watch(tmp_path)
    assert watching.new() == ["a.png"]
    (left_out,) = watching.watched.left_out
    assert left_out.first == "shut: Permission denied"
    shut[0] = False
    assert watching.new_within(10) == ["b.png"]
    assert watching.watched.left_out == ()


def test_a_folder_that_goes_away_raises(watch, tmp_path):
    folder = tmp_path / "in"
    touch(folder, "a.png")
    watching = watch(folder)
    watching.new()
    folder.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        watching.new_within(1)
    (tmp_path / "away").rename(folder)
    watching.new_within(1)
    watching.watched._place = (0, 0)
    with pytest.raises(GoneError, match="another file system"):
        watching.new_within(1)


def test_a_folder_from_which_a_mount_of_the_same_disk_is_taken_raises(watch, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    touch(folder, "a.png")
    watching = watch(folder)
    watching.new()
    folder.rename(tmp_path / "away")
    touch(folder, "b.png")  # another folder by now, of the same disk
    assert watching.new_within(1) == ["b.png"]
    folder.rename(tmp_path / "away2")
    folder.mkdir()
    monkeypatch.setattr(module, "mounted_on", lambda _: ("/elsewhere", "ext4"))
    with pytest.raises(GoneError, match="or none any more"):
        watching.new_within(1)


def test_files_that_come_and_go_leave_nothing_behind(watch, tmp_path):
    watching = watch(tmp_path)
    for number in range(50):
        touch(tmp_path, f"{number}/a.png")
        assert watching.new_within(0.3) == ["a.png"]
        (tmp_path / f"{number}" / "a.png").unlink()
        (tmp_path / f"{number}").rmdir()
        watching.new_within(0.3)
    watching.new_within(10)
    watched = watching.watched
    assert len(watched._folders) == 1
    assert len(watched._by_watch) == 1
    assert watched._folders[str(tmp_path)].known == {}
    assert watched._candidates == {}
    assert watched._written == set()


def test_looks_cost_little_however_many_files_there_are(watch, tmp_path, monkeypatch):
    """The share of a processor is bounded by waiting longer, as a look takes longer."""
    monkeypatch.setattr(time, "thread_time", iter(range(1000)).__next__)  # a second each
    watching = watch(tmp_path)
    assert watching.watched._next_search - watching.clock.now() >= 100
