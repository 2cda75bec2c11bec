"""`agent promote` and `agent rollback` while the agent is stopped; refusals are one line."""

import json

import pytest

from agent.bundle_places import next_place, previous_place, put_in_force
from agent.commands.promote import promote
from agent.commands.rollback import rollback
from agent.record.ledger import Ledger
from engine.bundle import open_bundle
from engine.errors import BundleError, CalibrationError, ConfigurationError
from tests.calibrations import calibrated
from tests.tiny_bundle import tiny_bundle


@pytest.fixture
def place(tmp_path):
    """A configuration, its bundle, and another one."""
    calibrated(tiny_bundle(tmp_path / "bundle"), 3.0)
    calibrated(tiny_bundle(tmp_path / "better", gain=60.0), 4.0)
    (tmp_path / "agent.yaml").write_text(
        "agent: {id: test}\nbundle: {path: bundle}\ncamera: {type: conveyor}\n"
        "mqtt: {host: 127.0.0.1, port: 1}\n"
    )
    return tmp_path


def test_a_stopped_agent_has_the_other_bundle_at_its_next_start(place, capsys):
    old, new = (open_bundle(place / name).id for name in ("bundle", "better"))
    config = place / "agent.yaml"
    promote(bundle=place / "better", config=config, why="better", by="Ada")
    assert "inspects when the agent starts, with threshold 4" in capsys.readouterr().out
    assert open_bundle(place / "bundle").id == new
    assert open_bundle(previous_place(place / "bundle")).id == old
    rollback(config=config, why="worse", by="Grace", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told == {"bundle_id": old, "previous": new, "threshold": 3.0, "running": False}
    assert open_bundle(place / "bundle").id == old
    with Ledger(place / "ledger.sqlite", agent_id="test") as ledger:
        assert [(one.kind, one.who, one.why, one.new) for one in ledger.changes()] == [
            ("promote", "Ada", "better", new),
            ("rollback", "Grace", "worse", old),
        ]


def test_what_cannot_be_used_is_refused_and_nothing_changes(place):
    config = place / "agent.yaml"
    with pytest.raises(BundleError, match="none has been promoted"):
        rollback(config=config)
    with pytest.raises(BundleError, match="in force already"):
        promote(bundle=place / "bundle", config=config)
    tiny_bundle(place / "new", gain=7.0)
    with pytest.raises(CalibrationError, match="there is no calibration yet"):
        promote(bundle=place / "new", config=config)
    assert not next_place(place / "bundle").exists()
    assert not previous_place(place / "bundle").exists()


def test_of_a_line_with_products_the_one_that_is_named_changes(place, capsys):
    calibrated(tiny_bundle(place / "side", gain=7.0), 5.0)
    config, new = place / "agent.yaml", open_bundle(place / "better").id
    config.write_text(
        "agent: {id: test}\nmqtt: {host: 127.0.0.1, port: 1}\n"
        "products:\n- {name: cola, bundle: {path: bundle}}\n- name: lemon\n"
        "  bundle: {path: bundle}\n  cameras: [{name: side, bundle: {path: side}}]\n"
        "cameras: [{name: top, type: conveyor}, {name: side, type: conveyor}]\n"
    )
    for which, why in [
        ({}, "product: is missing, as each product has a bundle of its own; write cola or lemon"),
        ({"product": "cola", "camera": "top"}, "camera: 'top': no camera has a bundle of its own"),
        ({"product": "lemon", "camera": "top"}, "camera: 'top': write side"),
        ({"product": "cola"}, "is the bundle of several products or cameras"),
    ]:
        with pytest.raises(ConfigurationError, match=why):
            promote(bundle=place / "better", config=config, **which)
    promote(bundle=place / "better", config=config, product="lemon", camera="side", by="Ada")
    assert "agent rollback" in capsys.readouterr().out
    assert open_bundle(place / "side").id == new
    rollback(config=config, product="lemon", camera="side", by="Ada")
    assert open_bundle(previous_place(place / "side")).id == new


def test_a_file_system_that_cannot_exchange_names_is_used_all_the_same(place, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    old, new = (open_bundle(place / name).id for name in ("bundle", "better"))
    put_in_force(place / "bundle", place / "better")
    assert open_bundle(place / "bundle").id == new
    assert open_bundle(previous_place(place / "bundle")).id == old
