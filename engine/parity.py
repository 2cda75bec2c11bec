"""Do two ways to run one network give the same verdicts, boxes and scores?"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from engine.bundle import PARITY, Bundle
from engine.errors import BundleError
from engine.frame import Box, Inspection
from engine.spec import spec

ThresholdFrom = Literal["calibration", "held-out images", "these images"]

LEAST_BOX_IOU: Final = 0.9
"""Below this median, pass 2 sees other regions than it was trained and tested on."""
MOST_AUROC_LOSS: Final = 0.002


@spec
class Parity:
    """How the decisions of one way compare with the other's, `compared_with`, on `images` images.

    `flips` names the images whose verdict at `threshold` differs. A calibrated threshold is the
    score of one good image; rounding alone can flip that image, so it is not counted. Nor are the
    images `within_band`, whose expected score lies within `band`: other good parts would have put
    the threshold on their other side. Box IoUs are of the boxes
    that pass 2 looked at. `auroc_loss` is negative where the images rank better than expected;
    `None` where they were all of one kind. Older records have neither.
    """

    compared_with: str
    images: int
    threshold: float
    threshold_from: ThresholdFrom
    max_score_difference: float
    median_box_iou: float
    least_box_iou: float
    flips: tuple[str, ...]
    band: tuple[float, float] | None = None
    within_band: tuple[str, ...] = ()
    auroc_loss: float | None = None

    @property
    def objections(self) -> tuple[str, ...]:
        """Why this way must not stand in for the other, a clause each; none where it may."""
        found = []
        if self.flips:
            found.append(
                f"{len(self.flips)} of {self.images} verdicts change at threshold "
                f"{self.threshold:.4g} ({', '.join(self.flips[:3])})"
            )
        if self.median_box_iou < LEAST_BOX_IOU:
            found.append(
                f"the boxes overlap by {self.median_box_iou:.2f} in the median, less than "
                f"{LEAST_BOX_IOU:g}"
            )
        if self.auroc_loss is not None and self.auroc_loss > MOST_AUROC_LOSS:
            found.append(f"the AUROC falls by {self.auroc_loss:.4f}, more than {MOST_AUROC_LOSS:g}")
        return tuple(found)

    @property
    def summary(self) -> str:
        """The comparison in one sentence, without its full stop."""
        within = f" and {len(self.within_band)} near it" if self.within_band else ""
        return (
            f"{len(self.flips)} of {self.images} verdicts differ from {self.compared_with} at "
            f"threshold {self.threshold:.4g} (from {self.threshold_from}){within}; largest score "
            f"difference {self.max_score_difference:.3g}; box IoU {self.median_box_iou:.2f} "
            f"median, {self.least_box_iou:.2f} at worst"
        )


PARITY_JSON: Final = TypeAdapter(dict[str, Parity])
"""What is in a bundle's parity.json, by the names that records have: `openvino cpu int8`."""


def bundle_parity(bundle: Bundle) -> dict[str, Parity]:
    """How the gate of `agent export` judged each runtime; empty for a bundle that saw no gate.

    Older bundles name the precision alone: ONNX Runtime was the only one to be judged.
    """
    if PARITY not in bundle.manifest.files:
        return {}
    try:
        found = PARITY_JSON.validate_json(bundle.read(PARITY))
    except ValidationError as error:
        raise BundleError(str(bundle.path / PARITY), "is not a parity report") from error
    return {
        name if " " in name else f"onnxruntime cpu {name}": parity for name, parity in found.items()
    }


def compared(
    expected: Sequence[Inspection],
    found: Sequence[Inspection],
    names: Sequence[str],
    *,
    compared_with: str,
    threshold: float,
    threshold_from: ThresholdFrom,
    band: tuple[float, float] | None = None,
    auroc_loss: float | None = None,
) -> Parity:
    """Compare two inspections of each of the same images, at least one.

    Args:
        expected: What the reference found.
        found: What the other way found, in the same order.
        names: The images.
        compared_with: What the reference is called.
        threshold: Where verdicts change.
        threshold_from: Where that threshold comes from.
        band: Scores between which an image's verdict may change without objection.
        auroc_loss: By how much the AUROC fell, where there are good and defective images.
    """
    pairs = list(zip(expected, found, strict=True))
    overlaps = [box_iou(a.box, b.box) for a, b in pairs]
    low, high = band or (threshold, threshold)
    flipped = [
        (name, low < a.score < high)
        for name, (a, b) in zip(names, pairs, strict=True)
        if a.score != threshold and (a.score > threshold) != (b.score > threshold)
    ]
    return Parity(
        compared_with=compared_with,
        images=len(names),
        threshold=threshold,
        threshold_from=threshold_from,
        max_score_difference=max(abs(a.score - b.score) for a, b in pairs),
        median_box_iou=float(np.median(overlaps)),
        least_box_iou=min(overlaps),
        flips=tuple(name for name, is_near in flipped if not is_near),
        band=band,
        within_band=tuple(name for name, is_near in flipped if is_near),
        auroc_loss=auroc_loss,
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
