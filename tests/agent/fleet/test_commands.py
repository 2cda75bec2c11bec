"""`agent fleet`: from a bundle to lines that have it, with a real registry and a real broker."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.commands.fleet import desired, push, roll_out, status, stop
from agent.fleet.desired import STOP, Desired, Stop, current, publish, repository_of
from agent.fleet.follower import together
from agent.mqtt.link import Link
from agent.sinks.mqtt.messages import Topics, fleet, state
from agent.station.status import DesiredStatus, ProductStatus, Promise, SinkStatus
from engine.bundle import replace_file
from engine.errors import BundleError, ConfigurationError, RegistryError
from engine.signature import SIGNATURE, sign
from tests.agent.statuses import camera_status
from tests.agent.statuses import status as agent_status
from tests.calibrations import calibrated
from tests.registry import RealRegistry
from tests.tiny_bundle import tiny_bundle

LINES = [f"line-{number}" for number in range(4)]


class Plant:
    """Engineers with a key, a registry and a broker, and lines that say how they are."""

    def __init__(self, registry, keys, broker, folder):
        self.registry, self.keys, self.broker = registry, keys, broker
        self.client = registry.client()
        self.plan = folder / "fleet.yaml"
        self.plan.write_text(
            f"registry: {{address: '{registry.settings.address}'}}\nkey: {keys.public}\n"
            f"lines: [{', '.join(LINES)}]\n"
            f"brokers: [{{host: {broker.host}, port: {broker.port}}}]\n"
        )
        self.bundle = tiny_bundle(folder / "bundle", gain=55.0)

    def sign(self):
        signature = sign(self.bundle.read("manifest.json"), self.keys.private)
        replace_file(self.bundle.path / SIGNATURE, signature)

    def desired(self, line):
        found = current(self.client, repository_of(line), Desired, self.keys.public, option="--key")
        return None if found is None else found[0]

    def leave_behind(self, line, **changes):
        """There is a state already, for the same bundle."""
        later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        values = {"agent": line, "serial": 5, "bundle": self.bundle.id, "expires": later}
        publish(self.client, repository_of(line), Desired(**values | changes), self.keys.private)

    def report(self, line, said="in force", *, is_online=True, **changes):
        """The line says how it is, with the bundles that are desired."""
        wanted = self.desired(line)
        promise = Promise(
            max_false_reject=0.01,
            confidence=0.95,
            is_proved=True,
            calibrated_at=datetime.now(UTC).isoformat(),
        )
        found = {
            place: DesiredStatus(state=said, serial=one.serial, bundle=one.bundle, promise=promise)
            for place, one in wanted.wanted.items()
        }
        counts = camera_status().counts
        now = agent_status(
            agent_id=line,
            bundle_id=wanted.bundle,
            sinks={"mqtt": SinkStatus(is_connected=True)},
            fleet=replace(together(found, wanted.serial), **changes),
            products={
                one.product: ProductStatus(bundle_id=one.bundle, counts=counts)
                for one in wanted.products
            },
        )
        topics = Topics(agent_id=line)
        with Link(self.broker.settings, f"agent-{line}") as link:
            for message in (fleet(topics, now), state(topics, online=is_online)):
                link.publish(message)
                link.acknowledged(5.0)

    def away(self):
        """One more broker, which is away."""
        written = self.plan.read_text()
        self.plan.write_text(
            written.replace("brokers: [", "brokers: [{host: 127.0.0.1, port: 1}, ")
        )

    def rolled(self, capsys, **options):
        """One look of a roll-out."""
        capsys.readouterr()
        code = 0
        try:
            roll_out(
                bundle=self.bundle.id,
                key=self.keys.private,
                fleet=self.plan,
                listen=0.3,
                once=True,
                as_json=True,
                **options,
            )
        except SystemExit as end:
            code = end.code
        return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def plant(keys, broker, tmp_path):
    with RealRegistry(tmp_path / "registry") as registry:
        yield Plant(registry, keys, broker, tmp_path)


@pytest.mark.broker
def test_a_bundle_goes_from_ring_to_ring(plant, capsys):
    with pytest.raises(BundleError, match="sign"):
        push(bundle=plant.bundle.path, fleet=plant.plan)
    plant.sign()
    with pytest.raises(ConfigurationError, match="is not in the registry; push it"):
        plant.rolled(capsys)
    calibrated(plant.bundle, 3.0)
    push(bundle=plant.bundle.path, fleet=plant.plan, with_calibration=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["bundle_id"] == plant.bundle.id
    code, told = plant.rolled(capsys)
    assert (code, told["step"], told["lines"]) == (0, "wait", ["line-0"])
    assert [plant.desired(line) is not None for line in LINES] == [True, False, False, False]
    plant.report("line-0", is_online=False)
    assert plant.rolled(capsys)[1]["why"] == "offline"
    plant.report("line-0")
    plant.leave_behind("line-1", agent="line-9")
    plant.leave_behind("line-2", serial=3)
    plant.report("line-2", serial=7)
    code, told = plant.rolled(capsys)
    assert (code, told["step"], told["ring"], told["lines"]) == (0, "wait", 2, LINES[1:])
    # What these lines could not obey has been replaced.
    assert [plant.desired(line).agent for line in LINES] == LINES
    assert plant.desired("line-2").serial > 7
    for line in LINES[1:3]:
        plant.report(line)
    plant.report("line-3", "rolled back", reason="23 of 40 parts were NG")
    code, told = plant.rolled(capsys)
    assert (code, told["step"]) == (1, "stop")
    assert told["why"] == "line-3: rolled back: 23 of 40 parts were NG"
    plant.report("line-3")
    assert plant.rolled(capsys)[1]["step"] == "done"
    plant.away()
    plant.report("line-2", is_online=False)
    status(fleet=plant.plan, listen=3600)  # the broker knows them all
    said = capsys.readouterr()
    assert said.out.startswith("line-2               offline")
    assert "3 of 4 lines are online" in said.out
    assert "WARNING: its lines are silent: 127.0.0.1:1: Connection refused" in said.err
    stop(key=plant.keys.private, why="a test", fleet=plant.plan)
    assert "the fleet is stopped" in capsys.readouterr().out
    code, told = plant.rolled(capsys)
    assert (code, told["why"]) == (1, "the fleet is stopped: a test")
    stop(key=plant.keys.private, lift=True, serial=2**40, fleet=plant.plan)
    found, _ = current(plant.client, STOP, Stop, plant.keys.public, option="--key")
    assert not found.is_stopped


@pytest.mark.broker
def test_a_bundle_of_one_product_goes_from_ring_to_ring(plant, capsys):
    plant.sign()
    push(bundle=plant.bundle.path, fleet=plant.plan)
    options = {"line": "line-0", "key": plant.keys.private, "fleet": plant.plan}
    desired(**options, product="lemon", bundle="a" * 64, serial=5)
    desired(**options, product="cola", bundle="b" * 64, serial=6)
    assert (
        "line-0 should inspect cola with bbbbbbbbbbbb (serial 6) until" in capsys.readouterr().out
    )
    # The first line takes it; what is desired of lemon stays as it was.
    code, told = plant.rolled(capsys, product="cola")
    assert (code, told["step"], told["lines"]) == (0, "wait", ["line-0"])
    state = plant.desired("line-0")
    (lemon, cola) = state.products
    assert (lemon.product, lemon.serial, lemon.bundle) == ("lemon", 5, "a" * 64)
    assert (cola.product, cola.serial, cola.bundle) == ("cola", state.serial, plant.bundle.id)
    desired(**options, product="lemon", bundle="c" * 64)
    assert plant.desired("line-0").serial > state.serial
    plant.report("line-0")
    code, told = plant.rolled(capsys, product="cola")
    assert (code, told["ring"], told["lines"]) == (0, 2, LINES[1:])
    bad = {"state": "refused", "reason": "this line makes lemon; name one of them"}
    for line in LINES[1:]:
        wanted = plant.desired(line).wanted["cola"]
        told = DesiredStatus(serial=wanted.serial, bundle=wanted.bundle, **bad)
        plant.report(line, products={"cola": told}) if line == "line-3" else plant.report(line)
    code, told = plant.rolled(capsys, product="cola")
    assert (code, told["why"]) == (1, f"line-3: refused: {bad['reason']}")
    status(fleet=plant.plan, listen=3600)
    rows = capsys.readouterr().out.splitlines()
    at = rows.index(next(row for row in rows if row.startswith("line-0")))
    assert (
        rows[at].split()[1:]
        == f"in force 2 products serial {plant.desired('line-0').serial}".split()
    )
    assert rows[at + 1].startswith(f"  cola               in force     {plant.bundle.id[:12]}")
    assert rows[at + 2].startswith("  lemon              in force     cccccccccccc")
    assert any(bad["reason"] in row for row in rows)
    desired(**options, product="cola", bundle="none")
    assert "line-0 is told nothing of cola any more" in capsys.readouterr().out
    assert list(plant.desired("line-0").wanted) == ["lemon"]
    for wrong, said in [
        ({"product": "lemon", "bundle": "none"}, "--product: 'lemon': should name a bundle"),
        ({"product": "lemon", "serial": 7, "line": "line-1"}, "should have the highest serial"),
        ({"camera": "top"}, "--camera: 'top': goes with --product"),
        ({"product": "lemon", "bundle": "bottle"}, "--bundle: 'bottle': should be 64"),
        ({"product": "lemon", "registry": plant.registry.settings.address}, "needs fleet.yaml"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            desired(**{**options, "bundle": "a" * 64, **wrong})


def test_one_line_gets_a_desired_state(session_registry, keys, capsys):
    address = session_registry.settings.address
    options = {"line": "Line 7 (Süd)", "key": keys.private, "registry": address}
    desired(**options, bundle="a" * 64, serial=12, expires="2w", as_json=True)
    answer = json.loads(capsys.readouterr().out)
    found, _ = current(
        session_registry.client(),
        repository_of("Line 7 (Süd)"),
        Desired,
        keys.public,
        option="--key",
    )
    assert (found.agent, found.serial, found.expires) == ("Line 7 (Süd)", 12, answer["expires"])
    for wrong, said in [
        ({"bundle": "bottle"}, "--bundle: 'bottle': should be 64 hexadecimal digits"),
        ({"bundle": "a" * 64, "expires": "soon"}, "--expires: 'soon': should be a time"),
        ({"bundle": "a" * 64, "calibration": "mine"}, "--calibration: 'mine'"),
        ({"bundle": "a" * 64, "line": "a/b\n"}, "line"),
        ({"bundle": "a" * 64, "registry": "registry"}, "--registry: 'registry': should be"),
        ({"bundle": "a" * 64, "key": keys.public}, "holds no Ed25519 private key"),
    ]:
        with pytest.raises(ConfigurationError, match=said) as refused:
            desired(**{**options, **wrong})
        assert "\n" not in str(refused.value)
    with pytest.raises(RegistryError, match="cannot be reached"):
        desired(**{**options, "bundle": "a" * 64, "registry": "http://127.0.0.1:1/atac"})


def test_what_is_wrong_is_one_line_on_the_command_line(tmp_path):
    code = "from agent.cli import main; main()"
    missing = str(tmp_path / "fleet.yaml")
    done = subprocess.run(
        [sys.executable, "-c", code, "fleet", "status", "--fleet", missing],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"agent: --fleet: '{missing}': there is no such file; name one with --fleet\n"
    )
