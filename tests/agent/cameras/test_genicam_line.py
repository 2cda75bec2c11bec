"""A GigE camera on the real station, which has it expose for each part that is announced."""

import os
import signal
import threading
import time

import pytest

from agent.clock import SystemClock
from agent.part import State
from agent.registry import open_camera
from agent.settings import load_config
from agent.station.run import run_station
from agent.station.station import Model
from agent.triggers.software import SoftwareTriggers
from engine.errors import ConfigurationError
from engine.scripted_inspector import BrightnessInspector

pytest_plugins = ["tests.gige"]
CONFIGURATION = """
agent: {{id: line}}
bundle: {{path: none}}
mqtt: {{host: 127.0.0.1, port: 1}}
cameras:
  - name: gige
    type: genicam
    device: {address}
    features: {{Width: 64, Height: 48, TriggerMode: On, TriggerSource: Software,
               AcquisitionFrameRate: 200.0, GevSCPSPacketSize: 8000}}
    trigger: {{type: software, max_ms: 2000}}
  - {{name: other, type: conveyor, parts_per_minute: 600}}
"""


def test_a_camera_whose_process_dies_costs_its_open_parts_and_no_other_camera_s(gige, tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(CONFIGURATION.format(address=gige.address))
    config, stop = load_config(path), threading.Event()
    cameras = [open_camera(each, stop) for each in config.cameras]
    source = SoftwareTriggers(stop, SystemClock())
    parts, recorded = [], threading.Condition()

    def ended(part):
        with recorded:
            parts.append(part)
            recorded.notify_all()

    def announce(part_id):
        """Announce a part and wait for its end; gives it."""
        source.fire(part_id)
        with recorded:
            found = lambda: [part for part in parts if part.part_id == part_id]  # noqa: E731
            assert recorded.wait_for(found, 30)
            return found()[0]

    def announce_until_seen(name):
        """Parts until one has a frame; gives all."""
        told = [announce(f"{name}-0")]
        while told[-1].ended.state is not State.OK and len(told) < 500:
            time.sleep(0.05)
            told.append(announce(f"{name}-{len(told)}"))
        return told

    def line():
        try:
            before = announce_until_seen("before")
            os.kill(cameras[0].child_pid, signal.SIGSTOP)
            during = announce("during")
            found.extend((before, during, announce_until_seen("after")))
        finally:
            stop.set()

    found = []
    thread = threading.Thread(target=line)
    thread.start()
    run_station(
        config,
        cameras=cameras,
        triggers={"gige": source},
        inspector=BrightnessInspector(),
        model=Model(threshold=1e9),
        stop=stop,
        observers=[ended],
    )
    thread.join()
    before, during, after = found
    assert before[-1].ended.state is State.OK
    assert before[-1].frame.device_id == gige.serial
    assert during.ended.state is State.NO_FRAME
    assert after[-1].ended.state is State.OK
    blocks = [part.frame.block_id for part in (*before, *after) if part.frame is not None]
    assert blocks == sorted(set(blocks))
    others = [part.ended.state for part in parts if part.camera == "other"]
    assert set(others) == {State.OK}
    assert len(others) > 20


def test_a_feature_that_the_camera_cannot_take_ends_the_run(gige, tmp_path):
    path = tmp_path / "agent.yaml"
    text = CONFIGURATION.format(address=gige.address)
    path.write_text(text.replace("Width: 64", "Width: 640000"))
    with pytest.raises(ConfigurationError, match="640000: write a whole number from 1 to 2048"):
        run_station(load_config(path), inspector=BrightnessInspector(), model=Model(threshold=1e9))
