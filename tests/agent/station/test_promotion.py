"""Another bundle comes into force while the line runs: no part is lost, and each has one bundle."""

import json
import shutil
import sqlite3
import threading
from dataclasses import replace
from itertools import pairwise

import pytest

from agent.bundle_places import next_place, previous_place, put_next
from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.commands.promote import promote
from agent.commands.rollback import rollback
from agent.inference.child import ChildInspector, Setup
from agent.part import State
from agent.ports import CameraContext
from agent.record.schema import read_only
from agent.requests import RequestError
from agent.settings import (
    AgentSettings,
    BundleSettings,
    Config,
    LedgerSettings,
    ProductSettings,
)
from agent.sinks.mqtt.requests import ask
from agent.station.run import run_station
from agent.station.station import Model
from calibration.record import read_calibration
from engine.bundle import open_bundle
from engine.errors import BundleError
from engine.scripted_inspector import BrightnessInspector
from tests.calibrations import calibrated
from tests.tiny_bundle import tiny_bundle

PARTS_PER_MINUTE = 1200
COMMANDS = ("promote", "rollback", "ping", "switch_product")


class Line:
    """A line that runs in the background, and whose broker may ask for other bundles."""

    def __init__(self, broker, folder, products=()):
        self.first = tiny_bundle(folder / "bundle")
        calibrated(self.first, 3.0)
        self.second = tiny_bundle(folder / "second", gain=60.0)
        calibrated(self.second, 4.0)
        self.broker = broker
        self.config = Config(
            agent=AgentSettings(id="line-3"),
            bundle=BundleSettings(path=self.first.path),
            cameras=(ConveyorSettings(parts_per_minute=PARTS_PER_MINUTE),),
            sinks=(replace(broker.settings, commands=COMMANDS),),
            ledger=LedgerSettings(path=folder / "ledger.sqlite"),
            products=products,
        )
        self.stop = threading.Event()
        self.parts = []
        self.summary = None

    def __enter__(self):
        bundle = open_bundle(self.config.bundle.path)
        record = read_calibration(bundle)
        self.inspector = ChildInspector(Setup(bundle=bundle.path, bundle_id=bundle.id))
        self.inspector.__enter__()
        model = Model.of(record).on(self.inspector)
        other = Model(threshold=1.0, bundle_id="other", calibration_id="other")
        products = {
            one.name: (BrightnessInspector(), other) if number else (self.inspector, model)
            for number, one in enumerate(self.config.products)
        }

        def run():
            self.summary = run_station(
                self.config,
                cameras=[ConveyorCamera(self.config.cameras[0], CameraContext(stop=self.stop))],
                inspector=self.inspector,
                model=model,
                products=lambda: products,
                stop=self.stop,
                observers=(self.parts.append,),
                may_promote=True,
            )

        self.thread = threading.Thread(target=run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.inspector.__exit__()

    def ask(self, command, **arguments):
        return ask(
            self.broker.settings,
            "line-3",
            command,
            by="Ada",
            why="a test",
            within_s=60,
            **arguments,
        )

    def models(self):
        """Bundle and threshold of each part, in the order of their numbers."""
        with sqlite3.connect(self.config.ledger.path) as file:
            return file.execute(
                "SELECT bundle_id, threshold, state FROM triggers JOIN runs USING (run)"
                " ORDER BY sequence"
            ).fetchall()

    def changes(self):
        with read_only(self.config.ledger.path) as file:
            return [
                (row["kind"], row["who"], row["why"], row["old"], row["new"])
                for row in file.execute("SELECT * FROM changes ORDER BY id")
            ]


@pytest.fixture
def line(broker, tmp_path):
    return Line(broker, tmp_path)


def test_a_bundle_is_promoted_and_rolled_back_without_losing_a_part(line, eventually):
    first, second = line.first.id, line.second.id
    with line:
        eventually(lambda: len(line.parts) > 5)
        put_next(line.second, line.first.path)
        told = line.ask("promote", bundle_id=second)
        assert told == {
            "bundle_id": second, "previous": first, "threshold": 4.0,
            "backend": "onnxruntime cpu fp32",
        }  # fmt: skip
        assert line.inspector.pid is None  # the old one has ended
        seen = len(line.parts)
        eventually(lambda: len(line.parts) > seen + 5)
        assert open_bundle(line.first.path).id == second
        assert open_bundle(previous_place(line.first.path)).id == first
        assert not next_place(line.first.path).exists()
        told = line.ask("rollback")
        assert (told["bundle_id"], told["threshold"]) == (first, 3.0)
        seen = len(line.parts)
        eventually(lambda: len(line.parts) > seen + 5)
    assert open_bundle(line.first.path).id == first
    models = line.models()
    assert len(models) == line.summary.triggers
    assert {state for _, _, state in models} <= {"OK", "NG"}  # none was dropped or failed
    assert {model[:2] for model in models} == {(first, 3.0), (second, 4.0)}
    ids = [bundle_id for bundle_id, _, _ in models]
    assert sum(one != other for one, other in pairwise(ids)) == 2
    assert line.changes() == [
        ("promote", "Ada", "a test", first, second),
        ("rollback", "Ada", "a test", second, first),
    ]


def test_the_commands_ask_a_running_agent(line, eventually, tmp_path, capsys):
    config = tmp_path / "agent.yaml"
    config.write_text(
        "agent: {id: line-3}\nbundle: {path: bundle}\ncamera: {type: conveyor}\n"
        f"mqtt: {{host: {line.broker.host}, port: {line.broker.port}}}\n"
    )
    with line:
        eventually(lambda: len(line.parts) > 2)
        promote(bundle=line.second.path, config=config, why="better", by="Ada")
        assert "inspects the next part, with threshold 4" in capsys.readouterr().out
        rollback(config=config, why="worse", by="Ada", as_json=True)
        told = json.loads(capsys.readouterr().out)
        assert (told["bundle_id"], told["running"]) == (line.first.id, True)
        with pytest.raises(BundleError, match="in force already"):
            promote(bundle=line.first.path, config=config, by="Ada")
    assert [change[:3] for change in line.changes()] == [
        ("promote", "Ada", "better"),
        ("rollback", "Ada", "worse"),
    ]


def test_the_bundle_of_one_product_changes_and_that_of_another_stays(broker, eventually, tmp_path):
    """The line makes cola while the bundle of lemon is promoted, and then lemon."""
    place = tmp_path / "lemon"
    products = tuple(
        ProductSettings(name=name, bundle=BundleSettings(path=tmp_path / folder))
        for name, folder in (("cola", "bundle"), ("lemon", "lemon"))
    )
    line = Line(broker, tmp_path, products)
    shutil.copytree(line.first.path, place)
    second = line.second.id

    def some_more():
        seen = len(line.parts)
        eventually(lambda: len(line.parts) > seen + 5)

    with line:
        some_more()
        put_next(line.second, place)
        for which, why in [
            ({}, "product: is missing, as each product has a bundle of its own; write cola or"),
            ({"product": "beer"}, "product: 'beer': write cola or lemon"),
            ({"product": "lemon", "camera": "main"}, "camera: 'main': no camera has a bundle of"),
        ]:
            with pytest.raises(RequestError, match=why):
                line.ask("promote", bundle_id=second, **which)
        told = line.ask("promote", bundle_id=second, product="lemon")
        assert (told["bundle_id"], told["previous"], told["threshold"]) == (second, "other", 4.0)
        some_more()
        assert line.inspector.pid is not None
        assert {part.ended.bundle_id for part in line.parts} == {line.first.id}
        line.ask("switch_product", product="lemon")
        some_more()
        assert line.ask("rollback", product="lemon")["bundle_id"] == line.first.id
        line.ask("switch_product", product="cola")
        some_more()
    assert open_bundle(place).id == line.first.id
    assert {part.ended.state for part in line.parts} <= {State.OK, State.NG}
    had = {(part.product, part.ended.bundle_id, part.ended.threshold) for part in line.parts}
    assert {("cola", line.first.id, 3.0), ("lemon", second, 4.0)} <= had
    assert had <= {
        ("cola", line.first.id, 3.0),
        ("lemon", second, 4.0),
        ("lemon", line.first.id, 3.0),
    }


def test_a_bundle_that_cannot_be_used_is_refused_and_the_line_goes_on(line, eventually):
    with line:
        eventually(lambda: len(line.parts) > 2)
        for spoil, why in [
            (shutil.rmtree, "there is no bundle here"),
            (lambda place: (place / "calibration.json").unlink(), "there is no calibration yet"),
            (lambda place: calibrated_for(place, line.first), "belongs to another bundle"),
            (lambda place: (place / "network.onnx").write_bytes(b"x"), "does not have the hash"),
        ]:
            spoil(put_next(line.second, line.first.path))
            with pytest.raises(RequestError, match=why) as refused:
                line.ask("promote", bundle_id=line.second.id)
            assert "\n" not in str(refused.value)
        put_next(line.first, line.first.path)
        with pytest.raises(RequestError, match="in force already"):
            line.ask("promote", bundle_id=line.first.id)
        with pytest.raises(RequestError, match="there is no bundle here"):
            line.ask("rollback")
        seen = len(line.parts)
        eventually(lambda: len(line.parts) > seen + 2)
    assert {model[0] for model in line.models()} == {line.first.id}
    assert line.changes() == []


def calibrated_for(place, other):
    shutil.copy(other.path / "calibration.json", place / "calibration.json")


def test_what_cannot_be_put_on_record_changes_nothing(line, eventually, monkeypatch):
    monkeypatch.setattr("agent.record.ledger.Ledger.note_change", lambda *_: False)
    with line:
        eventually(lambda: len(line.parts) > 2)
        put_next(line.second, line.first.path)
        with pytest.raises(RequestError, match="the ledger cannot be written"):
            line.ask("promote", bundle_id=line.second.id)
        assert open_bundle(line.first.path).id == line.first.id
        assert open_bundle(next_place(line.first.path)).id == line.second.id
        seen = len(line.parts)
        eventually(lambda: len(line.parts) > seen + 2)
    assert json.dumps(line.models()).count(line.second.id) == 0
