"""Health says what is wrong as soon as it is, and that it is well again; on a real broker."""

import json
import os
import signal
import threading
from dataclasses import replace

import pytest

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.inference.child import ChildInspector, Setup
from agent.part import State
from agent.ports import CameraContext
from agent.requests import RequestError
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.requests import ask
from agent.station.run import run_station
from agent.station.station import Model
from engine.errors import CameraError
from tests.tiny_bundle import tiny_bundle


@pytest.fixture
def line(broker, hear, tmp_path):
    """A line that runs in the background, and what it says; health is otherwise due hourly."""
    bundle = tiny_bundle(tmp_path / "bundle")
    settings = ConveyorSettings(parts_per_minute=1200)
    config = Config(
        agent=AgentSettings(id="line-3"),
        bundle=BundleSettings(path=bundle.path),
        cameras=(settings,),
        sinks=(replace(broker.settings, health_s=3600),),
        ledger=LedgerSettings(path=tmp_path / "ledger.sqlite"),
    )
    line = Line(config, hear(broker.settings, "atac/line-3/health"))
    with ChildInspector(Setup(bundle=bundle.path, bundle_id=bundle.id)) as line.inspector:
        yield line
        line.end()


class Line:
    def __init__(self, config, heard):
        self.config = config
        self.heard = heard
        self.stop = threading.Event()
        self.summary = None

    def begin(self, camera, **options) -> None:
        def run():
            self.summary = run_station(
                self.config,
                cameras=[camera],
                inspector=self.inspector,
                model=Model(threshold=0.5, scores=(0.0, 99.0)).on(self.inspector),
                stop=self.stop,
                **options,
            )

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join()

    def reasons(self) -> list[list[str]]:
        """What health has said since the line was first well."""
        said = [json.loads(payload)["reasons"] for payload in self.heard.on("health")]
        return said[said.index([]) :] if [] in said else []

    def conveyor(self, kind=ConveyorCamera):
        return kind(self.config.cameras[0], CameraContext(stop=self.stop))


def test_a_camera_that_goes_away_and_comes_back_is_said_at_once(line, eventually):
    away = threading.Event()

    class Pulled(ConveyorCamera):
        def read(self):
            if away.is_set():
                raise CameraError("the cable is out")
            return super().read()

    line.begin(line.conveyor(Pulled))
    eventually(lambda: line.reasons() == [[]])
    away.set()
    eventually(lambda: line.reasons()[1:] == [["camera main: the cable is out"]])
    away.clear()
    eventually(lambda: line.reasons()[2:] == [[]])


def test_inference_that_hangs_is_said_at_once_and_costs_one_part(line, eventually):
    line.begin(line.conveyor())
    eventually(lambda: line.reasons() == [[]])
    os.kill(line.inspector.pid, signal.SIGSTOP)
    eventually(lambda: [] in line.reasons()[1:])
    first, *between = line.reasons()[1:]
    assert first == ["inference: has not answered for a while"]
    assert between[-1] == []
    line.end()
    assert line.summary.counts[State.TIMEOUT] >= 1  # more where the machine is slow to restart it
    assert line.summary.counts[State.ERROR] == 0
    assert sum(line.summary.counts.values()) == line.summary.triggers


def test_a_threshold_set_by_request_counts_from_the_next_part_on(line, broker, eventually):
    (mqtt,) = line.config.sinks
    line.config = replace(line.config, sinks=(replace(mqtt, commands=("set_threshold",)),))
    seen = []
    line.begin(line.conveyor(), observers=[seen.append])
    eventually(lambda: len(seen) > 2)
    with pytest.raises(RequestError, match="lies outside the scores of the calibration"):
        ask(broker.settings, "line-3", "set_threshold", threshold=-1e9, by="a test")
    told = ask(broker.settings, "line-3", "set_threshold", threshold=-1e9, by="a test", force=True)
    assert told == {"threshold": -1e9, "calibrated": 0.5}
    eventually(lambda: sum(part.ended.threshold == -1e9 for part in seen) > 2)
    line.end()
    thresholds = [part.ended.threshold for part in seen]
    assert thresholds == sorted(thresholds, reverse=True)  # 0.5 until then, not once afterwards
    assert all(part.ended.state is State.NG for part in seen if part.ended.threshold < 0)
    health = json.loads(line.heard.on("health")[-1])
    assert health["threshold"] == {"in_force": -1e9, "calibrated": 0.5}
    (reason,) = health["reasons"]
    assert reason.startswith("threshold: -1000000000 lies outside the scores")


def test_an_agent_that_starts_is_not_degraded_and_says_so_first(line, eventually):
    line.begin(line.conveyor())
    eventually(lambda: line.heard.on("health"))
    first = json.loads(line.heard.on("health")[0])
    assert (first["degraded"], first["reasons"]) == (False, [])


def test_parts_that_pass_while_inspection_is_paused_are_alarms_and_health_is_degraded(
    line, broker, hear, eventually
):
    (mqtt,) = line.config.sinks
    line.config = replace(line.config, sinks=(replace(mqtt, commands=("pause", "resume")),))
    alarms = hear(broker.settings, "atac/line-3/alarm")
    seen = []
    line.begin(line.conveyor(), observers=[seen.append])
    eventually(lambda: len(seen) > 2)
    ask(broker.settings, "line-3", "pause")
    eventually(lambda: sum(part.ended.state is State.DROPPED for part in seen) > 2)
    eventually(lambda: ["line: inspection is paused by request"] in line.reasons())
    ask(broker.settings, "line-3", "resume")
    line.end()
    assert line.summary.inspected == line.summary.triggers - line.summary.counts[State.DROPPED]
    told = [json.loads(payload) for payload in alarms.on("alarm")]
    paused = [one for one in told if one["state"] == "DROPPED"]
    eventually(lambda: len(paused) == line.summary.counts[State.DROPPED])
    assert {one["reason"] for one in paused} == {"inspection is paused by request"}
