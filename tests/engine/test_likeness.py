import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.frame import Pixels
from engine.image import decode_image, read_image
from engine.likeness import fingerprint, look_alikes
from engine.listing import find_images
from tests.tiny_bundle import good_part

DATA = Path(os.environ.get("ATAC_DATA", "../shared/data"))


def as_jpeg(pixels: Pixels) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
    return decode_image(buffer.getvalue(), source="again")


def count(*pictures: Pixels) -> int:
    return look_alikes([fingerprint(pixels) for pixels in pictures])


def parts(number: int) -> list[Pixels]:
    return [good_part(seed, width=400, height=320) for seed in range(number)]


def test_different_parts_do_not_look_alike() -> None:
    assert count(*parts(40)) == 0


def test_the_same_pixels_look_alike_and_the_first_is_not_counted() -> None:
    pictures = parts(20)
    assert count(*pictures, pictures[3], pictures[3], pictures[7]) == 3


def test_a_standing_belt_is_seen() -> None:
    # Only the sensor's noise differs; the set's average is every picture at once.
    rng = np.random.default_rng(0)
    scene = np.asarray(
        Image.effect_noise((50, 40), 60).convert("RGB").resize((400, 320)), dtype=int
    )
    frames = [
        (scene + rng.normal(0, 3, scene.shape)).clip(0, 255).astype(np.uint8) for _ in range(30)
    ]
    assert count(*frames) == 29


def test_blocks_of_pictures_agree_with_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [*parts(9), *parts(5)]
    assert count(*pictures) == 5
    monkeypatch.setattr("engine.likeness._BLOCK", 4)
    assert count(*pictures) == 5


def test_pictures_without_detail_are_like_nothing() -> None:
    assert count(*[np.full((50, 60), 128, np.uint8)] * 3) == 0


def test_few_pictures() -> None:
    assert look_alikes([]) == 0
    assert count(good_part(0)) == 0
    assert count(good_part(0), good_part(0)) == 1


@pytest.mark.data
@pytest.mark.parametrize("name", ["mvtec_bottle", "mvtec_pill"])
def test_real_parts_differ_and_their_copies_do_not(name: str) -> None:
    folder = DATA / name / "train" / "good"
    if not folder.is_dir():
        pytest.skip(f"needs the images of {name} below ATAC_DATA")
    files = find_images(folder).files[:60]
    pictures = [read_image(file) for file in files]
    assert count(*pictures) <= 2
    rng = np.random.default_rng(0)
    again = [
        as_jpeg(pictures[0]),
        (pictures[1] + rng.normal(0, 4, pictures[1].shape)).clip(0, 255).astype(np.uint8),
        (pictures[2] * 1.1).clip(0, 255).astype(np.uint8),
    ]
    assert count(*pictures, *again) >= 3
