"""No thread's end leaves the others waiting: it is raised or a fault, and the run can stop."""

import threading
from dataclasses import replace

import pytest

from agent.cameras.scripted import ScriptedCamera
from agent.clock import SystemClock
from agent.station.controls import Controls
from agent.station.station import Model, Station
from agent.station.status import SinkStatus
from agent.station.threshold import Threshold
from engine.scripted_inspector import BrightnessInspector
from tests.agent.records import Forgetful


def station(config, camera, record, **options):
    return Station(
        config,
        cameras=[camera],
        model=Model(threshold=0.5),
        record=record,
        controls=Controls(threshold=Threshold(record, calibrated=0.5, calibration_id="")),
        clock=SystemClock(),
        stop=threading.Event(),
        **{"outlets": (), "inspector": BrightnessInspector(), **options},
    )


def ended(run):
    """Run in a thread that may not last; gives what it raised."""
    raised = []

    def guarded():
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - given to the test
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it hangs"
    return raised[0] if raised else None


@pytest.mark.parametrize("method", ["record", "expect", "next_sequence"])
@pytest.mark.parametrize("triggered", [True, False])
def test_a_ledger_that_fails_ends_the_run(config, method, triggered):
    class Failing(Forgetful):
        pass

    def fail(*_arguments):
        raise RuntimeError("a bug")

    setattr(Failing, method, fail)
    camera = ScriptedCamera(*range(100), triggered=triggered)
    assert str(ended(station(config, camera, Failing()).run)) == "a bug"


def test_an_inspector_that_cannot_even_fail_ends_the_run(config):
    class Gone(BrightnessInspector):
        def inspect(self, pixels):
            raise SystemExit("gone")

    made = station(config, ScriptedCamera(*range(100)), Forgetful(), inspector=Gone())
    assert isinstance(ended(made.run), SystemExit)


def test_evidence_that_ends_is_a_fault_and_the_line_continues(config, tmp_path, monkeypatch):
    def fail(_evidence, _folder):
        raise RuntimeError("a bug")

    monkeypatch.setattr("agent.station.evidence.Evidence._take_up", fail)
    evidence = replace(config.evidence, folder=tmp_path / "evidence")
    told = []
    made = station(
        replace(config, evidence=evidence),
        ScriptedCamera(*[90] * 30),
        Forgetful(),
        readers=[told.append],
    )
    assert ended(made.run) is None
    assert "evidence: its thread has ended: RuntimeError: a bug" in told[-1].faults


def test_a_sink_and_a_ledger_whose_threads_have_ended_are_named(config):
    class Dead(Forgetful):
        is_alive = False

    class Outlet:
        name = "mqtt"
        is_alive = False

        def status(self):
            return SinkStatus(is_connected=False, fault="its thread has ended")

        def report(self, status):
            told.append(status)

    told = []
    made = station(config, ScriptedCamera(1, 2), Dead(), outlets=[Outlet()])
    assert ended(made.run) is None
    assert told[-1].ended_threads == ("ledger", "mqtt")
    assert "mqtt: its thread has ended" in told[-1].faults
