from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.part import State, decide
from calibration.threshold import band, choose_threshold, require_enough
from engine.errors import CalibrationError

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]

# Each with the exact probability of a score above t.
DISTRIBUTIONS: dict[str, tuple[Draw, Callable[[float], float]]] = {
    "uniform": (lambda rng, n: rng.random(n), lambda t: 1 - t),
    "heavy tail": (lambda rng, n: rng.pareto(1.0, n), lambda t: 1 / (1 + t)),
    # Nine grey values only: most scores tie.
    "ties": (
        lambda rng, n: np.minimum(8, rng.geometric(0.5, n)).astype(float),
        lambda t: 0.0 if t >= 8 else 0.5**t,
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("good", [59, 120, 181])
def test_the_promise_is_kept_as_often_as_it_says(name: str, good: int) -> None:
    draw, above = DISTRIBUTIONS[name]
    rng = np.random.default_rng(good)
    trials = 2000
    broken = sum(
        above(choose_threshold(list(draw(rng, good)), max_false_reject=0.05, confidence=0.95).value)
        > 0.05
        for _ in range(trials)
    )
    # At most 5 % of calibrations may break it; 4 standard deviations on top.
    assert broken <= 0.05 * trials + 4 * (trials * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("good", [59, 181])
def test_the_band_reaches_down_to_the_other_limit_of_the_same_score(good: int) -> None:
    rng = np.random.default_rng(good)
    too_high = 0
    for _ in range(2000):
        scores = list(rng.random(good))
        low, high = band(scores, max_false_reject=0.05, confidence=0.95)
        threshold = choose_threshold(scores, max_false_reject=0.05, confidence=0.95).value
        assert low < threshold < high
        assert high - threshold == pytest.approx(threshold - low)
        too_high += low > 0.95
    # The score that 5 % exceed lies below the band in at most 5 % of the draws, and not in far
    # fewer, as the band would then be wider than it need be.
    assert 20 < too_high < 100 + 4 * (2000 * 0.05 * 0.95) ** 0.5


def test_the_bound_is_not_only_kept_but_met() -> None:
    # At n = 59 a continuous score breaks the promise with 0.95^59 = 4.85 %: nothing is wasted.
    rng = np.random.default_rng(1)
    broken = sum(
        choose_threshold(list(rng.random(59)), max_false_reject=0.05, confidence=0.95).value < 0.95
        for _ in range(4000)
    )
    assert 0.035 < broken / 4000 < 0.062


@given(
    scores=st.lists(st.floats(0, 100), min_size=59, max_size=200),
    confidence=st.floats(0.5, 0.95),
)
def test_the_threshold_is_a_score_and_no_more_than_allowed_lie_above(
    scores: list[float], confidence: float
) -> None:
    found = choose_threshold(scores, max_false_reject=0.05, confidence=confidence)
    assert found.value in scores
    assert found.exceedances == sum(score > found.value for score in scores) <= found.allowed
    assert sum(score >= found.value for score in scores) > found.allowed
    assert found.guaranteed <= 0.05 + 1e-9


def test_the_line_rejects_exactly_the_exceedances() -> None:
    from types import SimpleNamespace

    scores = [float(score % 70) for score in range(140)]
    found = choose_threshold(scores, max_false_reject=0.05, confidence=0.95)
    verdicts = [decide(SimpleNamespace(score=score), found.value) for score in scores]
    assert verdicts.count(State.NG) == found.exceedances == 2


def test_equal_scores_give_a_threshold_that_rejects_none() -> None:
    found = choose_threshold([0.0] * 300, max_false_reject=0.05, confidence=0.95)
    assert (found.value, found.exceedances) == (0.0, 0)
    assert found.allowed > 0


def test_too_few_parts_are_refused_with_the_number_it_takes() -> None:
    with pytest.raises(CalibrationError) as caught:
        choose_threshold([1.0] * 200, max_false_reject=0.01, confidence=0.95)
    assert str(caught.value) == (
        "at most 1 % false rejects with 95 % confidence needs 299 good parts that training has "
        "not seen; there are 200: bring 99 more, or ask for what 200 can carry: "
        "--max-false-reject 1.5%"
    )


@given(parts=st.integers(59, 298))
def test_what_the_refusal_offers_can_be_had(parts: int) -> None:
    with pytest.raises(CalibrationError) as caught:
        require_enough(parts, max_false_reject=0.01, confidence=0.95)
    offered = float(str(caught.value).rsplit(" ", 1)[1].rstrip("%")) / 100
    assert require_enough(parts, max_false_reject=offered, confidence=0.95) == 0


def test_a_promise_that_helps_nobody_is_not_offered() -> None:
    with pytest.raises(CalibrationError, match=r"bring 241 more \(58 are too few for a useful pro"):
        require_enough(58, max_false_reject=0.01, confidence=0.95)


def test_without_any_part_nothing_is_offered() -> None:
    with pytest.raises(CalibrationError, match=r"there are 0: bring 59 more$"):
        require_enough(0, max_false_reject=0.05, confidence=0.95)
