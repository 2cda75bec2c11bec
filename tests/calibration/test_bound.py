import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.bound import (
    allowed_exceedances,
    binomial_cdf,
    good_parts_needed,
    interval,
    upper_bound,
)

RATES = st.floats(1e-4, 0.2)
CONFIDENCES = st.floats(0.5, 0.999)


@pytest.mark.parametrize(
    ("max_false_reject", "confidence", "needed"),
    [
        (0.01, 0.95, 299),
        (0.001, 0.95, 2995),
        (0.05, 0.95, 59),
        (0.10, 0.95, 29),
        (0.01, 0.99, 459),
        (0.5, 0.5, 1),
        (0.5, 0.875, 3),  # exactly (1/2)^3
    ],
)
def test_known_numbers_of_good_parts(
    max_false_reject: float, confidence: float, needed: int
) -> None:
    assert good_parts_needed(max_false_reject=max_false_reject, confidence=confidence) == needed


# Wilks' tables for 95 %/95 % (first order 59, then 93, 124, 153, 181) and its 99 % content rows.
@pytest.mark.parametrize(
    ("good", "rate", "allowed"),
    [
        (58, 0.05, None),
        (59, 0.05, 0),
        (92, 0.05, 0),
        (93, 0.05, 1),
        (123, 0.05, 1),
        (124, 0.05, 2),
        (153, 0.05, 3),
        (181, 0.05, 4),
        (298, 0.01, None),
        (299, 0.01, 0),
        (472, 0.01, 0),
        (473, 0.01, 1),
        (0, 0.01, None),
    ],
)
def test_known_order_statistics(good: int, rate: float, allowed: int | None) -> None:
    assert allowed_exceedances(good, max_false_reject=rate, confidence=0.95) == allowed


@given(trials=st.integers(1, 60), rate=st.fractions(Fraction(1, 1000), Fraction(999, 1000)))
def test_the_binomial_sum_is_exact(trials: int, rate: Fraction) -> None:
    exact = Fraction(0)
    for successes in range(trials):
        exact += math.comb(trials, successes) * rate**successes * (1 - rate) ** (trials - successes)
        assert binomial_cdf(successes, trials, float(rate)) == pytest.approx(
            float(exact), rel=1e-9, abs=1e-300
        )


@given(good=st.integers(1, 1000), rate=RATES, confidence=CONFIDENCES)
def test_the_allowance_is_the_largest_that_keeps_the_promise(
    good: int, rate: float, confidence: float
) -> None:
    allowed = allowed_exceedances(good, max_false_reject=rate, confidence=confidence)
    risk = 1 - confidence
    if allowed is None:
        assert binomial_cdf(0, good, rate) > risk
        assert good < good_parts_needed(max_false_reject=rate, confidence=confidence)
    else:
        assert binomial_cdf(allowed, good, rate) <= risk * (1 + 1e-8)
        assert allowed + 1 >= good or binomial_cdf(allowed + 1, good, rate) > risk
        assert upper_bound(allowed, good, confidence=confidence) <= rate * (1 + 1e-8)
        assert good >= good_parts_needed(max_false_reject=rate, confidence=confidence)


def test_no_part_is_more_than_needed() -> None:
    needed = good_parts_needed(max_false_reject=0.003, confidence=0.97)
    assert allowed_exceedances(needed, max_false_reject=0.003, confidence=0.97) == 0
    assert allowed_exceedances(needed - 1, max_false_reject=0.003, confidence=0.97) is None


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.30850),  # Clopper and Pearson's own example has 0 of 10: 0 to .31
        (10, 10, 0.69150, 1.0),
        (5, 10, 0.18709, 0.81291),
        (1, 20, 0.00127, 0.24873),
        (60, 63, 0.86708, 0.99007),
    ],
)
def test_known_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert interval(successes, trials, confidence=0.95) == pytest.approx((low, high), abs=2e-5)


def test_without_parts_nothing_is_known() -> None:
    assert interval(0, 0, confidence=0.95) == (0.0, 1.0)
    assert upper_bound(0, 0, confidence=0.95) == 1.0


@given(trials=st.integers(1, 100), data=st.data(), confidence=CONFIDENCES)
def test_an_interval_holds_its_estimate_and_mirrors(
    trials: int, data: st.DataObject, confidence: float
) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = interval(successes, trials, confidence=confidence)
    assert 0 <= low <= successes / trials <= high <= 1
    mirrored = interval(trials - successes, trials, confidence=confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_large_numbers_neither_overflow_nor_vanish() -> None:
    allowed = allowed_exceedances(200_000, max_false_reject=0.01, confidence=0.95)
    assert allowed is not None
    # Normal approximation: 2000 - 1.645 √1980 = 1926.8.
    assert abs(allowed - 1926) <= 2
    assert upper_bound(allowed, 200_000, confidence=0.95) == pytest.approx(0.01, rel=1e-3)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    intervals = [interval(successes, 40, confidence=0.9) for successes in range(41)]
    for rate in (0.02, 0.3, 0.9):
        found = [intervals[successes] for successes in rng.binomial(40, rate, 5000)]
        covered = sum(low <= rate <= high for low, high in found)
        assert covered >= 4500 - 64  # three standard deviations below the nominal 90 %
