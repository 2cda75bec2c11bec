from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.scores import KEPT, Picture, Scores, pictures_of, score_pictures
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.bundle import pixels_sha256
from engine.errors import ImageError, InspectionError
from engine.frame import Inspection, Pixels
from engine.inspector import OpenInspector
from engine.methods import open_method
from tests.tiny_bundle import defective_part, good_part, tiny_bundle


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[OpenInspector]:
    bundle = tiny_bundle(tmp_path / "bundle")
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        yield open_method(bundle.manifest.method, backend)


def scored(
    inspector: OpenInspector,
    *pictures: Pixels | ImageError,
    label: str = "good",
    training: frozenset[str] = frozenset(),
) -> Scores:
    steps: list[None] = []
    found = score_pictures(
        inspector,
        [
            picture
            if isinstance(picture, ImageError)
            else Picture(name=f"part {number}", pixels=picture)
            for number, picture in enumerate(pictures)
        ],
        label=label,
        training=training,
        progress=lambda: steps.append(None),
    )
    assert len(steps) == len(pictures)
    return found


def test_every_picture_is_scored_as_the_line_scores_it(inspector: OpenInspector) -> None:
    pictures = [good_part(seed) for seed in range(5)]
    found = scored(inspector, *pictures)
    assert found.values == tuple(inspector.inspect(pixels).score for pixels in pictures)
    assert found.hashes == {pixels_sha256(pixels) for pixels in pictures}


def test_what_must_not_count_is_set_aside_and_named(inspector: OpenInspector) -> None:
    learnt = good_part(1)
    found = scored(
        inspector,
        good_part(0),
        learnt,
        good_part(0),
        ImageError("part 3.png", "is damaged"),
        good_part(4),
        training=frozenset({pixels_sha256(learnt)}),
    )
    assert len(found.values) == 2
    assert found.training == ("part 1",)
    assert found.duplicates == ("part 2",)
    assert found.unreadable == ("part 3.png: is damaged",)


def test_look_alikes_count_but_are_reported(inspector: OpenInspector) -> None:
    pictures = [good_part(seed, width=400, height=320) for seed in range(12)]
    again = pictures[0].copy()
    again[0, 0] ^= 1
    found = scored(inspector, *pictures, again)
    assert len(found.values) == 13
    assert found.look_alikes == 1


def test_the_most_doubtful_parts_are_kept(inspector: OpenInspector) -> None:
    pictures = [good_part(seed) for seed in range(20)]
    good = scored(inspector, *pictures)
    shown = [exhibit.score for exhibit in good.exhibits]
    assert shown == sorted(good.values, reverse=True)[:KEPT]
    bad = scored(inspector, *[defective_part(seed) for seed in range(20)], label="defective")
    shown = [exhibit.score for exhibit in bad.exhibits]
    assert shown == sorted(bad.values)[:KEPT]


def test_equal_scores_are_kept_without_comparing_pictures(inspector: OpenInspector) -> None:
    flat = [np.full((40 + number, 60, 3), 128, np.uint8) for number in range(KEPT + 5)]
    found = scored(inspector, *flat)
    assert len(set(found.values)) == 1
    assert len(found.exhibits) == KEPT


def test_exhibits_of_large_frames_are_small_and_their_box_fits(
    inspector: OpenInspector,
) -> None:
    pixels = good_part(0, width=1920, height=1080)
    pixels[500:600, 900:1000] = 0
    (exhibit,) = scored(inspector, pixels).exhibits
    assert exhibit.pixels.shape == (360, 640, 3)
    box = exhibit.inspection.box
    assert exhibit.inspection.zoomed
    assert box.left <= 300
    assert box.right >= 333
    assert box.right <= 640


def test_no_pictures_give_no_scores(inspector: OpenInspector) -> None:
    assert scored(inspector).values == ()


def test_a_broken_network_stops_the_calibration() -> None:
    class Broken:
        def inspect(self, pixels: Pixels) -> Inspection:
            raise InspectionError("no score")

    with pytest.raises(InspectionError):
        scored(Broken(), good_part(0))


def test_files_are_read_in_order_and_the_bad_one_says_why(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    Image.fromarray(good_part(0)).save(files[0])
    files[1].write_bytes(b"not an image")
    Image.fromarray(good_part(2)).save(files[2])
    first, second, third = pictures_of(files)
    assert isinstance(second, ImageError)
    assert str(files[1]) in str(second)
    assert isinstance(first, Picture)
    assert isinstance(third, Picture)
    assert np.array_equal(third.pixels, good_part(2))
