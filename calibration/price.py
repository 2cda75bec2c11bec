"""What each promise costs: the defects that are found for each limit on false rejects.

A lower limit needs more good parts and a higher threshold, and lets more defects pass. A single
good part may set the threshold; whether it is really good is then worth a look.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

import numpy as np

from calibration.bound import allowed_exceedances, binomial_cdf, good_parts_needed, upper_bound

PROMISES: Final = (0.001, 0.005, 0.01, 0.03, 0.05)
"""Limits on false rejects that a line may want."""

_MOST_REMOVED: Final = 3
"""The most good parts that may be arguable; where more are high, good parts are like that."""
_COSTLY: Final = 0.05
"""The least share of the defects that a removal must bring to be worth telling."""
_ENOUGH_OF_IT: Final = 0.8
"""The share of the greatest gain that a smaller removal must bring to be preferred."""
_FAR: Final = 3.0
"""A score this many interquartile ranges above the upper quartile is far out (Tukey 1977)."""
_LEAST_FOR_QUARTERS: Final = 12
_FURTHER: Final = (1, 2, 4)
"""How many more parts above the threshold are worth a line of their own."""
_MOST_TIMES: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One limit on false rejects and what it costs.

    `missing` good parts are missing for it; only where none are, there is a threshold. `found` of
    the defects score above it; None where there is no threshold or no defect.
    """

    max_false_reject: float
    missing: int
    threshold: float | None
    found: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The same promise without the `removed` good parts that score highest.

    `missing` good parts would be missing for the promise; the threshold is then the highest score
    of the others.
    """

    removed: int
    missing: int
    threshold: float
    found: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What `more` good parts like these would be worth: the share of defects found, on average."""

    more: int
    found: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AtPromise:
    """What a promise finds, where some good parts set the threshold and others are judged by it.

    `promised` is the limit that `parts` good parts carry. `found` is a share, and `false_rejects`
    the share of the other good parts above the threshold, None where they say nothing.
    """

    promised: float
    parts: int
    found: float
    false_rejects: float | None


def prices(
    good: Sequence[float], defective: Sequence[float], *, confidence: float
) -> tuple[Price, ...]:
    """The price of each of `PROMISES`, by scores of good and of defective parts."""
    ascending = sorted(good)
    found = []
    for rate in PROMISES:
        allowed = allowed_exceedances(len(good), max_false_reject=rate, confidence=confidence)
        threshold = None if allowed is None else ascending[-1 - allowed]
        needed = good_parts_needed(max_false_reject=rate, confidence=confidence)
        found.append(
            Price(
                max_false_reject=rate,
                missing=max(0, needed - len(good)),
                threshold=threshold,
                found=None if threshold is None else _above(defective, threshold),
            )
        )
    return tuple(found)


def without_highest(
    good: Sequence[float],
    defective: Sequence[float],
    *,
    removed: int,
    max_false_reject: float,
    confidence: float,
) -> Removal:
    """What the promise would find if the `removed` highest good parts were not really good.

    Args:
        good: Scores of good parts, more than `removed`.
        defective: Scores of defective parts.
        removed: How many good parts go.
        max_false_reject: The share of good parts that may be rejected.
        confidence: The confidence with which no more are.
    """
    others = sorted(good)[: len(good) - removed]
    allowed = allowed_exceedances(
        len(others), max_false_reject=max_false_reject, confidence=confidence
    )
    needed = good_parts_needed(max_false_reject=max_false_reject, confidence=confidence)
    threshold = others[-1 - (allowed or 0)]
    return Removal(
        removed=removed,
        missing=max(0, needed - len(others)),
        threshold=threshold,
        found=_above(defective, threshold),
    )


def arguable(
    good: Sequence[float],
    defective: Sequence[float],
    *,
    max_false_reject: float,
    confidence: float,
) -> Removal | None:
    """The few good parts that cost detection, if there are any: what would be without them.

    With defects, removing them finds a twentieth of the defects more, two at least. Without, they
    are those that score far above the others.

    Args:
        good: Scores of the good parts that set the threshold.
        defective: Scores of defective parts.
        max_false_reject: The share of good parts that may be rejected.
        confidence: The confidence with which no more are.
    """
    most = min(_MOST_REMOVED, len(good) - 1)
    now, *removals = (
        without_highest(
            good,
            defective,
            removed=removed,
            max_false_reject=max_false_reject,
            confidence=confidence,
        )
        for removed in range(most + 1)
    )
    if not defective:
        outliers = _far_out(good)
        changed = 0 < outliers <= most and removals[outliers - 1].threshold < now.threshold
        return removals[outliers - 1] if changed else None
    gains = [(one.found or 0) - (now.found or 0) for one in removals]
    greatest = max(gains, default=0)
    if greatest < max(2, _COSTLY * len(defective)):
        return None
    return next(
        one for one, gain in zip(removals, gains, strict=True) if gain >= _ENOUGH_OF_IT * greatest
    )


def with_more_parts(
    good: Sequence[float],
    defective: Sequence[float],
    *,
    max_false_reject: float,
    confidence: float,
) -> tuple[Expected, ...]:
    """What more good parts would find: the next numbers of them that lower the threshold.

    An estimate: further parts are drawn from these scores again, so none is higher than these.

    Args:
        good: Scores of good parts.
        defective: Scores of defective parts; without any, nothing is expected.
        max_false_reject: The share of good parts that may be rejected.
        confidence: The confidence with which no more are.
    """
    if not defective:
        return ()
    have = len(good)

    def allowed(parts: int) -> int:
        found = allowed_exceedances(parts, max_false_reject=max_false_reject, confidence=confidence)
        return -1 if found is None else found

    now = allowed(have)
    expected = []
    for further in _FURTHER:
        reachable = takewhile(lambda parts: parts <= _MOST_TIMES * have, count(have + 1))
        parts = next((parts for parts in reachable if allowed(parts) >= now + further), None)
        if parts is None:
            break
        found = _expected_found(good, defective, parts=parts, allowed=allowed(parts))
        expected.append(Expected(more=parts - have, found=found))
    return tuple(expected)


def at_promise(
    good: Sequence[float],
    judged: Sequence[float],
    defective: Sequence[float],
    *,
    max_false_reject: float,
    confidence: float,
) -> AtPromise:
    """What a threshold from `good` does to other good parts and to defects.

    Args:
        good: Scores of the good parts that set the threshold, at least one.
        judged: Scores of other good parts.
        defective: Scores of defective parts, at least one.
        max_false_reject: The share of good parts that may be rejected; where `good` are too few for
            it, the lowest that they carry.
        confidence: The confidence with which no more are.
    """
    promised, allowed = carried(len(good), max_false_reject=max_false_reject, confidence=confidence)
    threshold = sorted(good)[-1 - allowed]
    return AtPromise(
        promised=promised,
        parts=len(good),
        found=_share_above(defective, threshold),
        false_rejects=_share_above(judged, threshold) if judged else None,
    )


def over_all_partings(
    good: Sequence[float],
    defective: Sequence[float],
    *,
    max_false_reject: float,
    confidence: float,
    share: float = 0.8,
) -> AtPromise:
    """The mean of `at_promise` over all ways to part `good`, of which `share` set the threshold.

    It is exact, since it is known how many partings have the i-th largest score as their threshold.
    The mean share of false rejects would be the same whatever the scores, so it is not given.

    Args:
        good: Scores of good parts, at least two.
        defective: Scores of defective parts, at least one.
        max_false_reject: As in `at_promise`.
        confidence: As in `at_promise`.
        share: How many of the good parts set the threshold.
    """
    n, descending = len(good), sorted(good, reverse=True)
    parts = min(n - 1, max(1, round(share * n)))
    promised, allowed = carried(parts, max_false_reject=max_false_reject, confidence=confidence)
    ways = [
        math.comb(place, allowed) * math.comb(n - 1 - place, parts - 1 - allowed)
        for place in range(n)
    ]
    weights = [way / math.comb(n, parts) for way in ways]
    return AtPromise(
        promised=promised,
        parts=parts,
        found=math.fsum(
            weight * _share_above(defective, threshold)
            for weight, threshold in zip(weights, descending, strict=True)
        ),
        false_rejects=None,
    )


def carried(parts: int, *, max_false_reject: float, confidence: float) -> tuple[float, int]:
    """The limit on false rejects that `parts` good parts carry, and how many may lie above.

    It is `max_false_reject`, or what no part above the threshold gives where they are too few.
    """
    allowed = allowed_exceedances(parts, max_false_reject=max_false_reject, confidence=confidence)
    if allowed is not None:
        return max_false_reject, allowed
    return upper_bound(0, parts, confidence=confidence), 0


def _expected_found(
    good: Sequence[float], defective: Sequence[float], *, parts: int, allowed: int
) -> float:
    """The mean share found if `parts` scores were drawn from `good`, with replacement."""
    ascending, n = sorted(good), len(good)
    expected, before = 0.0, 0.0
    for place, threshold in enumerate(ascending, start=1):
        # The threshold is this score or a lower one if at most `allowed` of the parts are higher.
        reached = binomial_cdf(allowed, parts, (n - place) / n) if place < n else 1.0
        expected += (reached - before) * _share_above(defective, threshold)
        before = reached
    return expected


def _far_out(good: Sequence[float]) -> int:
    """How many scores are far above the others."""
    if len(good) < _LEAST_FOR_QUARTERS:
        return 0
    lower, upper = (float(quarter) for quarter in np.quantile(good, (0.25, 0.75)))
    fence = upper + _FAR * (upper - lower)
    return sum(score > fence for score in good)


def _above(scores: Sequence[float], threshold: float) -> int | None:
    return sum(score > threshold for score in scores) if scores else None


def _share_above(scores: Sequence[float], threshold: float) -> float:
    return sum(score > threshold for score in scores) / len(scores)
