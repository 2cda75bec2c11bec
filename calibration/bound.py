"""How sure a count of parts makes us: exact binomial bounds, whatever the scores look like.

Let n good parts be drawn like those to come, and let the threshold be their (j+1)-th largest
score, so that at most j of them lie above it. A part is rejected when its score is strictly
above. For any ε, the true false-reject rate exceeds ε only if at most j of n independent parts
fall into the top ε of the distribution:

    P(rate > ε)  ≤  P(Binomial(n, ε) ≤ j)

For continuous scores this is an equality (the order statistics of n uniforms are
Beta(n-j, j+1)); ties only make the left side smaller. So the promise "rate ≤ ε with confidence c"
stands when the right side is at most 1 - c. With j = 0 it reads (1 - ε)^n ≤ 1 - c: 1 % at 95 %
needs n = 299.
"""

import math
from collections.abc import Iterator
from typing import Final

_ROUNDING: Final = 1 + 1e-9
"""What logarithms of factorials may lose; (1/2)^3 must not count as more than 1/8."""
_HALVINGS: Final = 60
"""Bring [0, 1] below the spacing of floats near 1."""


def allowed_exceedances(good: int, *, max_false_reject: float, confidence: float) -> int | None:
    """The largest j for which "at most j of `good` parts lie above" keeps the promise.

    `None` when not even j = 0 keeps it; `good_parts_needed` says how many parts would.
    """
    total = 0.0
    for j, probability in enumerate(_binomial_terms(good, max_false_reject)):
        total += probability
        if total > (1 - confidence) * _ROUNDING:
            return j - 1 if j else None
    return None


def good_parts_needed(*, max_false_reject: float, confidence: float) -> int:
    """The fewest good parts that can carry the promise: 299 for 1 % at 95 %."""
    parts = max(1, math.floor(math.log1p(-confidence) / math.log1p(-max_false_reject)))
    while (
        allowed_exceedances(parts, max_false_reject=max_false_reject, confidence=confidence) is None
    ):
        parts += 1
    return parts


def upper_bound(exceedances: int, parts: int, *, confidence: float) -> float:
    """The rate that `exceedances` of `parts` exclude from above with `confidence`.

    Clopper and Pearson's one-sided bound (Biometrika 26, 1934): the largest rate at which so few
    exceedances still have probability 1 - `confidence`. 1 without parts.
    """
    if exceedances >= parts:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        rate = (low + high) / 2
        if binomial_cdf(exceedances, parts, rate) <= 1 - confidence:
            high = rate
        else:
            low = rate
    return high


def interval(successes: int, trials: int, *, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's two-sided interval of a rate; (0, 1) without trials."""
    one_sided = (1 + confidence) / 2
    return (
        1 - upper_bound(trials - successes, trials, confidence=one_sided),
        upper_bound(successes, trials, confidence=one_sided),
    )


def binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """P(Binomial(trials, rate) ≤ successes), for 0 < rate < 1 and successes < trials."""
    terms = _binomial_terms(trials, rate)
    return min(1.0, math.fsum(next(terms) for _ in range(successes + 1)))


def _binomial_terms(trials: int, rate: float) -> Iterator[float]:
    """P(Binomial(trials, rate) = k) for k = 0, 1, … trials; by logarithms, none overflows."""
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    log_all = math.lgamma(trials + 1)
    for k in range(trials + 1):
        log_ways = log_all - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        yield math.exp(log_ways + k * log_rate + (trials - k) * log_rest)
