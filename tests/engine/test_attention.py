import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.attention import CropSpec, attention_box
from engine.frame import Box, Map

VIEW = Box.whole(224, 224)
PAPER = CropSpec()


def one_patch(side: int, row: int, column: int) -> Map:
    attention = np.zeros((side, side), np.float32)
    attention[row, column] = 1
    return attention


@pytest.mark.parametrize(
    ("side", "patch", "first", "last"),
    [(7, 3, 93, 130), (7, 0, 0, 34), (14, 7, 111, 128), (14, 6, 95, 112)],
)
def test_one_active_cell_gives_the_boxes_of_the_spec(
    side: int, patch: int, first: int, last: int
) -> None:
    # A single interior patch of 7×7 covers 38×38 pixels, a corner 35×35; 14×14: 18×18.
    box = attention_box(one_patch(side, patch, patch), VIEW, PAPER)
    assert box == Box(left=first, top=first, right=last + 1, bottom=last + 1)


def test_rows_are_rows_and_columns_are_columns() -> None:
    box = attention_box(one_patch(7, 0, 6), VIEW, PAPER)
    assert (box.top, box.bottom) == (0, 35)
    assert (box.left, box.right) == (189, 224)


def test_two_distant_cells_are_both_inside() -> None:
    attention = one_patch(7, 0, 0) + one_patch(7, 6, 6)
    assert attention_box(attention, VIEW, PAPER) == VIEW


def test_uncropped_until_the_peak_is_two_and_a_half_times_the_background() -> None:
    def box(background: float) -> Box:
        attention = np.full((7, 7), background, np.float32)
        attention[3, 3] = 1
        return attention_box(attention, VIEW, PAPER)

    assert box(0.41) == VIEW
    assert box(0.39) != VIEW


DEGENERATE = {
    "zeros": np.zeros((7, 7), np.float32),
    "negative": np.full((7, 7), -1, np.float32),
    "constant": np.full((7, 7), 0.3, np.float32),
    "one NaN": np.where(one_patch(7, 3, 3) > 0, np.float32(np.nan), np.float32(1)),
    "all NaN": np.full((7, 7), np.nan, np.float32),
    "infinite": np.where(one_patch(7, 3, 3) > 0, np.float32(np.inf), np.float32(0)),
    "minus infinite": np.full((7, 7), -np.inf, np.float32),
    "one patch": np.ones((1, 1), np.float32),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_a_map_that_says_nothing_gives_the_whole_view(name: str) -> None:
    assert attention_box(DEGENERATE[name], VIEW, PAPER) == VIEW


def test_negative_cells_count_as_nothing() -> None:
    attention = one_patch(7, 3, 3) - np.float32(5) * one_patch(7, 0, 0)
    assert attention_box(attention, VIEW, PAPER) == attention_box(one_patch(7, 3, 3), VIEW, PAPER)


def test_the_smallest_and_the_largest_values_still_point() -> None:
    expected = attention_box(one_patch(7, 3, 3), VIEW, PAPER)
    for factor in (1e-30, 1e30):
        assert attention_box(one_patch(7, 3, 3) * np.float32(factor), VIEW, PAPER) == expected


def test_a_peak_below_the_gate_attends_to_nothing() -> None:
    attention = one_patch(7, 3, 3) * np.float32(0.4)
    assert attention_box(attention, VIEW, CropSpec(gate=0.5)) == VIEW
    assert attention_box(attention, VIEW, CropSpec(gate=0.3)) != VIEW


def test_a_peak_that_upsampling_flattens_below_omega_gives_the_whole_view() -> None:
    # Between two equal patches no view pixel sits exactly on the peak of a single one.
    assert attention_box(one_patch(7, 3, 3), Box.whole(6, 6), CropSpec(omega=1.0)) == Box.whole(
        6, 6
    )


def test_padding_minimum_side_and_square_grow_the_box_and_stay_inside() -> None:
    corner = one_patch(7, 0, 0)
    assert attention_box(corner, VIEW, CropSpec(padding=0.1)) == Box(
        left=0, top=0, right=43, bottom=43
    )
    assert attention_box(corner, VIEW, CropSpec(min_side=96)) == Box.whole(96, 96)
    wide = one_patch(7, 3, 2) + one_patch(7, 3, 4)
    box = attention_box(wide, VIEW, CropSpec(square=True))
    assert box.width == box.height == 102


@given(
    attention=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=16),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    ),
    crop=st.builds(
        CropSpec,
        omega=st.floats(0.01, 1),
        padding=st.floats(0, 1),
        min_side=st.integers(1, 300),
        square=st.booleans(),
    ),
    side=st.integers(32, 96),
)
def test_every_map_gives_a_box_inside_the_view(attention: Map, crop: CropSpec, side: int) -> None:
    whole = Box.whole(side, side)
    box = attention_box(attention, whole, crop)
    assert box.right <= side
    assert box.bottom <= side
    assert min(box.width, box.height) >= min(crop.min_side, side)
    if crop.square:
        assert box.width == box.height
