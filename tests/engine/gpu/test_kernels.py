"""The kernels are right before they meet a GPU: the same source, compiled as C++, on the CPU."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.attention import CropSpec, attention_box
from engine.frame import Box, Map, Pixels
from engine.image import read_image
from engine.listing import find_images
from engine.score import top_k_mean
from engine.view import ViewSpec, view, zoomed
from tests.engine.gpu.kernels import SOURCES, Kernels
from tests.tiny_bundle import defective_part, good_part
from tools.kernel_report import ARCHITECTURES, MOST_REGISTERS, compiled, find_nvcc

DATA = Path(os.environ.get("ATAC_DATA", Path(__file__).parents[4] / "shared" / "data"))
LINE = ViewSpec(equalise="after_resize", crop_from="frame", reducing_gap=3.0)
PAPER = ViewSpec()
PLAIN = ViewSpec(side=64, equalise="never")


def noise(height: int, width: int, *channels: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def assert_same_picture(found: Pixels, expected: Pixels) -> None:
    """At most one grey level apart on at least 99.9 % of the values."""
    assert found.shape == expected.shape
    apart = np.abs(found.astype(int) - expected.astype(int))
    assert (apart <= 1).mean() >= 0.999, f"{(apart > 1).mean():.2%} differ, by up to {apart.max()}"


@pytest.mark.parametrize("gap", [None, 1.0, 3.0])
@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((120, 200, 3), (0, 0, 200, 120)),
        ((64, 64), (0, 0, 64, 64)),
        ((40, 30, 3), (3, 5, 29, 11)),
        ((901, 1203), (0, 0, 1203, 901)),
        ((901, 1203, 3), (17, 33, 1180, 850)),
        ((901, 1203, 3), (500, 3, 630, 900)),
        ((1203, 301, 3), (5, 3, 230, 1201)),
        ((1, 500), (0, 0, 500, 1)),
        ((1, 1, 3), (0, 0, 1, 1)),
    ],
)
def test_resizing_is_pillows_to_the_last_bit(kernels, shape, box, gap) -> None:
    pixels = noise(*shape)
    spec = ViewSpec(side=64, equalise="never", reducing_gap=gap)
    corners = Box(left=box[0], top=box[1], right=box[2], bottom=box[3])
    assert np.array_equal(kernels.view(pixels, corners, spec), view(pixels, corners, spec))


@settings(max_examples=60)
@given(data=st.data())
def test_every_box_of_every_frame_is_resized_as_pillow_does(kernels, data) -> None:
    width, height = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 400))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    gap = data.draw(st.sampled_from([None, 1.0, 1.7, 3.0]))
    spec = ViewSpec(side=32, equalise="never", reducing_gap=gap)
    pixels = noise(height, width, seed=width * height)
    box = Box(left=left, top=top, right=right, bottom=bottom)
    assert np.array_equal(kernels.view(pixels, box, spec), view(pixels, box, spec))


@pytest.mark.parametrize("tiles", [1, 3, 8])
@pytest.mark.parametrize("clip", [0.5, 2.0, 40.0])
@pytest.mark.parametrize("shape", [(224, 224), (97, 131), (128, 131), (5, 3), (1, 1), (1, 60)])
def test_equalising_grey_is_opencvs_to_the_last_bit(kernels, shape, clip, tiles) -> None:
    spec = ViewSpec(clahe_clip_limit=clip, clahe_tiles=tiles)
    pixels = noise(*shape)
    expected = cv2.createCLAHE(clip, (tiles, tiles)).apply(pixels)
    assert np.array_equal(kernels.equalised(pixels, spec), expected)


@pytest.mark.parametrize("spec", [PAPER, LINE, PLAIN], ids=["paper", "line", "plain"])
@pytest.mark.parametrize("part", [good_part, defective_part])
@pytest.mark.parametrize("size", [(300, 240), (1300, 1000)])
def test_colour_and_mono_parts_are_seen_as_the_engine_sees_them(kernels, part, size, spec) -> None:
    pixels = part(3, width=size[0], height=size[1])
    for frame in (pixels, np.ascontiguousarray(pixels[..., 0])):
        whole = Box.around(frame)
        assert_same_picture(kernels.view(frame, whole, spec), view(frame, whole, spec))


def test_all_hues_are_equalised_as_opencv_does(kernels) -> None:
    pixels = cv2.resize(noise(24, 24, 3), (448, 448), interpolation=cv2.INTER_CUBIC)
    assert_same_picture(
        kernels.view(pixels, Box.around(pixels), LINE), view(pixels, Box.around(pixels), LINE)
    )


@pytest.mark.data
@pytest.mark.parametrize("spec", [PAPER, LINE], ids=["paper", "line"])
@pytest.mark.parametrize("name", ["mvtec_bottle", "mvtec_pill", "magnetic_tile", "brain_mri"])
def test_real_parts_are_seen_as_the_engine_sees_them(kernels, name, spec) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"needs the real images of ATAC_DATA: {DATA / name} is not there")
    files = find_images(DATA / name).files
    pixels = read_image(files[len(files) // 2])
    whole = Box.around(pixels)
    box = Box(left=96, top=31, right=170, bottom=140).scaled(of=PAPER.box, to=whole)
    for seen in (whole, box):
        assert_same_picture(kernels.view(pixels, seen, spec), view(pixels, seen, spec))


def test_pass_2_of_the_paper_is_cut_from_the_view(kernels) -> None:
    pixels = defective_part(1, width=640, height=480)
    whole = view(pixels, Box.around(pixels), PAPER)
    box = Box(left=31, top=8, right=119, bottom=140)
    expected, _ = zoomed(pixels, whole, box, PAPER)
    second = ViewSpec(equalise="never")
    assert np.array_equal(kernels.view(whole, box, second, confined=True), expected)


@pytest.mark.parametrize("shape", [(3, 3), (4, 5), (97, 130)])
@pytest.mark.parametrize(
    ("red", "code"),
    [
        ((0, 0), cv2.COLOR_BayerRGGB2RGB),
        ((1, 0), cv2.COLOR_BayerGRBG2RGB),
        ((0, 1), cv2.COLOR_BayerGBRG2RGB),
        ((1, 1), cv2.COLOR_BayerBGGR2RGB),
    ],
)
def test_bayer_frames_become_opencvs_rgb(kernels, shape, red, code) -> None:
    raw = noise(*shape)
    assert np.array_equal(kernels.demosaic(raw, red=red), cv2.cvtColor(raw, code))


def assert_same_box(kernels: Kernels, attention: Map, crop: CropSpec, side: int) -> None:
    frame = Box.whole(1280, 1024)
    expected = attention_box(attention, Box.whole(side, side), crop)
    found = kernels.boxes(attention[None], side, crop, frame)
    in_frame = expected.scaled(of=Box.whole(side, side), to=frame)
    assert found == [(expected, in_frame, expected != Box.whole(side, side))]


CROPS = st.builds(
    CropSpec,
    omega=st.floats(0.01, 1),
    gate=st.sampled_from([0.0, 0.3, 0.9]),
    padding=st.floats(0, 1),
    min_side=st.integers(1, 300),
    square=st.booleans(),
)


@settings(max_examples=400)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 28), st.integers(1, 28)),
    power=st.floats(0.2, 20),
    crop=CROPS,
    side=st.integers(32, 240),
)
def test_boxes_of_random_maps_are_the_engines(kernels, seed, shape, power, crop, side) -> None:
    attention = np.random.default_rng(seed).random(shape, np.float32) ** np.float32(power)
    assert_same_box(kernels, attention, crop, side)


@settings(max_examples=400)
@given(
    attention=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=16),
        elements=st.sampled_from([0, 0.25, 1, 1e-30, 3e38, -1, np.nan, np.inf, -np.inf])
        | st.floats(width=32),
    ),
    crop=CROPS,
)
def test_boxes_of_strange_maps_are_the_engines(kernels, attention, crop) -> None:
    assert_same_box(kernels, attention, crop, 224)


def test_boxes_of_many_maps_do_not_mix(kernels) -> None:
    attention = np.random.default_rng(0).random((16, 14, 14), np.float32) ** 8
    attention[3] = 0
    view_box = Box.whole(224, 224)
    found = kernels.boxes(attention, 224, CropSpec(), Box.whole(640, 480))
    assert [box for box, _, _ in found] == [
        attention_box(each, view_box, CropSpec()) for each in attention
    ]
    assert [zooms for _, _, zooms in found] == [box != view_box for box, _, _ in found]


@settings(max_examples=200)
@given(
    maps=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 16), st.integers(1, 16)),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    ),
    share=st.floats(0.01, 1),
)
def test_scores_are_the_engines(kernels, maps, share) -> None:
    expected = [top_k_mean(each, share) for each in maps]
    assert kernels.scores(maps, share) == pytest.approx(expected, rel=1e-12)


def test_equal_maps_score_the_same_bits_alone_and_in_a_batch(kernels) -> None:
    one = np.random.default_rng(0).normal(size=(1, 14, 14)).astype(np.float32)
    assert kernels.scores(np.repeat(one, 3, axis=0), 0.1) == kernels.scores(one, 0.1) * 3


def test_a_broken_network_is_heard_of(kernels) -> None:
    maps = np.zeros((2, 7, 7), np.float32)
    maps[0, 2, 2] = np.nan
    maps[1, 2, 2] = np.inf
    not_a_number, infinite = kernels.scores(maps, 0.1)
    assert np.isnan(not_a_number)
    assert infinite == np.inf


@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.cu")), ids=lambda path: path.stem)
def test_nvcc_compiles_the_kernels_without_spilling(source) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc: make builders, or the CUDA toolkit")
    # The oldest and the newest; .ci/run has tools/kernel_report.py compile for all.
    found = compiled(nvcc, source, (ARCHITECTURES[0], ARCHITECTURES[-1]))
    assert len(found) == 2 * source.read_text().count("ATAC_KERNEL ")
    assert not [each for each in found if each.spilled]
    assert max(each.registers for each in found) <= MOST_REGISTERS
