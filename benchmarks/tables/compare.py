"""How much better one row is than another, and how sure that is: a paired bootstrap.

AUROC is a mean over pairs of a good and a defective image, so the difference of two rows is one as
well. Each resample draws, for each set, its good and its defective images anew, apart from each
other, and its draws. Both rows are seen on the same resample, and an image that several draws test
counts in all of them as often as it was drawn: draws share most of their images, and are not so
many independent tests. Intervals are percentiles.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from benchmarks.tables.runs import Record
from train.datasets import Listed

RESAMPLES = 2_000
INTERVAL = (0.025, 0.975)
Pair = tuple[Record, Record]
"""Two rows on the same split."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean difference in AUROC and its interval at 95 %."""

    mean: float
    low: float
    high: float


def paired_difference(
    pairs: Mapping[str, Sequence[Pair]], *, resample_sets: bool = False, seed: int = 0
) -> Difference:
    """AUROC of the first of each pair less that of the second: the mean over sets and their draws.

    `pairs` has some splits of each set; folds of one draw are taken together. With `resample_sets`
    the interval is that of sets like these, instead of these sets.
    """
    rng = np.random.default_rng(seed)
    sets = [_Set(splits) for splits in pairs.values()]
    found = np.stack([one.resampled(rng) for one in sets], axis=1)  # (RESAMPLES, sets)
    if resample_sets:
        found = found * _counts(rng, len(sets))
    low, high = np.quantile(found.mean(axis=1), INTERVAL)
    return Difference(mean=fmean(one.difference for one in sets), low=float(low), high=float(high))


def auroc_of(splits: Sequence[Record]) -> float:
    """AUROC of one draw: over the pairs of all its folds, or of its one test."""
    wins = [_wins(record, defective_of(record)) for record in splits]
    return float(sum(w.sum() for w in wins) / sum(w.size for w in wins))


def defective_of(record: Record) -> npt.NDArray[np.bool_]:
    """Which of the record's scores are of defective images."""
    return np.array([item.defective for item in record.run.split().test])


class _Set:
    """Two rows on the draws of one set."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._images: dict[bool, dict[str, int]] = {True: {}, False: {}}  # label → image → place
        self._draws: dict[int, list[_Split]] = defaultdict(list)
        for one, other in pairs:
            defective = defective_of(one)
            test = one.run.split().test
            self._draws[one.run.draw].append(
                _Split(
                    gap=_wins(one, defective) - _wins(other, defective),
                    defective=self._places(test, label=True),
                    good=self._places(test, label=False),
                )
            )

    @property
    def difference(self) -> float:
        every = [np.ones((1, len(self._images[label]))) for label in (True, False)]
        return float(self._differences(*every).mean())

    def resampled(self, rng: np.random.Generator) -> Floats:
        """The difference in each resample: `(RESAMPLES,)`."""
        defective, good = (_counts(rng, len(self._images[label])) for label in (True, False))
        found = self._differences(defective, good)  # (RESAMPLES, draws)
        drawn: Floats = (found * _counts(rng, found.shape[1])).mean(axis=1)
        return drawn

    def _places(self, test: Sequence[Listed], *, label: bool) -> npt.NDArray[np.intp]:
        known = self._images[label]
        return np.array(
            [known.setdefault(i.sha256, len(known)) for i in test if i.defective == label]
        )

    def _differences(self, defective: Floats, good: Floats) -> Floats:
        """The difference of each draw where images count so often: `(resamples, draws)`."""
        of_draws = []
        for splits in self._draws.values():
            gap, weight = np.zeros(len(good)), np.zeros(len(good))
            for split in splits:
                d, g = defective[:, split.defective], good[:, split.good]
                gap += ((d @ split.gap) * g).sum(axis=1)
                weight += d.sum(axis=1) * g.sum(axis=1)
            # Where chance drew none of a draw's images, nor is there a difference.
            of_draws.append(gap / np.maximum(weight, 1))
        return np.stack(of_draws, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Split:
    """`gap` `(defective, good)` is how much more of each pair one row has right; places of both."""

    gap: Floats
    defective: npt.NDArray[np.intp]
    good: npt.NDArray[np.intp]


def _wins(record: Record, defective: npt.NDArray[np.bool_]) -> Floats:
    """For each defective (row) and good image (column): 1 where the defective scores more."""
    scores = np.array(record.scores)
    gap = scores[defective][:, None] - scores[~defective][None, :]
    return np.asarray((gap > 0) + 0.5 * (gap == 0), dtype=np.float64)


def _counts(rng: np.random.Generator, n: int) -> Floats:
    """How often each of `n` things is drawn when `n` are, with replacement: `(RESAMPLES, n)`."""
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
