"""A running line follows its desired state: real registry, real processes, no part lost."""

import itertools
import threading
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from agent.bundle_places import previous_place
from agent.cameras.conveyor import ConveyorSettings
from agent.cameras.pace import PacedCamera
from agent.fleet.bundles import push_bundle, push_calibration
from agent.fleet.desired import STOP, Desired, Stop, publish, repository_of
from agent.fleet.follower import Shadowed
from agent.fleet.kept import Kept, write_kept
from agent.fleet.settings import RegistrySettings, TrialSettings
from agent.inference.child import ChildInspector, Setup
from agent.part import State
from agent.ports import CameraContext
from agent.services.fleet import FleetSettings
from agent.services.fleet.probe import probe
from agent.services.fleet.service import key_of
from agent.services.fleet.serving import AgentLine
from agent.settings import (
    AgentSettings,
    BundleSettings,
    Config,
    EvidenceSettings,
    LedgerSettings,
    ProductSettings,
)
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.evidence import Evidence
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.status import FleetStatus
from calibration.record import read_calibration
from engine.bundle import open_bundle, replace_file
from engine.errors import ConfigurationError, DesiredStateError
from engine.frame import Box
from engine.signature import SIGNATURE, sign
from tests.agent.parts import ended
from tests.calibrations import calibrated
from tests.inspections import inspection
from tests.registry import Keys, RealRegistry
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

LINE = "line-3"
CONFIG = (
    f"agent: {{id: {LINE}}}\nbundle: {{path: bundle}}\ncamera: {{type: conveyor}}\n"
    "mqtt: {host: 127.0.0.1, port: 1}\nevidence: {folder: evidence}\n"
)


class PartsCamera(PacedCamera):
    """Good parts for ever, the fourth of them defective."""

    is_live = True

    def renewed(self):
        return PartsCamera(self.context)

    def read(self):
        if not self.pace.wait():
            return None
        return self.frame(defective_part(4) if self.number == 4 else good_part(self.number))


class Line:
    """An agent in a fleet, and the engineers who sign for it."""

    def __init__(self, registry, folder):
        self.folder, self.registry = folder, registry
        self.keys = Keys(folder)
        self.first = self.signed("bundle", 40.0)
        self.first_id = self.first.id
        calibrated(self.first, 3.0)
        self.config_file = folder / "agent.yaml"
        self.config_file.write_text(CONFIG)
        self.settings = FleetSettings(
            registry=registry.settings, every_s=0.2, trial=TrialSettings(parts=20)
        )
        self.stop = threading.Event()
        self.parts, self.fleet, self.faults = [], None, ()

    def config(self, **bundle):
        return Config(
            agent=AgentSettings(id=LINE),
            bundle=BundleSettings(path=self.first.path, backend="onnxruntime", **bundle),
            cameras=(ConveyorSettings(parts_per_minute=1200),),
            sinks=(MqttSettings(host="127.0.0.1", port=1),),
            services=(self.settings,),
            ledger=LedgerSettings(path=self.folder / "ledger.sqlite"),
        )

    def signed(self, name, gain):
        bundle = tiny_bundle(self.folder / name, gain=gain)
        signature = sign(bundle.read("manifest.json"), self.keys.private)
        replace_file(bundle.path / SIGNATURE, signature)
        return bundle

    def desire(self, serial, bundle, calibration="own"):
        client = self.registry.client()
        push_bundle(client, bundle)
        expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        desired = Desired(
            agent=LINE, serial=serial, bundle=bundle.id, calibration=calibration, expires=expires
        )
        publish(client, repository_of(LINE), desired, self.keys.private)

    def _read(self, status):
        self.fleet, self.faults = status.fleet, status.faults

    def __enter__(self):
        bundle = open_bundle(self.first.path)
        self.inspector = ChildInspector(Setup(bundle=bundle.path, bundle_id=bundle.id))
        self.inspector.__enter__()
        config = self.config(require_signature=self.keys.public)

        def run():
            self.summary = run_station(
                config,
                cameras=[PartsCamera(CameraContext(stop=self.stop), interval_s=0.05)],
                inspector=self.inspector,
                model=Model.of(read_calibration(bundle)).on(self.inspector),
                stop=self.stop,
                observers=(self.parts.append,),
                readers=(self._read,),
                may_promote=True,
                config_file=self.config_file,
            )

        self.thread = threading.Thread(target=run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.inspector.__exit__()

    def is_(self, state, serial):
        return self.fleet is not None and (self.fleet.state, self.fleet.serial) == (state, serial)


@pytest.fixture
def line(tmp_path):
    with RealRegistry(tmp_path / "registry") as registry:
        yield Line(registry, tmp_path)


def test_a_line_takes_a_desired_bundle_and_leaves_one_that_does_not_fit(line, eventually, caplog):
    second = line.signed("second", 60.0)
    # A threshold that is not this line's: all parts are NG.
    calibrated(second, 0.001)
    record = read_calibration(second)
    data = (second.path / "calibration.json").read_bytes()
    push_calibration(line.registry.client(), data, record.id)
    with line:
        eventually(lambda: len(line.parts) > 5)
        line.desire(1, second, record.id)
        eventually(lambda: line.is_("rolled back", 1), timeout_s=100)
        assert "parts were NG; at most 0.1 may be" in line.fleet.reason
        assert line.fleet.promise.max_false_reject == 0.05
        eventually(lambda: any("fleet: desired state rolled back" in each for each in line.faults))
        assert open_bundle(line.first.path).id == line.first_id
        assert open_bundle(previous_place(line.first.path)).id == second.id
    assert {part.ended.state for part in line.parts} <= {State.OK, State.NG}
    assert "restarting it" not in caplog.text
    used = [name for name, _ in itertools.groupby(part.ended.bundle_id for part in line.parts)]
    assert used == [line.first_id, second.id, line.first_id]


class FakeEnd:
    """The agent as its fleet's process sees it, before it asks anything."""

    def __init__(self, folder, **settings):
        registry = RegistrySettings(address="http://127.0.0.1:1/atac")
        self.setup = {
            "settings": asdict(FleetSettings(registry=registry, good=folder / "good", **settings)),
            "agent_id": LINE,
            "config_file": str(folder / "agent.yaml"),
            "bundle": folder / "bundle",
            "evidence": folder / "evidence",
            "folder": folder / "fleet",
            "labelled": folder / "labelled",
            "backend": "onnxruntime",
            "precision": "auto",
        }


def test_a_line_calibrates_with_its_own_parts_and_judges_its_own_frames(tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle")
    line = AgentLine(FakeEnd(tmp_path, max_false_reject=0.3))
    with pytest.raises(ConfigurationError, match=r"fleet.good: .*cannot be read \(No such file"):
        line.calibrate(bundle, is_own=True)
    (tmp_path / "good").mkdir()
    with pytest.raises(DesiredStateError, match="no good part of this line is kept"):
        line.calibrate(bundle, is_own=True)
    Image.fromarray(good_part(0)).save(tmp_path / "good" / "0.png")
    with pytest.raises(DesiredStateError, match="good parts") as refused:
        line.calibrate(bundle, is_own=True)
    assert "\n" not in str(refused.value)
    for number in range(1, 12):
        Image.fromarray(good_part(number)).save(tmp_path / "good" / f"{number}.png")
    promise = line.calibrate(bundle, is_own=True)
    assert (promise.max_false_reject, promise.is_proved) == (0.3, True)
    assert line.shadow(bundle) is None
    (tmp_path / "agent.yaml").write_text(CONFIG)
    settings = EvidenceSettings(folder=tmp_path / "evidence")
    with Evidence(settings, LINE, "0123456789ab") as evidence:
        for number, state in [(1, State.NG), (2, State.OK)]:
            pixels = defective_part(number)
            found = inspection(1.95, Box.around(pixels))
            evidence.offer(ended(number, state, inspection=found, pixels=pixels))
    assert line.shadow(bundle) == Shadowed(judged=2, changed=1)
    assert (tmp_path / "fleet" / "comparison.html").is_file()


def test_a_fleet_needs_a_key(line):
    several = replace(
        line.config(),
        products=(ProductSettings(name="cola", bundle=BundleSettings(path=line.first.path)),),
    )
    with pytest.raises(ConfigurationError, match="does not go with products"):
        key_of(line.settings, several)
    with pytest.raises(ConfigurationError, match=r"fleet.key: is not named"):
        run_station(
            line.config(),
            inspector=None,
            model=Model(threshold=1.0),
            config_file=line.config_file,
        )


class AnHourOff(datetime):
    """A clock that is an hour ahead."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(hours=1)


def test_doctor_says_what_is_desired_and_what_is_missing(line, monkeypatch):
    config = line.config(require_signature=line.keys.public)
    said, is_well = probe(line.settings, config)
    assert "has no desired state for line-3; a new bundle would be refused: 0 good parts" in said
    assert not is_well
    settings = replace(line.settings, good=line.folder / "good", max_false_reject=0.3)
    assert "would be refused: fleet.good: " in probe(settings, config)[0]
    (line.folder / "good").mkdir()
    for number in range(9):
        Image.fromarray(good_part(number)).save(line.folder / "good" / f"{number}.png")
    line.desire(4, line.first)
    said, is_well = probe(settings, config)
    assert is_well
    assert said == (
        f"desired is bundle {line.first_id[:12]}, with serial 4; 9 good parts of this line can set "
        "a threshold"
    )
    client = line.registry.client()
    publish(client, STOP, Stop(serial=1, is_stopped=True, why="a test"), line.keys.private)
    assert probe(settings, config)[0].endswith("; the fleet is stopped: a test")
    publish(client, STOP, Stop(serial=2, is_stopped=False), line.keys.private)
    with monkeypatch.context() as patch:
        patch.setattr("agent.services.fleet.probe.datetime", AnHourOff)
        said, is_well = probe(settings, config)
        assert "this machine's clock and the registry's differ by 60 min" in said
        assert not is_well
    kept = replace(Kept(), status=FleetStatus(serial=9))
    write_kept(line.settings.folder_by(config.ledger.path), kept)
    assert "serial 4, and 9 is known already" in probe(settings, config)[0]
    write_kept(line.settings.folder_by(config.ledger.path), Kept())
    line.registry.kill()
    assert "cannot be reached (Connection refused)" in probe(settings, config)[0]
    line.registry.start()
    strangers = Keys(line.folder, "stranger")
    said, is_well = probe(settings, line.config(require_signature=strangers.public))
    assert "is not signed by the key" in said
    assert not is_well
