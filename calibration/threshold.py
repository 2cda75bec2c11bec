"""Scores of good parts → the threshold that keeps a promise about rejecting them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calibration.bound import (
    allowed_exceedances,
    binomial_cdf,
    good_parts_needed,
    upper_bound,
)
from engine.errors import CalibrationError
from engine.pages.text import percent

OFFERED = (0.01, 0.03, 0.05)
"""What is promised where nobody asks for another limit: the first that the parts carry."""
_USEFUL = 0.05
"""A higher false-reject rate is not offered: few lines could bear it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A score above which parts are rejected, and what it promises.

    `allowed` is j: the threshold is the (j+1)-th largest score. `exceedances` is how many scores
    really lie above it, fewer than j only where scores tie. `guaranteed` is the false-reject rate
    that these parts exclude from above, at most the one asked for.
    """

    value: float
    allowed: int
    exceedances: int
    guaranteed: float


def choose_threshold(
    scores: Sequence[float], *, max_false_reject: float, confidence: float
) -> Threshold:
    """The lowest threshold at which at most `max_false_reject` of good parts are rejected.

    `scores` are of good parts drawn like those to come, in any order; both rates lie strictly
    between 0 and 1. The promise holds with probability `confidence` over the draw of these parts,
    whatever the distribution (see `calibration.bound`). The lowest such threshold lets the fewest
    defects pass. Raises `CalibrationError`, saying how many good parts it takes, for too few.
    """
    parts = len(scores)
    allowed = require_enough(parts, max_false_reject=max_false_reject, confidence=confidence)
    value = sorted(scores)[-1 - allowed]
    return Threshold(
        value=value,
        allowed=allowed,
        exceedances=sum(score > value for score in scores),
        guaranteed=upper_bound(allowed, parts, confidence=confidence),
    )


def best_promise(parts: int, *, confidence: float) -> float:
    """The lowest of `OFFERED` that this number of good parts carries, or the highest of them."""
    for rate in OFFERED:
        if is_carried(parts, max_false_reject=rate, confidence=confidence):
            return rate
    return OFFERED[-1]


def is_carried(parts: int, *, max_false_reject: float, confidence: float) -> bool:
    """Whether this number of good parts is enough for the promise."""
    allowed = allowed_exceedances(parts, max_false_reject=max_false_reject, confidence=confidence)
    return allowed is not None


def band(
    scores: Sequence[float], *, max_false_reject: float, confidence: float
) -> tuple[float, float]:
    """How far from the threshold a score says nothing: other good parts would have moved it there.

    The threshold is the upper confidence limit of the score that `max_false_reject` of good parts
    exceed. The band reaches from that score's lower limit to as far above the threshold.
    """
    threshold = choose_threshold(
        scores, max_false_reject=max_false_reject, confidence=confidence
    ).value
    parts = len(scores)
    above = next(j for j in range(parts) if binomial_cdf(j, parts, max_false_reject) >= confidence)
    low = sorted(scores)[-1 - above]
    return low, 2 * threshold - low


def require_enough(
    parts: int, *, max_false_reject: float, confidence: float, of_training: int = 0
) -> int:
    """How many of `parts` good parts the promise allows above the threshold.

    Args:
        parts: How many there are.
        max_false_reject: The share of good parts that may be rejected.
        confidence: The confidence with which no more are.
        of_training: How many of them are training's own, scored without themselves.

    Raises:
        CalibrationError: The promise cannot stand on so few: worth asking before scoring them.
    """
    allowed = allowed_exceedances(parts, max_false_reject=max_false_reject, confidence=confidence)
    if allowed is not None:
        return allowed
    needed = good_parts_needed(max_false_reject=max_false_reject, confidence=confidence)
    those = "all" if of_training == parts else of_training
    message = (
        f"at most {percent(max_false_reject)} false rejects with {percent(confidence)} confidence "
        f"needs {needed} good parts{'' if of_training else ' that training has not seen'}; "
        f"there are {parts}{f', {those} of them from training' if of_training else ''}: "
        f"bring {needed - parts} more"
    )
    if parts:
        possible = math.ceil(1000 * upper_bound(0, parts, confidence=confidence)) / 1000
        message += (
            f", or ask for what {parts} can carry: --max-false-reject {100 * possible:g}%"
            if possible <= _USEFUL
            else f" ({parts} are too few for a useful promise)"
        )
    raise CalibrationError(message)
