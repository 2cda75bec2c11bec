"""How well maps show where parts are defective."""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.frame import Map
from engine.spec import spec
from train.anomalies import Mask

Floats = npt.NDArray[np.float64]
_AUPRO_FPR: Final = 0.3


@spec
class PixelRanking:
    """How well maps show where parts are defective.

    `aupro` is the mean share of each connected region that is found, over false-positive rates of
    pixels up to 0.3 (Bergmann et al. 2020).
    """

    auroc: float
    aupro: float


def pixel_ranking(maps: Sequence[Map], masks: Sequence[Mask]) -> PixelRanking:
    """How the pixels of `maps` rank what `masks`, of the same shapes, call defective.

    Exact: every distinct value is a threshold. Raises `ValueError` without a defective pixel or
    without a good one.
    """
    values = np.concatenate([one.ravel() for one in maps])
    defective = np.concatenate([mask.ravel() for mask in masks])
    positives = int(defective.sum())
    if not 0 < positives < len(values):
        raise ValueError("pixels of one kind alone cannot be ranked")
    # A pixel of a region weighs one over the region's size: a threshold's sum is then the sum of
    # the regions' shares found.
    weights = np.concatenate([_region_weights(mask).ravel() for mask in masks])
    order = np.argsort(-values, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    found = np.cumsum(defective[order])[last_of_ties]
    fpr = np.append(0.0, (last_of_ties + 1 - found) / (len(values) - positives))
    overlap = np.append(0.0, np.cumsum(weights[order])[last_of_ties])
    tpr = np.append(0.0, found / positives)
    return PixelRanking(
        auroc=_area(fpr, tpr, until=1.0), aupro=_area(fpr, overlap / overlap[-1], until=_AUPRO_FPR)
    )


def _region_weights(mask: Mask) -> npt.NDArray[np.float64]:
    """For each pixel of `mask` one over the size of its connected region, 0 elsewhere."""
    _, regions = cv2.connectedComponents(mask.astype(np.uint8))
    sizes = np.bincount(regions.ravel())
    return np.asarray(mask / sizes[regions], dtype=np.float64)


def _area(x: Floats, y: Floats, *, until: float) -> float:
    """The mean of y over 0 … `until`, straight lines between the points; x never falls."""
    inside = x <= until
    xs = np.append(x[inside], until)
    ys = np.append(y[inside], np.interp(until, x, y))
    return float(np.trapezoid(ys, xs) / until)
