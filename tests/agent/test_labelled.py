"""Labels of the page become folders to train and to calibrate with."""

import json

import pytest
from PIL import Image

from agent.labelled import gather, read_labelled
from engine.errors import ConfigurationError
from tests.tiny_bundle import good_part


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "labelled"
    (folder / "frames").mkdir(parents=True)
    lines = []
    for sequence, label, queue, has_frame in [
        (1, "good", "ng", True),
        (2, "defective", "ng", True),
        (3, "good", "audit", True),
        (4, "defective", "audit", True),
        (5, "unsure", "ng", True),
        (6, "good", "ng", False),
        (7, "defective", "ng", True),
        (7, "withdrawn", "ng", True),
        (8, "defective", "ng", True),
        (8, "good", "doubtful", True),
        (9, "good", "audit", True),
        (9, "good", "ng", True),
    ]:
        name = f"frames/{sequence}.jpg" if has_frame else None
        if name:
            Image.fromarray(good_part(sequence)).save(folder / name)
        record = {"epoch": "0" * 12, "sequence": sequence, "label": label, "queue": queue}
        lines.append(json.dumps(record | {"file": name}))
    lines[3:3] = ["", "no json", "[]", '{"epoch": 1}']
    lines.append(json.dumps(record | {"sequence": 10, "file": "../../secret"}))
    (folder / "labels.jsonl").write_text("\n".join(lines) + '\n{"cut of')
    return folder


def test_the_latest_word_counts_and_the_audit_is_for_the_threshold(folder):
    found = read_labelled(folder)
    assert {use: [part.sequence for part in found.of(use)] for use in ("good", "defective")} == {
        "good": [1, 8],
        "defective": [2, 4],
    }
    assert [part.sequence for part in found.of("calibration")] == [3, 9]
    assert (found.without_frame, found.unsure) == (2, 1)


def test_folders_have_what_was_labelled_and_what_was_learnt_from_before(folder, tmp_path):
    base = tmp_path / "base"
    for name in ("good/1.png", "good/2.png", "defective/scratch/1.png"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(good_part(99)).save(base / name)
    counts = gather(read_labelled(folder), base, tmp_path / "out")
    assert counts == {"good": 4, "defective": 3, "calibration": 2}
    for use, count in counts.items():
        assert len(list((tmp_path / "out" / use).iterdir())) == count
    with pytest.raises(ConfigurationError, match="cannot be written"):
        gather(read_labelled(folder), None, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="has neither good nor train/good"):
        gather(read_labelled(folder), folder, tmp_path / "new")


def test_of_a_line_with_products_each_has_its_own_parts(folder):
    records = [
        {
            "epoch": "e",
            "label": "good",
            "file": "frames/1.jpg",
            "product": product,
            "camera": camera,
        }
        for product in ("cola", "lemon")
        for camera in ("top", "side")
    ]
    lines = [json.dumps(one | {"sequence": n}) for n, one in enumerate(records)]
    (folder / "labels.jsonl").write_text("\n".join(lines))
    assert [one.sequence for one in read_labelled(folder, product="lemon").parts] == [2, 3]
    assert [one.sequence for one in read_labelled(folder, cameras={"side"}).parts] == [1, 3]
    one = read_labelled(folder, product="cola", cameras={"top"})
    assert [each.sequence for each in one.parts] == [0]
    assert not read_labelled(folder, product="beer").parts


def test_nothing_is_labelled_where_there_is_nothing(tmp_path):
    assert read_labelled(tmp_path / "nowhere").parts == ()
