"""Golden samples while the line runs: the next parts are the samples; a due check is said."""

from dataclasses import replace

import pytest

from agent.golden import protocols
from agent.part import State
from agent.requests import RequestError
from agent.settings import CheckSettings
from agent.station.check import GoldenCheck
from agent.station.controls import Controls
from agent.station.station import Model
from agent.station.threshold import Threshold
from engine.frame import Box
from engine.scripted_inspector import BrightnessInspector
from tests.agent.parts import ended
from tests.agent.records import Forgetful
from tests.inspections import inspection


@pytest.fixture
def controls():
    made = Controls(threshold=Threshold(Forgetful(), calibrated=2.0, calibration_id="c"))
    made.begin(BrightnessInspector(), Model(threshold=2.0, bundle_id="b", calibration_id="c"))
    return made


@pytest.fixture
def required(config, tmp_path):
    settings = CheckSettings(required=True, folder=tmp_path / "checks", good=1, defective=1)
    return replace(config, check=settings)


def pass_by(check, *states):
    for number, state in enumerate(states, start=1):
        check.add(ended(number, state, inspection=inspection(1.0, Box.whole(2, 2))))


def test_a_required_check_is_a_fault_until_it_has_passed(required, controls, eventually):
    check = GoldenCheck(required, controls)
    assert "golden samples have not passed at main" in check.fault
    pass_by(check, State.OK, State.NG)  # nobody has begun
    told = check.begin("main", by="Ada", why="shift")
    assert (told["next"], told["done"], told["of"]) == ("good", 0, 2)
    pass_by(check, State.OK)
    assert (check.status()["next"], check.status()["done"]) == ("defective", 1)
    pass_by(check, State.NG, State.NG)
    eventually(lambda: check.fault is None)
    assert check.status()["last"].startswith("passed: 2 of 2")
    # It holds over a restart, and not for another threshold.
    check = GoldenCheck(required, controls)
    assert check.fault is None
    controls.threshold.take(calibrated=2.5, calibration_id="c", scores=(0.0, 9.0), changed=None)
    assert check.fault is not None


def test_a_check_that_fails_leaves_the_fault(required, controls, eventually):
    check = GoldenCheck(required, controls)
    check.begin("main", by="Ada", why="shift")
    pass_by(check, State.OK, State.OK)
    eventually(lambda: check.status()["last"])
    assert check.status()["last"].endswith("sample 2 (defective) was OK")
    assert check.fault is not None


def test_one_check_at_a_time_and_only_of_a_camera_that_is_there(required, controls):
    check = GoldenCheck(required, controls)
    with pytest.raises(RequestError, match="there is none named side"):
        check.begin("side", by="Ada", why="")
    check.begin("main", by="Ada", why="")
    with pytest.raises(RequestError, match="a check is running"):
        check.begin("main", by="Grace", why="")
    assert check.cancel()["running"] is False
    check.begin("main", by="Grace", why="")
    assert protocols(required.check.folder) == []


def test_without_need_there_is_no_fault(config, controls):
    assert GoldenCheck(config, controls).fault is None


def test_a_protocol_that_cannot_be_kept_is_a_fault(required, controls, eventually):
    required.check.folder.write_text("a file")
    check = GoldenCheck(required, controls)
    check.begin("main", by="Ada", why="")
    pass_by(check, State.OK, State.NG)
    eventually(lambda: "no protocol can be kept there" in check.fault)
