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
from agent.fleet.desired import STOP, Desired, Stop, Wanted, publish, repository_of
from agent.fleet.goal import Shadowed
from agent.fleet.kept import Kept, write_kept
from agent.fleet.settings import RegistrySettings, TrialSettings
from agent.inference.child import ChildInspector, Setup
from agent.part import State
from agent.ports import CameraContext
from agent.services.fleet import FleetSettings
from agent.services.fleet.probe import probe
from agent.services.fleet.service import in_force, key_of, places_of
from agent.services.fleet.serving import AgentLine, Pulse
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
from agent.station.status import DesiredStatus
from calibration.record import read_calibration
from engine.bundle import open_bundle, replace_file
from engine.errors import ConfigurationError, DesiredStateError
from engine.frame import Box
from engine.scripted_inspector import BrightnessInspector
from engine.signature import SIGNATURE, sign
from tests.agent.parts import ended
from tests.agent.statuses import camera_status, status
from tests.calibrations import calibrated
from tests.inspections import inspection
from tests.registry import Keys, RealRegistry
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

LINE = "line-3"
CONFIG = (
    f"agent: {{id: {LINE}}}\nproducts: [{{name: cola, bundle: {{path: bundle}}}}]\n"
    "camera: {type: conveyor}\n"
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
    """An agent in a fleet, and the engineers who sign for it; it may make cola and lemon."""

    def __init__(self, registry, folder):
        self.folder, self.registry = folder, registry
        self.keys = Keys(folder)
        self.first = self.signed("bundle", 40.0)
        self.first_id = self.first.id
        calibrated(self.first, 3.0)
        self.lemon = self.signed("lemon", 50.0)
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

    def with_products(self, **bundle):
        """The line makes cola, inspected by the first bundle, and lemon."""
        named = {"cola": self.first.path, "lemon": self.lemon.path}
        return replace(
            self.config(**bundle),
            products=tuple(
                ProductSettings(name=name, bundle=BundleSettings(path=path, **bundle))
                for name, path in named.items()
            ),
        )

    def signed(self, name, gain):
        bundle = tiny_bundle(self.folder / name, gain=gain)
        signature = sign(bundle.read("manifest.json"), self.keys.private)
        replace_file(bundle.path / SIGNATURE, signature)
        return bundle

    def desire(self, serial, *bundles, **values):
        """Publish a state, and push the bundles that it names."""
        client = self.registry.client()
        for bundle in bundles:
            push_bundle(client, bundle)
        expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        desired = Desired(agent=LINE, serial=serial, expires=expires, **values)
        publish(client, repository_of(LINE), desired, self.keys.private)

    def _read(self, status):
        self.fleet, self.faults = status.fleet, status.faults

    def __enter__(self):
        bundle = open_bundle(self.first.path)
        self.inspector = ChildInspector(Setup(bundle=bundle.path, bundle_id=bundle.id))
        self.inspector.__enter__()
        config = self.with_products(require_signature=self.keys.public)
        model = Model.of(read_calibration(bundle)).on(self.inspector)
        lemon = Model(threshold=1.0, bundle_id=self.lemon.id)

        def run():
            self.summary = run_station(
                config,
                cameras=[PartsCamera(CameraContext(stop=self.stop), interval_s=0.05)],
                inspector=self.inspector,
                model=model,
                products=lambda: {
                    "cola": (self.inspector, model),
                    "lemon": (BrightnessInspector(), lemon),
                },
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

    def product(self, name):
        """What became of the bundle that is desired for it."""
        products = {} if self.fleet is None else self.fleet.products
        return products.get(name, DesiredStatus())


@pytest.fixture
def line(tmp_path):
    with RealRegistry(tmp_path / "registry") as registry:
        yield Line(registry, tmp_path)


def test_a_bundle_that_does_not_fit_its_product_goes_back(line, eventually, caplog):
    second = line.signed("second", 60.0)
    # A threshold that is not this line's: all parts are NG.
    calibrated(second, 0.001)
    record = read_calibration(second)
    data = (second.path / "calibration.json").read_bytes()
    push_calibration(line.registry.client(), data, record.id)
    wanted = (
        Wanted(product="cola", serial=1, bundle=second.id, calibration=record.id),
        Wanted(product="lemon", serial=1, bundle=line.lemon.id),
        Wanted(product="beer", serial=1, bundle=line.lemon.id),
    )
    with line:
        eventually(lambda: len(line.parts) > 5)
        line.desire(1, second, products=wanted)
        eventually(lambda: line.product("cola").state == "rolled back", timeout_s=100)
        assert "parts were NG; at most 0.1 may be" in line.product("cola").reason
        assert line.product("cola").promise.max_false_reject == 0.05
        assert line.product("lemon").state == "in force"
        assert line.fleet.state == "refused"
        said = "desired state refused: beer: this line makes cola, lemon; name one of them"
        eventually(lambda: any(said in each for each in line.faults))
        assert open_bundle(line.first.path).id == line.first_id
        assert open_bundle(previous_place(line.first.path)).id == second.id
        assert not previous_place(line.lemon.path).exists()
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
            "places": {
                "cola": {
                    "product": "cola",
                    "camera": None,
                    "cameras": (),
                    "bundle": folder / "bundle",
                    "backend": "onnxruntime",
                    "precision": "auto",
                }
            },
            "evidence": folder / "evidence",
            "folder": folder / "fleet",
            "labelled": folder / "labelled",
        }


def test_a_line_calibrates_with_its_own_parts_and_judges_its_own_frames(tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle")
    agent = FakeEnd(tmp_path, max_false_reject=0.3)
    line, looked = AgentLine(agent, Pulse(agent), "cola"), []
    good, calibrate = tmp_path / "good" / "cola", {"is_own": True, "meanwhile": lambda: None}
    with pytest.raises(ConfigurationError, match=r"fleet.good: .*cannot be read \(No such file"):
        line.calibrate(bundle, **calibrate)
    good.mkdir(parents=True)
    with pytest.raises(DesiredStateError, match="no good part of cola is kept"):
        line.calibrate(bundle, **calibrate)
    Image.fromarray(good_part(0)).save(good / "0.png")
    with pytest.raises(DesiredStateError, match="good parts") as refused:
        line.calibrate(bundle, **calibrate)
    assert "\n" not in str(refused.value)
    for number in range(1, 12):
        Image.fromarray(good_part(number)).save(good / f"{number}.png")
    promise = line.calibrate(bundle, is_own=True, meanwhile=lambda: looked.append(1))
    assert looked, "trials of other products are watched meanwhile"
    assert (promise.max_false_reject, promise.is_proved) == (0.3, True)
    assert line.shadow(bundle, meanwhile=lambda: None) is None
    (tmp_path / "agent.yaml").write_text(CONFIG)
    settings = EvidenceSettings(folder=tmp_path / "evidence")
    with Evidence(settings, LINE, "0123456789ab") as evidence:
        for number, state, product in [
            (1, State.NG, "cola"),
            (2, State.OK, "cola"),
            (3, State.OK, "lemon"),
        ]:
            pixels = defective_part(number)
            found = inspection(1.95, Box.around(pixels))
            part = ended(number, state, inspection=found, pixels=pixels)
            evidence.offer(replace(part, product=product))
    assert line.shadow(bundle, meanwhile=lambda: None) == Shadowed(judged=2, changed=1)
    assert (tmp_path / "fleet" / "product cola" / "comparison.html").is_file()


def test_a_line_without_products_is_one_place():
    camera = camera_status(OK=5, NG=2, TIMEOUT=1)
    (one,) = in_force(status(cameras={"main": camera, "side": camera}), "run").items()
    ends = {"epoch": "0123456789ab", "ended": 16, "ng": 4, "errors": 2}
    assert one == ("", {"bundle_id": "b" * 64, "ends": ends})


def test_a_fleet_needs_a_key_and_a_folder_for_each_bundle(line):
    several = line.with_products(require_signature=line.keys.public)
    assert list(places_of(several)) == ["cola", "lemon"]
    cola, lemon = several.products
    shared = replace(several, products=(cola, replace(lemon, bundle=cola.bundle)))
    with pytest.raises(ConfigurationError, match="is the bundle of several products"):
        places_of(shared)
    unsigned = replace(lemon, bundle=BundleSettings(path=line.lemon.path))
    with pytest.raises(ConfigurationError, match="the products' bundles name several"):
        key_of(line.settings, places_of(replace(several, products=(cola, unsigned))))
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
    line.desire(4, line.first, bundle=line.first_id)
    said, is_well = probe(settings, config)
    assert is_well
    assert said == (
        f"desired is bundle {line.first_id[:12]}, with serial 4; 9 good parts of this line can set "
        "a threshold"
    )
    several = line.with_products(require_signature=line.keys.public)
    assert probe(settings, several)[0].endswith("; this line makes cola, lemon; name one of them")
    client = line.registry.client()
    publish(client, STOP, Stop(serial=1, is_stopped=True, why="a test"), line.keys.private)
    assert probe(settings, config)[0].endswith("; the fleet is stopped: a test")
    publish(client, STOP, Stop(serial=2, is_stopped=False), line.keys.private)
    with monkeypatch.context() as patch:
        patch.setattr("agent.services.fleet.probe.datetime", AnHourOff)
        said, is_well = probe(settings, config)
        assert "this machine's clock and the registry's differ by 60 min" in said
        assert not is_well
    wanted = [Wanted(product=name, serial=5, bundle=line.first_id) for name in ("cola", "beer")]
    line.desire(5, products=wanted[:1])
    said, is_well = probe(settings, several)
    assert f"desired are bundles {line.first_id[:12]} for cola, with serial 5; a new" in said
    assert "good/cola': cannot be read" in said
    line.desire(6, products=wanted)
    assert "; beer: this line makes cola, lemon" in probe(settings, several)[0]
    kept = Kept(serial=9)
    write_kept(line.settings.folder_by(config.ledger.path), kept)
    assert "serial 6, and 9 is known already" in probe(settings, config)[0]
    write_kept(line.settings.folder_by(config.ledger.path), Kept())
    line.registry.kill()
    assert "cannot be reached (Connection refused)" in probe(settings, config)[0]
    line.registry.start()
    strangers = Keys(line.folder, "stranger")
    said, is_well = probe(settings, line.config(require_signature=strangers.public))
    assert "is not signed by the key" in said
    assert not is_well
