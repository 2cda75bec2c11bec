"""Do two ways of running one network decide alike? Verdicts, boxes and scores, side by side."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from engine.frame import Box, Inspection
from engine.spec import spec

ThresholdFrom = Literal["calibration", "held-out images", "these images"]


@spec
class Parity:
    """How the decisions of one way compare with the other's, `compared_with`, on `images` images.

    `flips` names the images whose verdict at `threshold` differs. A calibrated threshold is the
    score of one good image; that image itself lies on the fence in any precision and is not
    counted. Box IoUs are of the boxes that pass 2 looked at.
    """

    compared_with: str
    images: int
    threshold: float
    threshold_from: ThresholdFrom
    max_score_difference: float
    median_box_iou: float
    least_box_iou: float
    flips: tuple[str, ...]

    @property
    def told(self) -> str:
        """The comparison in one sentence, without its full stop."""
        return (
            f"{len(self.flips)} of {self.images} verdicts differ from {self.compared_with} at "
            f"threshold {self.threshold:.4g} (from {self.threshold_from}); largest score "
            f"difference {self.max_score_difference:.3g}; box IoU {self.median_box_iou:.2f} "
            f"median, {self.least_box_iou:.2f} at worst"
        )


def compared(
    expected: Sequence[Inspection],
    found: Sequence[Inspection],
    names: Sequence[str],
    *,
    compared_with: str,
    threshold: float,
    threshold_from: ThresholdFrom,
) -> Parity:
    """Compare the inspections of the same images, at least one, which are called `names`."""
    pairs = list(zip(expected, found, strict=True))
    overlaps = [box_iou(a.box, b.box) for a, b in pairs]
    return Parity(
        compared_with=compared_with,
        images=len(names),
        threshold=threshold,
        threshold_from=threshold_from,
        max_score_difference=max(abs(a.score - b.score) for a, b in pairs),
        median_box_iou=float(np.median(overlaps)),
        least_box_iou=min(overlaps),
        flips=tuple(
            name
            for name, (a, b) in zip(names, pairs, strict=True)
            if a.score != threshold and (a.score > threshold) != (b.score > threshold)
        ),
    )


def provisional_threshold(good: Sequence[float], defective: Sequence[float]) -> float:
    """A threshold for comparing verdicts before `agent calibrate` has set the real one.

    Half-way from the highest good score to the next higher defective one: on the highest good
    score itself, any rounding at all would flip that image.
    """
    highest = max(good)
    above = [score for score in defective if score > highest]
    return (highest + min(above)) / 2 if above else 1.1 * highest


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes of the same image."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    shared = max(0, width) * max(0, height)
    return shared / (one.width * one.height + other.width * other.height - shared)
