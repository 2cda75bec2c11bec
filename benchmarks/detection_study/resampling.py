"""Are thresholds of cross-fitted scores as good as exact ones? Many random partings tell.

Good images are parted at random into training and new parts, again and again. The threshold is an
order statistic of the training parts' scores: leave-one-image-out (`loo`), by folds (`fold5`), or
of a half that the other half's bank scores (`split`, which is exact), or of a half whose parts join
the bank one by one, each scored by the bank before it (`growing`, which is proved for banks; see
docs/calibration.md). New parts are scored by the bank of all training parts, or of the half. Only
the memory bank is judged here, with a bank of random patches, which need not be made again: its
nearest patch in each image is looked up. `of_scores` judges scores of anything.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.detection_study.bank import SHARE, fitted_projection
from benchmarks.detection_study.features import Features
from benchmarks.detection_study.images import Rows
from benchmarks.detection_study.scores import CONFIDENCE, Floats
from calibration.bound import allowed_exceedances

Way = Literal["loo", "fold5", "split", "growing"]
WAYS: Final[tuple[Way, ...]] = ("loo", "fold5", "split", "growing")
RATES: Final = (0.03, 0.05, 0.1)
_EACH: Final = 24  # random patches of each image in the bank
_TRAINED: Final = 0.7  # of the good images
_FOLDS: Final = 5
_FAR: Final = 9.0  # a squared distance beyond all others


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """What became of one promise over all resamplings.

    `rate` is the mean share of new parts above the threshold, `exact_rate` that of an exact
    threshold. `beyond` is the share of resamplings with more new parts above it than an exact
    threshold has in 95 of 100, and `exact_beyond` its own share, as counts are whole. `found` is
    the mean share of defects above the threshold, None without defects.
    """

    way: str
    partings: int
    asked: float
    parts: int
    allowed: int
    rate: float
    exact_rate: float
    beyond: float
    exact_beyond: float
    found: float | None


def nearest_by_image(
    features: Features, pool: Rows, good: Rows, defects: Rows, *, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Squared distances of every second patch to the bank's patches of each good image.

    Args:
        features: Of all images.
        pool: The good images that the projection is fitted to.
        good: All good images.
        defects: Defective ones.
        seed: Of the bank's patches.

    Returns:
        Those of good images, `(good, good of the bank, patches)`, and of defects.
    """
    projection = fitted_projection(features, pool)
    patches: list[Tensor] = [projection(features.patches(int(row)))[0] for row in (*good, *defects)]
    side = round(len(patches[0]) ** 0.5)
    asked = torch.arange(side * side).view(side, side)[::2, ::2].flatten()
    generator = torch.Generator().manual_seed(seed)
    bank = torch.cat(
        [
            some[torch.randperm(len(some), generator=generator)[:_EACH]]
            for some in patches[: len(good)]
        ]
    )
    found = np.empty((len(patches), len(good), len(asked)), dtype=np.float32)
    for number, some in enumerate(patches):
        squares = (2 - 2 * (some[asked] @ bank.T).float()).clamp(min=0)
        found[number] = squares.view(len(asked), len(good), _EACH).amin(2).T.numpy()
    return found[: len(good)], found[len(good) :]


def resampled(
    nearest: npt.NDArray[np.float32],
    defects: npt.NDArray[np.float32],
    *,
    repeats: int,
    rates: Sequence[float] = RATES,
    seed: int = 1,
) -> Iterator[Realised]:
    """Every way and every rate that the good images are enough for.

    Args:
        nearest: Of good images, from `nearest_by_image`.
        defects: Of defective ones, from there too.
        repeats: How many times images are parted.
        rates: The false-reject rates to promise.
        seed: Of the partings.
    """
    rng = np.random.default_rng(seed)
    count = len(nearest)
    trained = int(_TRAINED * count)
    rounds = [_parted(nearest, defects, rng.permutation(count), trained) for _ in range(repeats)]
    for way in WAYS:
        scores = zip(*(one[way] for one in rounds), strict=True)
        known, new, defective = (np.array(some) for some in scores)
        yield from of_scores(way, known, new, defective, rates=rates)


def of_scores(
    way: str,
    known: Floats,
    new: Floats,
    defective: Floats | None = None,
    *,
    rates: Sequence[float] = RATES,
) -> Iterator[Realised]:
    """What became of each rate that the parts are enough for.

    Args:
        way: What the scores are of.
        known: `(partings, parts)`: the scores that make the threshold.
        new: `(partings, new parts)`: the scores of new parts by the deployed model.
        defective: `(partings, defects)`: the scores of defects by the same model.
        rates: The false-reject rates to promise.
    """
    parts, new_parts = known.shape[1], new.shape[1]
    for rate in rates:
        allowed = allowed_exceedances(parts, max_false_reject=rate, confidence=CONFIDENCE)
        if allowed is None:
            continue
        threshold = np.sort(known, axis=1)[:, -1 - allowed, None]
        above = (new > threshold).sum(axis=1)
        tail = beta_binomial_tail(new_parts, allowed, parts)
        most = next(k for k in range(new_parts + 1) if tail[k] <= 1 - CONFIDENCE)
        yield Realised(
            way=way,
            partings=len(known),
            asked=rate,
            parts=parts,
            allowed=allowed,
            rate=float(above.mean()) / new_parts,
            exact_rate=(allowed + 1) / (parts + 1),
            beyond=float((above > most).mean()),
            exact_beyond=float(tail[most]),
            found=None if defective is None else float((defective > threshold).mean()),
        )


def beta_binomial_tail(new: int, allowed: int, parts: int) -> Floats:
    """P(more than k of `new` parts lie above the threshold) for k = 0, 1, … `new`.

    The threshold is the (`allowed` + 1)-th largest of `parts` scores that are drawn like the new
    ones, so the share above it is Beta(allowed + 1, parts - allowed).
    """
    a, b = allowed + 1, parts - allowed

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    terms = [
        math.comb(new, k) * math.exp(log_beta(k + a, new - k + b) - log_beta(a, b))
        for k in range(new + 1)
    ]
    return np.asarray(1 - np.cumsum(terms))


def _parted(
    nearest: npt.NDArray[np.float32],
    defects: npt.NDArray[np.float32],
    order: Rows,
    trained: int,
) -> dict[Way, tuple[Floats, Floats, Floats]]:
    """Scores of one parting for each way: what makes the threshold, new parts, defects."""
    known, new = order[:trained], order[trained:]
    bank, rest = known[: trained // 2], known[trained // 2 :]
    fold = np.arange(trained) % _FOLDS
    loo, folds = [], []
    for number, row in enumerate(known):
        distances = nearest[row][known]  # a copy
        distances[number] = _FAR
        loo.append(_score(distances))
        distances[fold == fold[number]] = _FAR
        folds.append(_score(distances))
    of_new = np.array([_score(nearest[row][known]) for row in new])
    of_defects = np.array([_score(one[known]) for one in defects])
    grown = [
        _score(nearest[row][known[:place]]) for place, row in enumerate(known) if place >= len(bank)
    ]
    return {
        "loo": (np.array(loo), of_new, of_defects),
        "fold5": (np.array(folds), of_new, of_defects),
        "split": (
            np.array([_score(nearest[row][bank]) for row in rest]),
            np.array([_score(nearest[row][bank]) for row in new]),
            np.array([_score(one[bank]) for one in defects]),
        ),
        "growing": (np.array(grown), of_new, of_defects),
    }


def _score(squares: npt.NDArray[np.float32]) -> float:
    """Of squared distances `(images, patches)`: the mean of the farthest patches, 6 of 196."""
    distances = np.sqrt(squares.min(axis=0))
    count = math.ceil(SHARE * len(distances))
    return float(np.partition(distances, -count)[-count:].mean())
