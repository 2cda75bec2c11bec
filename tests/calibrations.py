"""Calibrations of one's own choice, for bundles that tests run."""

from collections.abc import Sequence

from calibration.record import SCHEMA_VERSION, Calibration, write_calibration
from engine.bundle import Bundle


def calibrated(bundle: Bundle, threshold: float, good: Sequence[float] = (0.0,)) -> None:
    """Write a calibration with this threshold, from `good` parts and one as high as it."""
    write_calibration(
        bundle,
        Calibration(
            schema_version=SCHEMA_VERSION,
            created_at="2025-01-01T00:00:00+00:00",
            bundle_id=bundle.id,
            precision="fp32",
            backend="onnxruntime cpu fp32",
            threshold=threshold,
            max_false_reject=0.05,
            confidence=0.95,
            good=len(good) + 1,
            allowed_exceedances=0,
            exceedances=0,
            guaranteed_false_reject=0.5,
            defective=0,
            detected=0,
            detection_interval=None,
            training_images=0,
            duplicates=0,
            look_alikes=0,
            unreadable=0,
            good_scores=(*sorted(good), threshold),
            defective_scores=(),
            versions={},
        ),
    )
