"""A line whose parts a PLC announces: everything real but the inspection."""

import threading

import pytest

from agent.plc.sink import PlcTriggers
from agent.settings import load_config
from agent.station.run import run_station
from agent.station.station import Model
from engine.errors import ConfigurationError
from engine.scripted_inspector import BrightnessInspector
from tests.agent.plc.line import THRESHOLD, BeltCamera, Plc
from tests.agent.station.test_station import rows
from tests.ports import free_port


def configured(tmp_path, text, trigger="{type: plc, max_ms: 400}"):
    path = tmp_path / "agent.yaml"
    path.write_text(
        "agent: {id: test}\nbundle: {path: none}\nline: {deadline_ms: 5000}\n"
        f"camera: {{type: conveyor, trigger: {trigger}}}\nsinks:\n  - {text}\n"
    )
    return load_config(path)


class Line:
    """Runs the station in a thread while a PLC works."""

    def __init__(self, config):
        self.config = config
        self.stop = threading.Event()
        self.statuses = []
        self.last = None
        self.products = {}
        self.camera = BeltCamera(self.stop, waits=True)
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_: object):
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def run(self):
        with pytest.MonkeyPatch.context() as patch:
            read = PlcTriggers.read
            patch.setattr(PlcTriggers, "read", lambda source: self.read(lambda: read(source)))
            self.work()

    def read(self, read):
        """The camera sees a part when the station has begun it, and asks for the next."""
        if self.last is not None:
            self.camera.released(self.last)
        announcement = read()
        self.last = None if announcement is None else announcement.count
        return announcement

    def work(self):
        self.summary = run_station(
            self.config,
            cameras=[self.camera],
            inspector=BrightnessInspector(),
            model=Model(threshold=THRESHOLD),
            products=lambda: self.products,
            stop=self.stop,
            readers=[self.statuses.append],
        )


def worked(plc, timeout_s=180):
    plc.start()
    plc.join(timeout_s)
    plc.stopping.set()
    assert not plc.is_alive()
    return plc.told


def test_every_part_gets_its_own_result_over_modbus(tmp_path):
    port = free_port()
    config = configured(tmp_path, f"{{type: modbus, allow: [127.0.0.1], port: {port}}}")
    with Line(config) as line:
        told = worked(Plc(port, 30, line.camera.show, scan_s=0.002))
    assert told.wrong == told.twice == 0
    assert told.ends.keys() == {"OK", "NG"}
    assert sum(told.ends.values()) == line.summary.delivered == 30
    assert line.summary.refused == line.summary.undelivered == 0
    assert [row[1] for row in rows(config)][:3] == ["part-1", None, "part-3"]


def test_readings_and_writings_may_be_lost_and_either_side_may_begin_again(tmp_path):
    port = free_port()
    config = configured(tmp_path, f"{{type: modbus, allow: [127.0.0.1], port: {port}}}")
    faults = {"lost reading": 0.1, "lost writing": 0.1, "reconnect": 0.02}
    plc = Plc(port, 25, None, scan_s=0.002, faults=faults)
    with Line(config) as first:
        plc.show = first.camera.show
        plc.start()
        while len(plc.ended) < 10:
            assert plc.is_alive()
            assert first.thread.is_alive()
            plc.stopping.wait(0.01)
    with Line(config) as second:
        plc.show = second.camera.show
        plc.join(180)
        plc.stopping.set()
    assert len(plc.ended) == 25
    assert plc.told.wrong == plc.told.twice == 0
    assert plc.told.ends["OK"] + plc.told.ends["NG"] > 10


@pytest.mark.parametrize(
    ("sink", "trigger", "words"),
    [
        ("{type: modbus}", "{type: plc}", "either allow"),
        ("{type: modbus, allow: [plc.local]}", "{type: plc}", "an IP address or a network"),
        ("{type: modbus, allow: [10.0.0.1], host: plc}", "{type: plc}", "either allow"),
        ("{type: modbus, allow: [10.0.0.1], plc_at: 20}", "{type: plc}", "overlap"),
        ("{type: modbus, allow: [10.0.0.1]}", "{type: plc, sink: other}", "names no sink"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, sink, trigger, words):
    with pytest.raises(ConfigurationError, match=words):
        configured(tmp_path, sink, trigger)


def test_a_sink_that_announces_no_parts_is_refused(tmp_path):
    config = configured(
        tmp_path, "{type: mqtt, host: 127.0.0.1, port: 1}", "{type: plc, sink: mqtt}"
    )
    with pytest.raises(ConfigurationError, match="announces no parts"):
        run_station(
            config, cameras=[None], inspector=BrightnessInspector(), model=Model(threshold=1.0)
        )
