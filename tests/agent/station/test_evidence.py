"""Evidence: what is worth keeping is kept, within its limits, and nothing waits for it."""

import errno
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.part import State
from agent.settings import EvidenceSettings
from agent.station.evidence import Evidence
from engine.frame import Box
from engine.picture import comment_of
from tests.agent.parts import ended
from tests.inspections import inspection
from tests.tiny_bundle import good_part

EPOCH = "0123456789ab"
DAY = 86_400_000_000_000


class Ages:
    def __init__(self):
        self.ns = 1_800_000_000_000_000_000

    def now_ns(self):
        self.ns += 1
        return self.ns


def part(sequence, state=State.NG, score=3.0, pixels=None, threshold=2.0):
    pixels = good_part(sequence) if pixels is None else pixels
    found = inspection(score, Box.around(pixels)) if state in {State.OK, State.NG} else None
    return ended(sequence, state, threshold=threshold, inspection=found, pixels=pixels)


def kept(folder: Path) -> list[str]:
    """All but the index."""
    return sorted(path.name for path in folder.iterdir() if path.name[:6] != ".atac-")


def keep(folder, *parts, ages=None, **limits):
    settings = EvidenceSettings(folder=folder, **limits)
    for one in parts:  # one at a time, so that none is passed over
        with Evidence(settings, "line-3", EPOCH, ages) as evidence:
            evidence.offer(one)
    return evidence


def test_alarms_and_good_parts_near_the_threshold_are_kept(tmp_path):
    far = part(1, State.OK, 1.7)
    near = part(2, State.OK, 1.9)
    dropped = part(3, State.DROPPED)
    keep(tmp_path / "new", far, near, dropped, *(
        part(number, state)
        for number, state in ((4, State.NG), (5, State.ERROR), (6, State.TIMEOUT))
    ))  # fmt: skip
    assert kept(tmp_path / "new") == [
        "0123456789ab_0000000002_OK.jpg",
        "0123456789ab_0000000004_NG.jpg",
        "0123456789ab_0000000005_ERROR.jpg",
        "0123456789ab_0000000006_TIMEOUT.jpg",
    ]
    data = (tmp_path / "new" / "0123456789ab_0000000004_NG.jpg").read_bytes()
    assert comment_of(data) == "line-3:0123456789ab:4"
    seen = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(seen.astype(int) - good_part(4)).mean() < 5


@pytest.mark.parametrize(("near", "count"), [(0.0, 0), (0.1, 1), (1.0, 2)])
def test_how_near_is_the_configurations_choice(tmp_path, near, count):
    tmp_path.joinpath("e").mkdir()
    keep(tmp_path / "e", part(1, State.OK, 1.9), part(2, State.OK, 0.1), near=near)
    assert len(kept(tmp_path / "e")) == count


def test_below_zero_near_still_means_near(tmp_path):
    keep(tmp_path, *(part(n, State.OK, s, threshold=-2.0) for n, s in ((1, -2.1), (2, -2.3))))
    assert kept(tmp_path) == ["0123456789ab_0000000001_OK.jpg"]


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Evidence(EvidenceSettings(), "line-3", EPOCH) as evidence:
        evidence.offer(part(1))
    assert not kept(tmp_path)


def test_the_oldest_go_when_there_are_too_many(tmp_path):
    keep(tmp_path, *map(part, range(1, 8)), max_files=3)
    assert [name[13:23] for name in kept(tmp_path)] == ["0000000005", "0000000006", "0000000007"]


def test_the_oldest_go_when_they_are_too_large(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (1400, 1400, 3)).astype(np.uint8) for _ in range(2)]
    keep(tmp_path, *(part(n, pixels=noise[n % 2]) for n in range(1, 8)), max_mb=10)
    names = kept(tmp_path)
    assert sum((tmp_path / name).stat().st_size for name in names) <= 10_000_000
    assert 1 <= len(names) < 7
    assert names[-1] == "0123456789ab_0000000007_NG.jpg"


def test_the_oldest_go_when_they_are_too_old(tmp_path):
    ages = Ages()
    keep(tmp_path, part(1), part(2), ages=ages, keep_days=2)
    ages.ns += DAY
    keep(tmp_path, part(3), ages=ages, keep_days=2)
    assert len(kept(tmp_path)) == 3
    ages.ns += DAY + 1_000_000
    keep(tmp_path, part(4, State.OK, 0.0), ages=ages, keep_days=2)  # a start looks too
    assert kept(tmp_path) == ["0123456789ab_0000000003_NG.jpg"]


def test_what_others_keep_there_stays_and_what_was_unfinished_goes(tmp_path):
    """Nothing is taken for the agent's own because of its name."""
    others = {
        "notes.txt", "holiday.jpg", "a_b_c.jpg", "0123456789ab_0000000001_NG.jpg",
        "0123456789ab_0000000001_NG.jpg.part",
    }  # fmt: skip
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    keep(tmp_path, part(2), part(3), max_files=1)
    assert set(kept(tmp_path)) == others | {"0123456789ab_0000000003_NG.jpg"}
    half = tmp_path / "0123456789ab_0000000003_NG.jpg.part"
    half.write_bytes(b"half")
    with Evidence(EvidenceSettings(folder=tmp_path), "line-3", EPOCH):
        pass
    assert not half.exists()


def test_what_is_kept_is_not_for_everybody(tmp_path):
    before = os.umask(0o022)
    try:
        keep(tmp_path / "e", part(1))
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "e").iterdir()}
    assert modes == {0o640}


def test_the_index_names_no_file_elsewhere(tmp_path):
    outside = tmp_path / "0123456789ab_0000000009_NG.jpg"
    outside.write_bytes(b"x")
    folder = tmp_path / "e"
    keep(folder, part(1))
    (index,) = folder.glob(".atac-*")
    with index.open("a") as file:
        file.write("../0123456789ab_0000000009_NG.jpg\n\udcff\n".encode(errors="replace").decode())
    keep(folder, part(2), part(3), max_files=1)
    assert kept(folder) == ["0123456789ab_0000000003_NG.jpg"]
    assert outside.exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/nowhere/else")])
def test_an_index_that_is_no_file_is_a_fault_and_not_waited_for(tmp_path, make):
    with Evidence(EvidenceSettings(folder=tmp_path), "line-3", EPOCH) as evidence:
        make(evidence._index(tmp_path))
        evidence.offer(part(1))
    assert evidence.fault.startswith(f"{tmp_path}: ")


def test_no_picture_is_written_through_a_link(tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / f"{EPOCH}_0000000001_NG.jpg.part").symlink_to(other)
    with Evidence(EvidenceSettings(folder=folder), "line-3", EPOCH) as evidence:
        evidence.offer(part(1))
    assert other.read_text() == "theirs"
    assert evidence.fault is None


def test_two_agents_share_a_folder_and_each_keeps_to_its_own(tmp_path):
    settings = EvidenceSettings(folder=tmp_path, max_files=1)
    for agent, epoch in (("left", "aaaaaaaaaaaa"), ("right", "bbbbbbbbbbbb")):
        for number in (1, 2):
            with Evidence(settings, agent, epoch) as evidence:
                evidence.offer(part(number))
    assert kept(tmp_path) == ["aaaaaaaaaaaa_0000000002_NG.jpg", "bbbbbbbbbbbb_0000000002_NG.jpg"]


def test_the_index_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.station.evidence._TIDY", 5)
    keep(tmp_path, *map(part, range(1, 20)), max_files=2)
    (index,) = tmp_path.glob(".atac-*")
    assert len(index.read_text().splitlines()) < 10
    keep(tmp_path, part(20), max_files=2)
    assert [name[13:23] for name in kept(tmp_path)] == ["0000000019", "0000000020"]


def test_a_picture_wider_than_a_jpeg_can_be_is_kept_smaller(tmp_path):
    wide = np.zeros((4, 70_000), np.uint8)
    evidence = keep(tmp_path, part(1, pixels=wide), part(2))
    assert evidence.fault is None
    assert len(kept(tmp_path)) == 2
    with Image.open(tmp_path / kept(tmp_path)[0]) as image:
        assert image.width == 65_500


def test_a_thread_that_ends_is_a_fault_and_hangs_nothing(tmp_path, monkeypatch):
    def fail(_folder):
        raise RuntimeError("a bug")

    evidence = Evidence(EvidenceSettings(folder=tmp_path), "line-3", EPOCH)
    monkeypatch.setattr(evidence, "_make_room", fail)
    with evidence:
        for number in range(30):
            evidence.offer(part(number))
    assert "RuntimeError: a bug" in evidence.fault
    assert evidence.not_kept >= 25


def test_a_folder_that_cannot_be_written_is_said_once_and_costs_only_pictures(tmp_path, caplog):
    (tmp_path / "e").write_text("a file")
    settings = EvidenceSettings(folder=tmp_path / "e")
    with Evidence(settings, "line-3", EPOCH) as evidence:
        for number in range(1, 4):
            evidence.offer(part(number))
    assert "File exists" in evidence.fault or "Not a directory" in evidence.fault
    assert evidence.not_kept == 3
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_a_disk_that_hangs_is_a_fault_and_a_stop_leaves_it_behind(
    tmp_path, monkeypatch, eventually
):
    released = threading.Event()
    monkeypatch.setattr(Path, "write_bytes", lambda *_: released.wait(30))
    monkeypatch.setattr("agent.station.evidence._HELD_UP_S", 0.05)
    with Evidence(EvidenceSettings(folder=tmp_path), "line-3", EPOCH) as evidence:
        evidence.offer(part(1))
        eventually(lambda: evidence.fault)
        assert evidence.fault == f"{tmp_path}: does not answer"
    assert not released.is_set()
    released.set()
    evidence._thread.join()


def test_nothing_waits_for_a_slow_disk(tmp_path, monkeypatch):
    released = threading.Event()

    def slow(path, data):
        released.wait(30)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "write_bytes", slow)
    with Evidence(EvidenceSettings(folder=tmp_path), "line-3", EPOCH) as evidence:
        for number in range(30):
            evidence.offer(part(number))
        assert 25 <= evidence.not_kept <= 26  # four wait, and perhaps one is being written
        released.set()
    assert evidence.not_kept == 30
