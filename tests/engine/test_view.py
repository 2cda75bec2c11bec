import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.frame import Box, Pixels
from engine.view import ViewSpec, equalised, view, zoomed
from tests.tiny_bundle import good_part

PLAIN = ViewSpec(side=64, equalise="never")


def scene(height: int = 120, width: int = 200, *, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(pixels: Pixels, side: int, box: Box | None = None) -> Pixels:
    corners = None if box is None else (box.left, box.top, box.right, box.bottom)
    return np.asarray(
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC, box=corners)
    )


def test_the_whole_view_is_pillows_bicubic_resize() -> None:
    pixels = scene()
    assert np.array_equal(view(pixels, Box.around(pixels), PLAIN), pillow(pixels, 64))


def test_a_box_reads_beyond_its_border_as_pillow_does() -> None:
    pixels = scene()
    box = Box(left=20, top=30, right=150, bottom=110)
    assert np.array_equal(view(pixels, box, PLAIN), pillow(pixels, 64, box))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    edges=st.tuples(*[st.floats(0, 1)] * 4),
    side=st.sampled_from((32, 50, 127)),
    gap=st.sampled_from((None, 1.0, 1.5, 2.0, 3.0)),
    mono=st.booleans(),
)
def test_every_view_is_pillows_to_the_bit(
    seed: int,
    width: int,
    height: int,
    edges: tuple[float, ...],
    side: int,
    gap: float | None,
    *,
    mono: bool,
) -> None:
    pixels = scene(height, width, seed=seed)
    if mono:
        pixels = pixels[..., 0]
    left, right = sorted(int(edge * (width - 1)) for edge in edges[:2])
    top, bottom = sorted(int(edge * (height - 1)) for edge in edges[2:])
    box = Box(left=left, top=top, right=right + 1, bottom=bottom + 1)
    spec = ViewSpec(side=side, equalise="never", reducing_gap=gap)
    expected = Image.fromarray(pixels).resize(
        (side, side),
        Image.Resampling.BICUBIC,
        box=(box.left, box.top, box.right, box.bottom),
        reducing_gap=gap,
    )
    found = view(pixels, box, spec)
    assert np.array_equal(found[..., 0] if mono else found, np.asarray(expected))


@pytest.mark.parametrize("mono", [True, False])
@pytest.mark.parametrize(("width", "height"), [(320, 256), (319, 256), (320, 257), (319, 257)])
def test_two_by_two_pixels_are_one_as_in_pillow(width: int, height: int, *, mono: bool) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = noise[..., 0] if mono else noise
    spec = ViewSpec(side=64, equalise="never", reducing_gap=2.0)
    expected = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC, reducing_gap=2.0)
    found = view(pixels, Box.around(pixels), spec)
    assert np.array_equal(found[..., 0] if mono else found, np.asarray(expected))


@pytest.mark.parametrize("box", [(0, 0, 900, 901), (301, 250, 899, 903)])
def test_a_large_frame_in_colour_is_reduced_in_strips(
    box: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.view._STRIP", 10_000)
    pixels = scene(903, 900)
    left, top, right, bottom = box
    spec = ViewSpec(side=64, equalise="never", reducing_gap=3.0)
    found = view(pixels, Box(left=left, top=top, right=right, bottom=bottom), spec)
    expected = Image.fromarray(pixels).resize(
        (64, 64), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0
    )
    assert np.array_equal(found, np.asarray(expected))


def test_the_paper_equalises_first_and_the_line_last() -> None:
    pixels = good_part(0, width=300, height=240)
    whole = Box.around(pixels)
    before, after = (
        ViewSpec(side=64, equalise="before_resize"),
        ViewSpec(side=64, equalise="after_resize"),
    )
    assert np.array_equal(view(pixels, whole, before), pillow(equalised(pixels, before), 64))
    assert np.array_equal(view(pixels, whole, after), equalised(pillow(pixels, 64), after))
    assert not np.array_equal(view(pixels, whole, before), view(pixels, whole, after))


def test_mono_is_equalised_as_mono_and_repeated() -> None:
    grey = scene()[..., 0]
    spec = ViewSpec(side=64, equalise="after_resize")
    found = view(grey, Box.around(grey), spec)
    clahe = cv2.createCLAHE(2.0, (8, 8)).apply(pillow(grey, 64))
    assert found.shape == (64, 64, 3)
    assert all(np.array_equal(found[..., channel], clahe) for channel in range(3))


def test_equalising_keeps_hues() -> None:
    # CLAHE on L leaves a and b alone; per-channel equalising would grey the red out.
    rng = np.random.default_rng(0)
    red = np.zeros((96, 96, 3), np.uint8)
    red[...] = (150, 40, 40)
    red = (red + rng.integers(-15, 15, (96, 96, 1))).clip(0, 255).astype(np.uint8)
    found = equalised(red, ViewSpec(side=96)).astype(int)
    assert (found[..., 0] > found[..., 1] + 40).all()
    assert np.abs(found[..., 1] - found[..., 2]).max() <= 6


def test_equalising_leaves_its_input_alone() -> None:
    pixels = scene()
    before = pixels.copy()
    equalised(pixels, ViewSpec())
    view(pixels, Box.around(pixels), ViewSpec(side=64))
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(("gap", "levels"), [(3.0, 2), (2.0, 3)])
def test_a_reducing_gap_stays_within_few_grey_levels_on_a_part(gap: float, levels: int) -> None:
    pixels = good_part(1, width=1200, height=1000)
    whole = Box.around(pixels)
    exact = view(pixels, whole, PLAIN).astype(int)
    fast = view(pixels, whole, ViewSpec(side=64, equalise="never", reducing_gap=gap))
    assert 0 < np.abs(exact - fast).max() <= levels


def test_pass_2_of_the_paper_zooms_into_the_view() -> None:
    pixels = scene()
    whole = view(pixels, Box.around(pixels), PLAIN)
    closer, in_frame = zoomed(pixels, whole, Box(left=16, top=8, right=48, bottom=40), PLAIN)
    crop = Image.fromarray(np.ascontiguousarray(whole[8:40, 16:48]))
    assert np.array_equal(closer, np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR)))
    assert in_frame == Box(left=50, top=15, right=150, bottom=75)


def test_pass_2_of_the_line_zooms_into_the_native_frame() -> None:
    spec = ViewSpec(side=64, equalise="never", crop_from="frame")
    pixels = scene(640, 640)
    whole = view(pixels, Box.around(pixels), spec)
    closer, in_frame = zoomed(pixels, whole, Box(left=32, top=32, right=38, bottom=38), spec)
    assert in_frame == Box(left=320, top=320, right=380, bottom=380)
    assert np.array_equal(closer, pillow(pixels, 64, in_frame))
    # The view has 36 pixels of this part of the scene, the frame 3600: the zoom sees more.
    assert len(np.unique(closer.reshape(-1, 3), axis=0)) > 3000


@pytest.mark.parametrize("equalise", ["before_resize", "after_resize", "never"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 500), (500, 1, 3), (3, 7, 3), (33, 31)])
def test_every_size_has_a_view(shape: tuple[int, ...], equalise: str) -> None:
    pixels = np.full(shape, 128, np.uint8)
    spec = ViewSpec(side=32, equalise=equalise)
    found = view(pixels, Box.around(pixels), spec)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert np.ptp(found) == 0


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), width=st.integers(1, 300), height=st.integers(1, 300))
def test_views_do_not_depend_on_memory_layout(seed: int, width: int, height: int) -> None:
    pixels = scene(height, width, seed=seed)
    turned = np.asarray(pixels.transpose(1, 0, 2).copy().transpose(1, 0, 2))
    spec = ViewSpec(side=32)
    assert np.array_equal(
        view(pixels, Box.around(pixels), spec), view(turned, Box.around(turned), spec)
    )
