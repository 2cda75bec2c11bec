"""Drift: both tests keep their rate of false alarms, and find what has changed."""

import math
import random

import pytest

from calibration.drift import ALPHA, ScoreTest, audit


def test_the_exact_test_is_the_binomial_tail():
    tail = sum(math.comb(60, k) * 0.05**k * 0.95 ** (60 - k) for k in range(7, 61))
    found = audit(7, 60, promised=0.05)
    assert found.p_value == pytest.approx(tail)
    assert found.between[0] < 7 / 60 < found.between[1]


@pytest.mark.parametrize(
    ("exceedances", "good", "is_broken"),
    [
        (0, 0, False),
        (0, 1000, False),
        (3, 60, False),
        (12, 60, True),
        (60, 60, True),
        (1, 1, False),
    ],
)
def test_a_promise_is_refuted_by_what_it_excludes(exceedances, good, is_broken):
    assert audit(exceedances, good, promised=0.05).is_broken is is_broken


def test_an_audit_that_is_looked_at_each_time_says_broken_falsely_as_seldom_as_stated():
    draw, false = random.Random(1), 0
    for _ in range(300):
        above = 0
        for parts in range(1, 201):
            above += draw.random() < 0.05
            if audit(above, parts, promised=0.05).is_broken:
                false += 1
                break
    assert false <= 300 * ALPHA


@pytest.mark.parametrize("promised", [1e-6, 0.01, 0.5, 0.985])
def test_every_promise_can_be_audited(promised):
    assert audit(0, 10, promised=promised).stake <= 1
    assert audit(10, 10, promised=promised).stake >= 1
    assert math.isfinite(audit(100_000, 100_000, promised=promised).stake)


def drawn(seed, shift=0.0, spread=1.0):
    draw = random.Random(seed)
    while True:
        yield shift + spread * draw.gauss(0, 1)


def first_alarm(test, scores, limit):
    return next(
        (n for n, score in zip(range(1, limit + 1), scores, strict=False) if test.add(score)), None
    )


def test_while_nothing_changes_alarms_are_further_apart_than_stated():
    apart = 0
    for seed in range(40):
        scores = drawn(seed)
        test = ScoreTest(
            [next(scores) for _ in range(100)], threshold=9, parts_between=500, seed=seed
        )
        apart += first_alarm(test, scores, 5000) or 5000
    assert apart / 40 > 500


@pytest.mark.parametrize(
    ("shift", "spread", "within"), [(1.0, 1.0, 200), (-1.0, 1.0, 200), (0, 2.5, 400), (0, 0.3, 400)]
)
def test_scores_that_change_are_noticed(shift, spread, within):
    before, after = drawn(1), drawn(2, shift, spread)
    test = ScoreTest([next(before) for _ in range(300)], threshold=9)
    assert first_alarm(test, before, 1000) is None
    assert first_alarm(test, after, within) is not None


def test_parts_above_the_threshold_do_not_count():
    test = ScoreTest([0.1, 0.2, 5.0], threshold=1.0)
    assert not any(test.add(7.0) for _ in range(10_000))
    assert (test.parts, test.evidence) == (0, 0.0)


def test_equal_scores_are_no_drift():
    test = ScoreTest([0.0] * 50, threshold=1.0)
    assert not any(test.add(0.0) for _ in range(3000))
