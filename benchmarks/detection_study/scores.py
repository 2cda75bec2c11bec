"""Scores of good parts and of others: z, threshold by the product's order statistic, figures."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.bound import allowed_exceedances
from calibration.threshold import choose_threshold
from train.evaluate import auroc

Floats = npt.NDArray[np.float64]

MAX_FALSE_REJECT: Final = 0.03
CONFIDENCE: Final = 0.95


class Scores(NamedTuple):
    """`good` are of the pool, each from a model that has not seen that image."""

    good: Floats
    others: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The ranking, and the share of defects above the threshold and above two quantiles of good."""

    auroc: float
    found: float
    found_98: float
    found_95: float

    def __str__(self) -> str:
        return f"{self.auroc:.3f} {self.found:5.2f} {self.found_98:5.2f} {self.found_95:5.2f}"


def as_z(scores: Scores) -> Scores:
    """Scores in standard deviations of the good ones."""
    mean, std = scores.good.mean(), scores.good.std() + 1e-9
    return Scores((scores.good - mean) / std, (scores.others - mean) / std)


def tail_ranks(scores: Scores) -> Scores:
    """-log10 of the share of good scores that are not lower: what sums of ranks add up."""
    ordered = np.sort(scores.good)

    def ranked(some: Floats) -> Floats:
        below = np.searchsorted(ordered, some)
        return np.asarray(-np.log10(1 - below / (len(ordered) + 1)))

    return Scores(ranked(scores.good), ranked(scores.others))


def summed(first: Scores, second: Scores, weight: float = 1.0) -> Scores:
    return Scores(first.good + weight * second.good, first.others + weight * second.others)


def order_threshold(good: Floats, *, max_false_reject: float = MAX_FALSE_REJECT) -> float:
    """The threshold that calibration would choose, or the highest score where parts are too few.

    For scores of cross-fitted models the promise of calibration is not proved (ADR 18).
    """
    if is_promised(len(good), max_false_reject=max_false_reject):
        return choose_threshold(
            good.tolist(), max_false_reject=max_false_reject, confidence=CONFIDENCE
        ).value
    return float(good.max())


def is_promised(parts: int, *, max_false_reject: float = MAX_FALSE_REJECT) -> bool:
    """Whether so many good parts are enough for the promise."""
    allowed = allowed_exceedances(parts, max_false_reject=max_false_reject, confidence=CONFIDENCE)
    return allowed is not None


def figures(scores: Scores) -> Figures:
    """How `others`, all of them defective, stand out from `good`."""
    return Figures(
        auroc=ranking(scores.good, scores.others),
        found=float((scores.others > order_threshold(scores.good)).mean()),
        found_98=float((scores.others > np.quantile(scores.good, 0.98)).mean()),
        found_95=float((scores.others > np.quantile(scores.good, 0.95)).mean()),
    )


def ranking(good: Floats, defective: Floats) -> float:
    """The AUROC."""
    labels = np.arange(len(good) + len(defective)) >= len(good)
    return auroc(np.concatenate([good, defective]), labels)
