"""Which good parts set a threshold, and which judge it."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibration.evidence import (
    Asked,
    found_at_promises,
    lent_by_training,
    precision_for,
    threshold_scores,
)
from calibration.record import CalibrationRecord, calibrate
from calibration.scores import Scores
from engine.backends.base import Runtime
from engine.cross_fitted import cross_fitted_of
from engine.errors import ConfigurationError
from tests.tiny_bundle import cross_fitted, tiny_bundle

GOOD = Scores(
    values=(2.0,) * 320,
    names=tuple(f"{i}.png" for i in range(320)),
    hashes=frozenset(f"{i:064x}" for i in range(320)),
)


def test_parts_are_known_by_their_pixels_and_not_by_their_scores(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    calibration = calibrate(
        bundle,
        GOOD,
        None,
        precision="fp32",
        backend="onnxruntime cpu fp32",
        max_false_reject=0.03,
        confidence=0.95,
    )
    record = CalibrationRecord(calibration=calibration, id="0" * 64)
    setting = threshold_scores(bundle, record, "fp32")
    assert setting.sha256 == GOOD.hashes
    # Another good part of the very score of one that set the threshold is judged all the same.
    [three, one] = found_at_promises(setting, [2.0, 3.0], [5.0, 1.0], {"crack": [5.0]})
    assert (three.overall.found, three.overall.false_rejects) == (0.5, 0.5)
    assert (one.overall.promised, one.by_kind["crack"].found) == (0.01, 1.0)


def test_training_lends_its_scores_where_they_are_the_runtimes(tmp_path: Path) -> None:
    bundle = cross_fitted(tiny_bundle(tmp_path / "bundle"), [1.0] * 100)
    scores = cross_fitted_of(bundle)
    on_cpu = Runtime(backend="onnxruntime", precision="fp32")
    assert lent_by_training(scores, on_cpu, has_parts=False) == scores
    int8 = replace(on_cpu, precision="int8")
    assert lent_by_training(scores, int8, has_parts=True) is None
    with pytest.raises(ConfigurationError, match="not in int8 by onnxruntime"):
        lent_by_training(scores, int8, has_parts=False)
    asked = Asked(max_false_reject=None, confidence=0.95)
    assert asked.rate(320) == 0.01
    assert precision_for("auto", 10, scores, asked) == "fp32"
    assert precision_for("auto", 320, scores, asked) == "auto"
    assert precision_for("int8", 10, scores, asked) == "int8"
    assert precision_for("auto", 10, None, asked) == "auto"
