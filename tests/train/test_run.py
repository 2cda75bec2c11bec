from collections import Counter
from dataclasses import replace

import pytest

from engine.errors import ConfigurationError, TrainingError
from train import datasets
from train.checkpoint import CHECKPOINT
from train.datasets import find_source
from train.report import examine, write_report
from train.run import train_bundle


@pytest.mark.parametrize("hold_out", [0.25, 0.0])
def test_every_file_is_read_once_and_every_image_hashed_once_and_unfinished_work_goes(
    source, line, tmp_path, monkeypatch, hold_out
):
    read, hashed = Counter(), []

    def counted_read(path, bits=None, read_image=datasets.read_image):
        read[path.relative_to(source.root).as_posix()] += 1
        return read_image(path, bits=bits)

    def counted_hash(pixels, pixels_sha256=datasets.pixels_sha256):
        hashed.append(pixels_sha256(pixels))
        return hashed[-1]

    monkeypatch.setattr(datasets, "read_image", counted_read)
    monkeypatch.setattr(datasets, "pixels_sha256", counted_hash)
    settings = replace(line, epochs=2, least_steps=2, hold_out=hold_out)
    left = tmp_path / "bundle.training" / CHECKPOINT  # by an interrupted training
    left.parent.mkdir()
    left.touch()
    ended = train_bundle(
        source, tmp_path / "bundle", settings, weights=None, defects=4, accept_flips=True
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    write_report(tmp_path / "page.html", examine(ended), ended.images)
    images = {
        path.relative_to(source.root).as_posix()
        for folder in ("train", "test")
        for path in (source.root / folder).rglob("*.png")
    }
    masks = {item.mask for item in ended.split.train_defective}
    assert read == Counter([*images, *masks])
    assert Counter(hashed) == Counter(
        item.sha256
        for item in (*ended.split.training, *ended.split.held_out_good, *ended.split.test)
    )


def test_a_bundle_is_never_overwritten(source, line, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"--out.*is a bundle already"):
        train_bundle(source, tmp_path, line, weights=None)


def test_a_place_that_cannot_hold_the_bundle_is_told_before_anything_is_read(line, tmp_path):
    nothing = find_source(None, tmp_path, None)  # a folder without images
    (tmp_path / "file").touch()
    for out, said in (
        (tmp_path / "file", "cannot be made .Not a directory"),
        (tmp_path / "file/below", "cannot be made .Not a directory"),
        (tmp_path, "is not empty"),
        (tmp_path / "..", "is not empty"),
    ):
        with pytest.raises(ConfigurationError, match=rf"--out: .*{said}"):
            train_bundle(nothing, out, line, weights=None)
    with pytest.raises(TrainingError):
        train_bundle(nothing, tmp_path / "out", line, weights=None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unfinished_work_of_others_stays(source, line, tmp_path):
    other = tmp_path / "bundle.training" / "mine.png"
    other.parent.mkdir()
    other.touch()
    with pytest.raises(ConfigurationError, match=r"bundle\.training holds mine\.png"):
        train_bundle(source, tmp_path / "bundle", line, weights=None)
    assert other.exists()
