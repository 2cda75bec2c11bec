"""Evidence: what is worth keeping is kept, within its limits, and nothing waits for it."""

import errno
import io
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.part import State
from agent.record.evidence_files import EvidenceIndex, index_path, safe
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
    """All but the index and folders."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(name) for name in found if name.name[:6] != ".atac-")


def named(sequence: int, state="NG", score="3.000") -> str:
    return f"1970-01-01/main/00-00-00.000_p{sequence}_{state}_{score}.jpg"


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


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
        named(2, "OK", "1.900"),
        named(4),
        named(5, "ERROR", "none"),
        named(6, "TIMEOUT", "none"),
    ]
    data = (tmp_path / "new" / named(4)).read_bytes()
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
    assert kept(tmp_path) == [named(1, "OK", "-2.100")]


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Evidence(EvidenceSettings(), "line-3", EPOCH) as evidence:
        evidence.offer(part(1))
    assert not kept(tmp_path)


def test_the_oldest_go_when_there_are_too_many(tmp_path):
    keep(tmp_path, *map(part, range(1, 8)), max_files=3)
    assert kept(tmp_path) == [named(5), named(6), named(7)]


def test_the_oldest_go_when_they_are_too_large(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (1400, 1400, 3)).astype(np.uint8) for _ in range(2)]
    keep(tmp_path, *(part(n, pixels=noise[n % 2]) for n in range(1, 8)), max_mb=10)
    names = kept(tmp_path)
    assert sum((tmp_path / name).stat().st_size for name in names) <= 10_000_000
    assert 1 <= len(names) < 7
    assert names[-1] == named(7)


def test_the_oldest_go_when_they_are_too_old(tmp_path):
    ages = Ages()
    keep(tmp_path, part(1), part(2), ages=ages, keep_days=2)
    ages.ns += DAY
    keep(tmp_path, part(3), ages=ages, keep_days=2)
    assert len(kept(tmp_path)) == 3
    ages.ns += DAY + 1_000_000
    keep(tmp_path, part(4, State.OK, 0.0), ages=ages, keep_days=2)  # a start looks too
    assert kept(tmp_path) == [named(3)]


def test_what_others_keep_there_stays_and_what_was_unfinished_goes(tmp_path):
    """Nothing is taken for the agent's own because of its name."""
    others = {"notes.txt", "holiday.jpg", "a_b_c.jpg", named(1), f"{named(1)}.part"}
    (tmp_path / named(1)).parent.mkdir(parents=True)
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    keep(tmp_path, part(2), part(3), max_files=1)
    assert set(kept(tmp_path)) == others | {named(3)}
    half = tmp_path / f"{named(3)}.part"
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
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "e").rglob("*")}
    assert modes == {0o640, 0o750}


def test_the_index_names_no_file_elsewhere(tmp_path):
    outside = tmp_path / Path(named(9)).name
    outside.write_bytes(b"x")
    folder = tmp_path / "e"
    keep(folder, part(1))
    (index,) = folder.glob(".atac-*")
    with index.open("a") as file:
        file.write(f"{EPOCH} 9 ../{outside.name}\n{EPOCH} 9 1970-01-01/../../{outside.name}\n\n")
    keep(folder, part(2), part(3), max_files=1)
    assert kept(folder) == [named(3)]
    assert outside.exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/nowhere/else")])
def test_an_index_that_is_no_file_is_a_fault_and_not_waited_for(tmp_path, make):
    with Evidence(EvidenceSettings(folder=tmp_path), "line-3", EPOCH) as evidence:
        make(index_path(tmp_path, "line-3"))
        evidence.offer(part(1))
    assert evidence.fault.startswith(f"{tmp_path}: ")


def test_no_picture_is_written_through_a_link(tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    folder = tmp_path / "evidence"
    (folder / f"{named(1)}.part").parent.mkdir(parents=True)
    (folder / f"{named(1)}.part").symlink_to(other)
    with Evidence(EvidenceSettings(folder=folder), "line-3", EPOCH) as evidence:
        evidence.offer(part(1))
    assert other.read_text() == "theirs"
    assert evidence.fault is None


def test_a_link_in_place_of_a_folder_is_a_fault(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "evidence"
    elsewhere.mkdir()
    folder.mkdir()
    (folder / "1970-01-01").symlink_to(elsewhere)
    assert "1970-01-01 is a link" in keep(folder, part(1)).fault
    assert not list(elsewhere.iterdir())


def test_days_and_cameras_without_files_go(tmp_path):
    later = part(2)
    later.trigger = replace(later.trigger, triggered_ns=3 * DAY, camera="left side")
    keep(tmp_path, part(1), later, max_files=1)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["1970-01-04"]
    assert kept(tmp_path) == ["1970-01-04/left-side/00-00-00.000_p2_NG_3.000.jpg"]


@pytest.mark.parametrize(
    ("outside", "written"),
    [
        ("A_17.b", "A_17.b"),
        ("../../etc/passwd", "-..-etc-passwd"),
        (".hidden", "hidden"),
        ("...", "-"),
        ("", "-"),
        ("Prüfling 品 7/8\n", "Prüfling-品-7-8-"),
        ("NO_FRAME_none", "NO_FRAME_none"),
        ("\udcff", "-"),
        ("x" * 300, "x" * 90),
        ("品" * 100, "品" * 30),
    ],
)
def test_a_name_from_outside_is_a_safe_piece_of_a_name(tmp_path, outside, written):
    assert safe(outside) == written
    one = part(1, State.NO_FRAME)
    one.part_id = outside
    keep(tmp_path, one)
    (name,) = kept(tmp_path)
    assert Path(name).name == f"00-00-00.000_{written if outside else 'no-id'}_NO_FRAME_none.jpg"
    (filed,) = EvidenceIndex(tmp_path, "line-3").files()
    assert (filed.name, filed.state, filed.score) == (name, State.NO_FRAME, None)


def test_two_parts_of_one_name_have_two_files(tmp_path):
    parts = [part(1), part(2)]
    for one in parts:
        one.part_id = "same"
    keep(tmp_path, *parts)
    assert [Path(name).name for name in kept(tmp_path)] == [
        "00-00-00.000_same_NG_3.000.jpg",
        "00-00-00.000_same~2_NG_3.000.jpg",
    ]


def test_a_part_is_found_by_its_numbers_while_the_agent_keeps_more(tmp_path):
    index = EvidenceIndex(tmp_path, "line-3")
    assert index.find(EPOCH, 1) is None
    keep(tmp_path, part(1))
    assert index.find(EPOCH, 1) == tmp_path / named(1)
    keep(tmp_path, part(2))
    assert [(one.sequence, one.state, one.score, one.camera) for one in index.files()] == [
        (1, State.NG, 3.0, "main"),
        (2, State.NG, 3.0, "main"),
    ]
    (tmp_path / named(1)).unlink()
    assert index.find(EPOCH, 1) is None
    index_path(tmp_path, "line-3").write_text(f"{EPOCH} 2 {named(2)}\n")  # written again
    assert [one.sequence for one in index.files()] == [2]


def test_two_agents_share_a_folder_and_each_keeps_to_its_own(tmp_path):
    settings = EvidenceSettings(folder=tmp_path, max_files=1)
    for agent, epoch in (("left", "aaaaaaaaaaaa"), ("right", "bbbbbbbbbbbb")):
        for number in (1, 2):
            with Evidence(settings, agent, epoch) as evidence:
                evidence.offer(part(number))
    assert kept(tmp_path) == [named("2"), named("2~2")]


def test_the_index_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.station.evidence._TIDY", 5)
    keep(tmp_path, *map(part, range(1, 20)), max_files=2)
    (index,) = tmp_path.glob(".atac-*")
    assert len(index.read_text().splitlines()) < 10
    keep(tmp_path, part(20), max_files=2)
    assert kept(tmp_path) == [named(19), named(20)]


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
    monkeypatch.setattr(Path, "write_bytes", lambda *_: released.wait(60))
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
        released.wait(60)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "write_bytes", slow)
    with Evidence(EvidenceSettings(folder=tmp_path), "line-3", EPOCH) as evidence:
        for number in range(30):
            evidence.offer(part(number))
        assert 25 <= evidence.not_kept <= 26  # four wait, and perhaps one is being written
        released.set()
    assert evidence.not_kept == 30
