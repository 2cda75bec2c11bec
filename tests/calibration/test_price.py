"""What each promise costs, by scores that can be counted by hand."""

import itertools
from statistics import fmean

import numpy as np
import pytest

from calibration.bound import allowed_exceedances
from calibration.price import (
    arguable,
    at_promise,
    carried,
    over_all_partings,
    prices,
    with_more_parts,
    without_highest,
)
from calibration.threshold import choose_threshold

PROMISE = {"max_false_reject": 0.03, "confidence": 0.95}
PILLS = [3.2 + i / 100 for i in range(98)] + [7.5, 9.3]
"""A hundred good parts, two of them far above the others."""
DEFECTS = [3.4 + i / 50 for i in range(50)] + [10.0] * 50


def test_prices_are_those_that_calibration_would_choose() -> None:
    found = prices(PILLS, DEFECTS, confidence=0.95)
    assert [price.max_false_reject for price in found] == [0.001, 0.005, 0.01, 0.03, 0.05]
    assert [price.missing for price in found] == [2895, 498, 199, 0, 0]
    for price in found[3:]:
        expected = choose_threshold(
            PILLS, max_false_reject=price.max_false_reject, confidence=0.95
        ).value
        assert price.threshold == expected
        assert price.found == sum(score > expected for score in DEFECTS)
    assert all((price.threshold, price.found) == (None, None) for price in found[:3])
    assert prices(PILLS, [], confidence=0.95)[3].found is None


def test_two_parts_that_cost_defects_are_arguable() -> None:
    found = arguable(PILLS, DEFECTS, **PROMISE)
    assert found is not None
    assert (found.removed, found.missing) == (2, 1)
    assert found.threshold == pytest.approx(4.17)
    assert found.found == 61
    one = without_highest(PILLS, DEFECTS, removed=1, **PROMISE)
    assert (one.threshold, one.found, one.missing) == (7.5, 50, 0)


def test_parts_that_cost_nothing_are_not_arguable() -> None:
    assert arguable(PILLS[:98], DEFECTS, max_false_reject=0.05, confidence=0.95) is None
    clear = [20.0] * 100
    assert arguable(PILLS, clear, **PROMISE) is None
    assert arguable([1.0], [2.0, 3.0], **PROMISE) is None


def test_without_defects_what_is_far_above_the_others_is_arguable() -> None:
    found = arguable(PILLS, [], **PROMISE)
    assert found is not None
    assert (found.removed, found.found) == (2, None)
    assert arguable(PILLS[:98], [], **PROMISE) is None
    # Where many are high, good parts are like that.
    assert arguable([*PILLS, *range(10, 20)], [], **PROMISE) is None


def test_more_parts_are_worth_what_drawing_from_these_scores_gives() -> None:
    rng = np.random.default_rng(0)
    good, defects = rng.normal(0, 1, 100).tolist(), rng.normal(2.5, 1, 200).tolist()
    found = with_more_parts(good, defects, **PROMISE)
    # 100 parts allow none above; 157 allow 1, 208 allow 2, 303 allow 4.
    assert [one.more for one in found] == [57, 108, 203]
    parts = 100 + found[1].more
    assert allowed_exceedances(parts, **PROMISE) == 2
    drawn = np.sort(rng.choice(good, (4000, parts)), axis=1)[:, -3]
    simulated = fmean(float((np.array(defects) > threshold).mean()) for threshold in drawn)
    assert found[1].found == pytest.approx(simulated, abs=0.01)
    assert with_more_parts(good, [], **PROMISE) == ()


def test_the_mean_over_all_partings_is_exact() -> None:
    good, defects = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.5, 3.5, 5.5, 9.0]
    found = over_all_partings(good, defects, max_false_reject=0.7, confidence=0.5, share=0.67)
    rate, allowed = carried(4, max_false_reject=0.7, confidence=0.5)
    assert (rate, allowed) == (0.7, 2)
    every = [
        at_promise(
            chosen,
            [score for score in good if score not in chosen],
            defects,
            max_false_reject=0.7,
            confidence=0.5,
        )
        for chosen in itertools.combinations(good, 4)
    ]
    assert found.parts == 4
    assert found.found == pytest.approx(fmean(one.found for one in every))
    # Whatever the scores, 2 of 4 above the threshold leave 3 of 5 to be above it on average.
    assert found.false_rejects is None
    assert fmean(one.false_rejects or 0 for one in every) == pytest.approx(3 / 5)


def test_too_few_parts_give_the_lowest_promise_they_carry() -> None:
    found = at_promise(PILLS[:40], [3.0, 4.0], DEFECTS, **PROMISE)
    assert found.promised == pytest.approx(0.0722, abs=1e-4)
    assert found.false_rejects == 0.5
    assert at_promise(PILLS, [], DEFECTS, **PROMISE).false_rejects is None
