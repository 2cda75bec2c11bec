"""How well scores tell defective from good: exact, on raw float64 scores."""

import math
from collections.abc import Iterable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.frame import Map
from engine.inspector import Inspector
from engine.methods import MethodSpec, open_method
from engine.spec import spec
from train.datasets import Listed, Source, TrainingImages, read_listed, read_mask
from train.network import Network, TorchBackend
from train.pixels import PixelRanking, pixel_ranking

_PROBED: Final = 16  # held-out good images
_PROBED_KNOWN: Final = 100  # known defects at most, evenly spaced
_PIXEL_SIDE: Final = 224  # of the grid on which maps and masks are compared

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]


@spec
class Scored:
    """One image of the test and its raw score; `zoomed` says whether pass 2 looked closer."""

    path: str
    sha256: str
    kind: str
    score: float
    zoomed: bool

    @property
    def defective(self) -> bool:
        return self.kind != "good"


@spec
class Ranking:
    """How scores rank `defective` against `good` images; None where there are none of a kind.

    `fpr_at_95_tpr` is the smallest share of good images rejected when at least 95 % of the
    defective ones are found.
    """

    good: int
    defective: int
    auroc: float | None
    average_precision: float | None
    fpr_at_95_tpr: float | None


@spec
class AtThreshold:
    """What a threshold makes of the test; a score above it is NG."""

    threshold: float
    false_rejects: int
    misses: int
    missed: tuple[str, ...]


@spec
class Evaluation:
    """A bundle's (or a backend's) answer to the whole test."""

    backend: str
    overall: Ranking
    by_kind: dict[str, Ranking]
    images: tuple[Scored, ...]
    at_threshold: AtThreshold | None = None
    pixels: PixelRanking | None = None


def scored(
    inspector: Inspector, source: Source, items: Iterable[Listed]
) -> tuple[tuple[Scored, ...], PixelRanking | None]:
    """Inspect the images `items`, one by one, as the line would.

    Also how well pass 1's score maps show where parts are defective: of the good images and of the
    defective ones with a mask, None without a mask.
    """
    found, maps, masks = [], [], []
    for item in items:
        pixels = read_listed(source, item)
        inspection = inspector.inspect(pixels)
        found.append(
            Scored(
                path=item.path,
                sha256=item.sha256,
                kind=item.kind,
                score=inspection.score,
                zoomed=inspection.zoomed,
            )
        )
        # A map of one patch shows no place; nor is there one where nobody drew it.
        if inspection.score_map.size > 1 and (item.mask or not item.defective):
            drawn = read_mask(source, item, pixels)
            shown = np.abs(inspection.score_map).astype(np.float32)
            maps.append(_resized(shown, cv2.INTER_LINEAR))
            masks.append(
                np.zeros((_PIXEL_SIDE, _PIXEL_SIDE), dtype=np.bool_)
                if drawn is None
                else _resized(drawn.astype(np.float32), cv2.INTER_NEAREST) > 0
            )
    return tuple(found), pixel_ranking(maps, masks) if any(map(np.any, masks)) else None


def _resized(plane: Map, interpolation: int) -> Map:
    return np.asarray(cv2.resize(plane, (_PIXEL_SIDE, _PIXEL_SIDE), interpolation=interpolation))


class ValidationProbe:
    """Held-out good and known defective images, inspected as the line would; called, their AUROC.

    Args:
        images: The training images, whose split says what was held out.
        network: The network in training.
        method: How the engine runs it.
    """

    def __init__(self, images: TrainingImages, network: Network, method: MethodSpec) -> None:
        split = images.split
        good = split.held_out_good[:_PROBED]
        known = split.train_defective[:: -(-len(split.train_defective) // _PROBED_KNOWN) or 1]
        probed = (*good, *known) if good and known else ()
        self._frames = [images.images.pixels(item) for item in probed]
        self._defective = [item.defective for item in probed]
        self._network = network
        self._method = images.method(method)

    def __call__(self) -> float:
        """The AUROC of these images; NaN where there are none of a kind."""
        if not self._frames:
            return math.nan
        with TorchBackend(self._network) as backend:
            inspector = open_method(self._method, backend)
            scores = [inspector.inspect(frame).score for frame in self._frames]
        return auroc(np.array(scores), np.array(self._defective))


def evaluation(
    images: tuple[Scored, ...],
    *,
    backend: str,
    threshold: float | None = None,
    pixels: PixelRanking | None = None,
) -> Evaluation:
    """Rank all images, each defect type against all good ones, and count at `threshold`.

    Args:
        images: What `scored` gave.
        backend: What inspected them.
        threshold: Where verdicts change, if that is known.
        pixels: What `scored` gave beside them.
    """
    good = [image for image in images if not image.defective]
    kinds = sorted({image.kind for image in images if image.defective})
    return Evaluation(
        backend=backend,
        overall=_ranking(images),
        by_kind={
            kind: _ranking((*good, *(image for image in images if image.kind == kind)))
            for kind in kinds
        },
        images=images,
        at_threshold=None if threshold is None else _at_threshold(images, threshold),
        pixels=pixels,
    )


def auroc(scores: Scores, defective: Labels) -> float:
    """The chance that a defective image scores above a good one, ties counting half.

    Both classes must be there. Exact: Mann-Whitney's U from mid-ranks.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mid_rank = (last - counts + 1 + last) / 2
    positives = int(defective.sum())
    negatives = len(scores) - positives
    u = mid_rank[inverse][defective].sum() - positives * (positives + 1) / 2
    return float(u / (positives * negatives))


def average_precision(scores: Scores, defective: Labels) -> float:
    """Precision summed over the steps in recall, equal scores taken as one step."""
    found, flagged = _cumulative(scores, defective)
    recall_steps = np.diff(found, prepend=0) / found[-1]
    return float((recall_steps * found / flagged).sum())


def fpr_at_tpr(scores: Scores, defective: Labels, tpr: float = 0.95) -> float:
    """The least share of good images flagged when at least `tpr` of the defective ones are."""
    found, flagged = _cumulative(scores, defective)
    enough = int(np.argmax(found >= tpr * found[-1]))
    return float((flagged - found)[enough] / (len(scores) - found[-1]))


def _cumulative(
    scores: Scores, defective: Labels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Defective and all images flagged at each distinct threshold, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(defective[order].astype(np.int64))[last_of_ties]
    return found, last_of_ties + 1


def _ranking(images: tuple[Scored, ...]) -> Ranking:
    scores = np.array([image.score for image in images], dtype=np.float64)
    defective = np.array([image.defective for image in images], dtype=np.bool_)
    positives = int(defective.sum())
    both = 0 < positives < len(images)
    return Ranking(
        good=len(images) - positives,
        defective=positives,
        auroc=auroc(scores, defective) if both else None,
        average_precision=average_precision(scores, defective) if both else None,
        fpr_at_95_tpr=fpr_at_tpr(scores, defective) if both else None,
    )


def _at_threshold(images: tuple[Scored, ...], threshold: float) -> AtThreshold:
    missed = tuple(i.path for i in images if i.defective and i.score <= threshold)
    return AtThreshold(
        threshold=threshold,
        false_rejects=sum(not i.defective and i.score > threshold for i in images),
        misses=len(missed),
        missed=missed,
    )
