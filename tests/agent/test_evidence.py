"""Evidence: what is worth keeping is kept, within its limits, and nothing waits for it."""

import errno
import io
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.evidence import Evidence
from agent.messages import Origin, comment_of
from agent.part import State
from agent.settings import EvidenceSettings
from agent.verdict import Trigger, Verdict
from engine.frame import Box, Frame
from tests.inspections import inspection
from tests.tiny_bundle import good_part

ORIGIN = Origin(agent_id="line-3", epoch="0123456789ab")
DAY = 86_400_000_000_000
THRESHOLD = 2.0


class Ages:
    def __init__(self):
        self.ns = 1_800_000_000_000_000_000

    def now_ns(self):
        self.ns += 1
        return self.ns


def verdict(sequence, state=State.NG, score=3.0, pixels=None):
    pixels = good_part(sequence) if pixels is None else pixels
    found = inspection(score, Box.around(pixels))
    return Verdict(
        trigger=Trigger(sequence=sequence, camera="main", part_id=f"p{sequence}", triggered_ns=0),
        state=state,
        decided_ns=0,
        threshold=THRESHOLD,
        frame=Frame(pixels=pixels, number=sequence, captured_ns=0),
        inspection=found if state in {State.OK, State.NG} else None,
    )


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def keep(folder, *verdicts, ages=None, **limits):
    settings = EvidenceSettings(folder=folder, **limits)
    for one in verdicts:  # one at a time, so that none is passed over
        with Evidence(settings, ORIGIN, ages) as evidence:
            evidence.offer(one)
    return evidence


def test_alarms_and_good_parts_near_the_threshold_are_kept(tmp_path):
    far = verdict(1, State.OK, 1.7)
    near = verdict(2, State.OK, 1.9)
    dropped = verdict(3, State.DROPPED)
    keep(tmp_path / "new", far, near, dropped, *(
        verdict(number, state)
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
    keep(tmp_path / "e", verdict(1, State.OK, 1.9), verdict(2, State.OK, 0.1), near=near)
    assert len(kept(tmp_path / "e")) == count


def test_below_zero_near_still_means_near(tmp_path):
    parts = [replace(verdict(n, State.OK, s), threshold=-2.0) for n, s in ((1, -2.1), (2, -2.3))]
    keep(tmp_path, *parts)
    assert kept(tmp_path) == ["0123456789ab_0000000001_OK.jpg"]


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Evidence(EvidenceSettings(), ORIGIN) as evidence:
        evidence.offer(verdict(1))
    assert not kept(tmp_path)


def test_the_oldest_go_when_there_are_too_many(tmp_path):
    keep(tmp_path, *map(verdict, range(1, 8)), max_files=3)
    assert [name[13:23] for name in kept(tmp_path)] == ["0000000005", "0000000006", "0000000007"]


def test_the_oldest_go_when_they_are_too_large(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (1400, 1400, 3)).astype(np.uint8) for _ in range(2)]
    keep(tmp_path, *(verdict(n, pixels=noise[n % 2]) for n in range(1, 8)), max_mb=10)
    names = kept(tmp_path)
    assert sum((tmp_path / name).stat().st_size for name in names) <= 10_000_000
    assert 1 <= len(names) < 7
    assert names[-1] == "0123456789ab_0000000007_NG.jpg"


def test_the_oldest_go_when_they_are_too_old(tmp_path):
    ages = Ages()
    keep(tmp_path, verdict(1), verdict(2), ages=ages, keep_days=2)
    ages.ns += DAY
    keep(tmp_path, verdict(3), ages=ages, keep_days=2)
    assert len(kept(tmp_path)) == 3
    ages.ns += DAY + 1_000_000
    keep(tmp_path, verdict(4, State.OK, 0.0), ages=ages, keep_days=2)  # a start looks too
    assert kept(tmp_path) == ["0123456789ab_0000000003_NG.jpg"]


def test_what_others_keep_there_stays_and_what_was_unfinished_goes(tmp_path):
    (tmp_path / "notes.txt").write_text("ours")
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    (tmp_path / "0123456789ab_0000000001_NG.jpg.part").write_bytes(b"half")
    keep(tmp_path, verdict(2), verdict(3), max_files=1)
    assert kept(tmp_path) == ["0123456789ab_0000000003_NG.jpg", "holiday.jpg", "notes.txt"]


def test_a_folder_that_cannot_be_written_is_said_once_and_costs_only_pictures(tmp_path, caplog):
    (tmp_path / "e").write_text("a file")
    settings = EvidenceSettings(folder=tmp_path / "e")
    with Evidence(settings, ORIGIN) as evidence:
        for number in range(1, 4):
            evidence.offer(verdict(number))
    assert "File exists" in evidence.trouble or "Not a directory" in evidence.trouble
    assert evidence.passed_over == 3
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_nothing_waits_for_a_slow_disk(tmp_path, monkeypatch):
    released = threading.Event()

    def slow(path, data):
        released.wait(30)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "write_bytes", slow)
    with Evidence(EvidenceSettings(folder=tmp_path), ORIGIN) as evidence:
        for number in range(30):
            evidence.offer(verdict(number))
        assert 25 <= evidence.passed_over <= 26  # four wait, and perhaps one is being written
        released.set()
    assert evidence.passed_over == 30
