"""Do the line's parts still look like those of the calibration? Two tests for use at every part.

A test that is looked at again and again raises a false alarm some day, unless it is made for that.
Both of these are: they bet against "nothing has changed", at odds that are fair if nothing has, and
a stake that has become large is the evidence.

**The audit** needs labels. Of good parts drawn at random, whatever the verdict, it counts those
above the threshold. If at most the promised share ε of good parts are above, the stake after k of n
is, averaged over alternatives p > ε,

    (p / ε)^k · ((1 − p) / (1 − ε))^(n − k)

It reaches 1/α at any time with probability α at most (Ville's inequality). For one look the exact
binomial test is given beside it.

**The score test** needs none. Each new score gets its rank among all earlier ones, those of the
calibration first. If the parts are exchangeable, ranks are uniform and independent of each other
(Vovk, Gammerman and Shafer, *Algorithmic learning in a random world*, 2005). Bets on low, high,
inner and outer ranks are staked again at each part, and their sum is the Shiryaev–Roberts statistic
R (Vovk et al., *Retrain or not retrain*, 2021). R minus the number of parts is a martingale, so in
the mean at least c parts pass before R reaches c while nothing changes. Beyond `POOL` earlier
scores ranks are taken among the first of them, which makes the argument approximate;
`benchmarks/drift.py` has what came of it.
"""

import math
import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from calibration.bound import binomial_cdf, interval

ALPHA: Final = 0.01
"""An audit says falsely that the promise is broken for at most this share of calibrations, ever."""
PARTS_BETWEEN: Final = 10_000_000
"""The mean number of parts from one false alarm of the score test to the next is at least this."""
POOL: Final = 10_000
_TIMES: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""The alternatives of the audit: the promised share times these."""
_MOST: Final = 0.99
_STAKES: Final = (0.3, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the audit of a promise came to.

    `exceedances` of `good` parts that were drawn at random were above the calibrated threshold;
    `promised` is the share that may be, and `stake` is the evidence against it.
    """

    good: int
    exceedances: int
    promised: float
    stake: float

    @property
    def is_broken(self) -> bool:
        """Whether the promise is refuted, by a test that may be looked at any number of times."""
        return self.stake >= 1 / ALPHA

    @property
    def p_value(self) -> float:
        """Of the exact binomial test, for a single look."""
        if not self.exceedances:
            return 1.0
        return 1 - binomial_cdf(self.exceedances - 1, self.good, self.promised)

    @property
    def between(self) -> tuple[float, float]:
        """The interval of Clopper and Pearson for the share, at 95 %."""
        return interval(self.exceedances, self.good, confidence=0.95)


def audit(exceedances: int, good: int, *, promised: float) -> Audit:
    """Audit the promise that at most the share `promised` of good parts is above the threshold.

    The `good` parts must have been drawn at random from all parts, OK and NG alike, and labelled
    good; those that somebody has picked, such as the alarms, say nothing about the share.
    """
    odds = [
        exceedances * math.log(p / promised)
        + (good - exceedances) * (math.log1p(-p) - math.log1p(-promised))
        for times in _TIMES
        for p in [min(times * promised, _MOST)]
        if p > promised
    ]
    largest = max(odds, default=0.0)
    mean = sum(math.exp(one - largest) for one in odds) / max(1, len(odds))
    return Audit(
        good=good,
        exceedances=exceedances,
        promised=promised,
        stake=math.exp(min(largest + math.log(mean), 700.0)) if odds else 1.0,
    )


class ScoreTest:
    """The score test; `add` takes the scores of OK parts as they come.

    Parts above the threshold are left out on both sides: how many defects there are may change.

    Args:
        reference: The scores of the calibration's good parts.
        threshold: The calibrated one.
        parts_between: The mean number of parts between two false alarms is at least this.
        pool: Among how many earlier scores a rank is taken, at most.
        seed: Of the numbers that break ties.
    """

    def __init__(
        self,
        reference: Iterable[float],
        *,
        threshold: float,
        parts_between: float = PARTS_BETWEEN,
        pool: int = POOL,
        seed: int = 0,
    ) -> None:
        self._reference = sorted(score for score in reference if score <= threshold)
        self._pool = list(self._reference)
        self._threshold = threshold
        self._limit = parts_between
        self._most = pool
        self._random = random.Random(seed)
        self._sums = [0.0] * (4 * len(_STAKES))
        self.parts = 0
        """How many scores were tested."""

    @property
    def evidence(self) -> float:
        """The Shiryaev–Roberts statistic."""
        return sum(self._sums) / len(self._sums)

    def add(self, score: float) -> bool:
        """Test one more score; says whether scores are no longer like before.

        If so the test begins again with the reference alone.
        """
        if score > self._threshold:
            return False
        self.parts += 1
        pool = self._pool
        below, upto = bisect_left(pool, score), bisect_right(pool, score)
        rank = below + self._random.random() * (upto - below + 1)
        self.bet(rank / (len(pool) + 1))
        if len(pool) < self._most:
            insort(pool, score)
        if self.evidence < self._limit:
            return False
        self._sums, self._pool = [0.0] * len(self._sums), list(self._reference)
        return True

    def bet(self, rank: float) -> None:
        """Stake on one more rank, from 0 to 1, which is uniform while nothing changes."""
        level, spread = 2 * rank - 1, 6 * (rank - 0.5) ** 2 - 0.5
        bets = [
            1 + sign * stake * found
            for stake in _STAKES
            for found in (level, spread)
            for sign in (-1, 1)
        ]
        self._sums = [(1 + total) * bet for total, bet in zip(self._sums, bets, strict=True)]
