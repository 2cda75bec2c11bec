import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from engine.errors import ImageError
from engine.frame import Box, Inspection, Pixels
from engine.picture import annotated, attended, boxed, captioned, data_uri, heatmap, jpeg, reduced
from tests.inspections import inspection
from tests.tiny_bundle import good_part

FRAME = Box.whole(96, 80)
CALM = inspection(1.0, FRAME)


def hot(value: float, *closer: Box) -> Inspection:
    """Heat in the top left corner."""
    score_map = np.zeros((8, 8), np.float32)
    score_map[:2, :2] = value
    return inspection(1.0, FRAME, *closer, score_map=score_map)


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_calm_part_is_shown_as_it_is() -> None:
    pixels = good_part(0)
    assert np.array_equal(heatmap(pixels, CALM, 2.0), pixels)
    assert np.array_equal(annotated(pixels, CALM, 2.0), pixels)


def test_heat_lies_where_the_score_map_has_it_whatever_its_sign() -> None:
    pixels = good_part(0)
    found = heatmap(pixels, hot(5.0), 2.0)
    assert np.array_equal(found[40:, 40:], pixels[40:, 40:])
    corner = found[:10, :10].astype(int)
    assert (corner[..., 0] > corner[..., 2] + 40).all()
    assert np.array_equal(found, heatmap(pixels, hot(-5.0), 2.0))


def test_heat_is_measured_against_the_threshold() -> None:
    pixels = good_part(0)

    def change(value: float) -> float:
        return float(np.abs(heatmap(pixels, hot(value), 2.0).astype(int) - pixels).mean())

    assert change(1.5) == 0
    assert 0 < change(2.0) < change(3.0)
    assert change(4.0) == change(400.0)


def test_a_map_may_have_a_threshold_of_its_own() -> None:
    pixels = good_part(0)
    own = replace(hot(0.9), map_threshold=0.5)
    assert np.array_equal(heatmap(pixels, own, 40.0), heatmap(pixels, hot(0.9), 0.5))
    assert np.array_equal(heatmap(pixels, hot(0.9), 40.0), pixels)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1e-300, 1e300])
@pytest.mark.parametrize("value", [0.0, 3.0, np.inf, np.nan])
def test_any_threshold_and_any_map_give_a_picture(threshold: float, value: float) -> None:
    assert annotated(good_part(0), hot(value), threshold).shape == (80, 96, 3)


def test_the_box_is_drawn_in_its_place_and_red_above_the_threshold() -> None:
    pixels = np.full((480, 640), 128, np.uint8)
    box = Box(left=100, top=50, right=300, bottom=200)
    seen = inspection(3.0, FRAME, box)
    red, green = annotated(pixels, seen, 2.0), annotated(pixels, seen, 3.0)
    for row, column in ((50, 200), (199, 200), (120, 100), (120, 299)):
        assert red[row, column, 0] > 200 > red[row, column, 1]
        assert green[row, column, 1] > 150 > green[row, column, 0]
    assert (red[60:190, 110:290] == 128).all()
    assert (red[:40] == 128).all()
    assert (red[:, 310:] == 128).all()


def test_a_large_frame_is_reduced_and_its_box_with_it() -> None:
    pixels = np.full((1000, 2000, 3), 128, np.uint8)
    box = Box(left=1000, top=500, right=2000, bottom=1000)
    found = annotated(pixels, inspection(1.0, FRAME, box), 2.0, max_side=500)
    assert found.shape == (250, 500, 3)
    changed = np.argwhere((found != 128).any(axis=2))
    assert changed.min(axis=0) == pytest.approx([125, 250], abs=4)


def test_attention_is_brightest_where_the_network_looked_and_has_its_box() -> None:
    pixels = np.full((480, 640), 128, np.uint8)
    attention = np.zeros((8, 8), np.float32)
    attention[1, 6] = 0.01  # however little: the box is cut relative to the most
    box = Box(left=400, top=20, right=600, bottom=160)
    found = attended(pixels, inspection(1.0, FRAME, box, attention=attention))
    bright, dark = found[90, 520].astype(int), found[400, 100].astype(int)
    assert bright.min() > 1.5 * dark.max()
    assert np.ptp(bright) == np.ptp(dark) == 0, "no colour: attention is no finding"
    assert (found[20, 500] == 255).all()
    assert (pixels == 128).all()


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_attention_that_says_nothing_still_has_a_picture(value: float) -> None:
    empty = np.full((8, 8), value, np.float32)
    assert attended(good_part(0), inspection(1.0, FRAME, attention=empty)).shape == (80, 96, 3)


def test_the_frame_itself_is_not_drawn_on() -> None:
    pixels = good_part(0)
    before = pixels.copy()
    box = Box(left=10, top=10, right=30, bottom=30)
    annotated(pixels, hot(9.0, box), 2.0)
    attended(pixels, hot(9.0, box))
    boxed(pixels, hot(9.0, box), 2.0)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700, 3), (700, 1), (3, 5, 3)])
def test_odd_frames_have_pictures(shape: tuple[int, ...]) -> None:
    pixels = np.full(shape, 9, np.uint8)
    seen = hot(9.0, Box.whole(1, 1))
    for found in (annotated(pixels, seen, 2.0), attended(pixels, seen), boxed(pixels, seen, 2.0)):
        assert found.ndim == 3
        assert max(found.shape[:2]) <= 640


def test_reducing_keeps_the_shape_and_never_enlarges() -> None:
    assert reduced(noise(300, 400), 100).shape == (75, 100, 3)
    assert reduced(noise(300, 400)[..., 0], 100).shape == (75, 100)
    small = noise(30, 40)
    assert reduced(small, 100) is small


def test_a_jpeg_keeps_colours_in_order() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 0] = 200
    found = np.asarray(Image.open(io.BytesIO(jpeg(pixels))))
    assert np.abs(found.astype(int) - pixels).max() < 8


def test_a_jpeg_of_a_mono_frame_is_grey() -> None:
    assert Image.open(io.BytesIO(jpeg(np.zeros((8, 9), np.uint8)))).mode == "L"


@pytest.mark.parametrize("max_bytes", [65_536, 20_000, 3_000])
def test_a_jpeg_fits_even_when_its_picture_is_noise(max_bytes: int) -> None:
    data = jpeg(noise(640, 640), max_bytes=max_bytes)
    assert len(data) <= max_bytes
    Image.open(io.BytesIO(data)).load()
    # What fits is used, not the smallest picture there is.
    assert len(data) > max_bytes / 4


def test_what_cannot_fit_is_an_error() -> None:
    with pytest.raises(ImageError, match="does not fit into 100 bytes"):
        jpeg(noise(64, 64), max_bytes=100)


def test_a_data_uri_holds_the_jpeg() -> None:
    head, body = data_uri(noise(20, 30)).split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (30, 20)


@pytest.mark.parametrize(
    ("width", "texts", "rows"),
    [
        (640, ("A-17", "2026-11-27 14:05:09", "score 3.21 / 2.98"), 1),
        (220, ("A-17", "2026-11-27 14:05:09", "score 3.21 / 2.98"), 2),
        (220, ("x" * 500,), 1),
        (8, ("a", "b"), 2),
        (640, ("Prüfling 品",), 1),
    ],
)
def test_a_caption_stands_below_the_picture_and_covers_none_of_it(width, texts, rows) -> None:
    pixels = noise(40, width)
    shown = captioned(pixels, *texts)
    assert shown.shape == (40 + 24 * rows, width, 3)
    assert np.array_equal(shown[:40], pixels)
    assert shown[40:].max() > 100


def test_a_caption_is_in_letters_that_can_be_drawn() -> None:
    mono = np.zeros((8, 300), np.uint8)
    assert np.array_equal(captioned(mono, "Prüfling 品\n"), captioned(mono, "Prufling ??"))
