"""Drift on the line: a fault while scores are not those of the calibration, and none before."""

import json
from dataclasses import replace

import pytest

from agent.part import State
from agent.station.controls import Controls
from agent.station.drift import AUDIT, SCORES, DriftWatch
from agent.station.station import Model
from agent.station.threshold import Threshold
from calibration.record import read_calibration
from engine.frame import Box
from engine.scripted_inspector import BrightnessInspector
from tests.agent.parts import ended
from tests.agent.records import Forgetful
from tests.calibrations import calibrated
from tests.inspections import inspection
from tests.tiny_bundle import tiny_bundle


@pytest.fixture
def watch(tmp_path):
    bundle = tiny_bundle(tmp_path)
    calibrated(bundle, 100.0, good=[float(n % 40) for n in range(120)])
    model = Model.of(read_calibration(bundle))
    controls = Controls(threshold=Threshold(Forgetful(), calibrated=100.0, calibration_id=""))
    controls.begin(BrightnessInspector(), model)
    return DriftWatch(controls), model


def pass_by(watch, model, scores, state=State.OK):
    for number, score in enumerate(scores, start=1):
        part = ended(number, state, inspection=inspection(score, Box.whole(2, 2)))
        part.verdict = replace(part.ended, calibration_id=model.calibration_id)
        watch.add(part)


def test_scores_like_before_are_none_and_higher_ones_are_a_fault_until_they_go(watch):
    drift, model = watch
    pass_by(drift, model, [float(7 * n % 40) for n in range(500)])
    assert drift.fault is None
    pass_by(drift, model, [35.0 + n % 9 for n in range(200)])
    assert drift.fault == SCORES
    pass_by(drift, model, [float(7 * n % 40) for n in range(3000)])
    assert drift.fault is None


def test_other_parts_say_nothing(watch):
    drift, model = watch
    pass_by(drift, model, [99.0] * 500, State.TIMEOUT)
    pass_by(drift, model, [250.0] * 500, State.NG)
    pass_by(drift, Model(threshold=1.0, calibration_id="another"), [99.0] * 500)
    assert drift.fault is None


def test_more_audited_good_parts_above_the_threshold_than_promised_are_a_fault(watch):
    drift, model = watch
    counts = [(60, 3)]
    drift._audited = lambda calibration_id, threshold: (
        counts[-1] if (calibration_id, threshold) == (model.calibration_id, 100.0) else None
    )
    drift.recount()
    assert (drift.fault, drift.audit.good) == (None, 60)
    counts.append((60, 12))
    drift.recount()
    assert drift.fault == AUDIT
    assert drift.told()["audit"]["is_broken"] is True
    json.dumps(drift.told())
