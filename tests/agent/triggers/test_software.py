"""`agent trigger`: from the command line over a real broker to a part of the running agent."""

import json
import threading

import pytest

from agent.cameras.scripted import ScriptedCamera
from agent.commands.trigger import trigger
from agent.settings import load_config
from agent.station.run import run_station
from agent.station.station import Model
from engine.errors import ConfigurationError
from engine.scripted_inspector import BrightnessInspector
from tests.agent.station.test_station import rows


@pytest.mark.broker
def test_a_part_is_announced_from_the_command_line(broker, tmp_path, capsys):
    path, done = tmp_path / "agent.yaml", threading.Event()
    path.write_text(
        "agent: {id: test}\nbundle: {path: none}\n"
        f"mqtt: {{host: {broker.host}, port: {broker.port}, commands: [trigger]}}\n"
        "camera: {type: conveyor, trigger: {type: software, max_ms: 20_000}}\n"
    )
    config = load_config(path)
    running = threading.Thread(
        target=run_station,
        args=(config,),
        kwargs={
            "cameras": [ScriptedCamera(lambda: done.wait(60), 40)],
            "inspector": BrightnessInspector(),
            "model": Model(threshold=0.5),
            "parts": 1,
        },
    )
    running.start()
    try:
        trigger(part_id="A-17", config=path, as_json=True)
        assert json.loads(capsys.readouterr().out) == {"camera": "main", "part_id": "A-17"}
    finally:
        done.set()
        running.join()
    assert [row[1:3] for row in rows(config)] == [("A-17", "OK")]


def test_without_a_broker_nobody_can_be_asked(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: test}\nbundle: {path: none}\ncamera: {type: conveyor}\n"
        "sinks: [{type: mqtt, host: h, version: 3.1.1}]\n"
    )
    with pytest.raises(ConfigurationError, match="requests need MQTT 5"):
        trigger(config=path)
