import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.frame import Map
from engine.score import ScoreSpec, deviation, top_k_count, top_k_mean


@pytest.mark.parametrize(("patches", "k"), [(49, 4), (196, 19), (1, 1), (9, 1), (10, 1), (20, 2)])
def test_k_is_the_share_rounded_down_and_at_least_one(patches: int, k: int) -> None:
    assert top_k_count(patches, 0.10) == k


def test_the_largest_magnitudes_count_whatever_their_sign() -> None:
    score_map = np.zeros((7, 7), np.float32)
    score_map[0, :5] = [-8, 6, -4, 2, 1]
    assert top_k_mean(score_map, 0.10) == 5.0  # the four of 8, 6, 4, 2


def test_a_share_of_one_is_the_mean_of_all() -> None:
    assert top_k_mean(np.array([[1, -2], [3, -4]], np.float32), 1.0) == 2.5


def test_nan_does_not_hide_behind_the_other_cells() -> None:
    score_map = np.ones((7, 7), np.float32)
    score_map[3, 3] = np.nan
    assert np.isnan(top_k_mean(score_map, 0.10))


def test_deviation_is_counted_in_reference_standard_deviations() -> None:
    assert deviation(3.0, ScoreSpec(reference_mean=1.0, reference_std=0.5)) == 4.0


@given(
    score_map=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    share=st.floats(0.01, 1),
)
def test_the_score_is_the_mean_of_the_sorted_tail(score_map: Map, share: float) -> None:
    k = top_k_count(score_map.size, share)
    tail = sorted(abs(float(value)) for value in score_map.ravel())[-k:]
    assert top_k_mean(score_map, share) == pytest.approx(sum(tail) / k, rel=1e-9, abs=1e-12)
