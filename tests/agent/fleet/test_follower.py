"""An agent follows its desired state: what it takes, what it refuses, and how it goes back."""

import itertools
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.fleet.bundles import push_bundle, push_calibration
from agent.fleet.desired import LINE, STOP, Desired, Stop, Wanted, publish, repository_of
from agent.fleet.follower import Follower
from agent.fleet.goal import InForce, Rules, Shadowed
from agent.fleet.kept import KEPT, Ends
from agent.fleet.settings import TrialSettings
from agent.station.status import Promise
from calibration.record import read_calibration
from engine.bundle import replace_file
from engine.errors import DesiredStateError
from engine.signature import SIGNATURE, sign
from tests.calibrations import calibrated
from tests.registry import Keys, RealRegistry
from tests.tiny_bundle import tiny_bundle

NOON = datetime.now(UTC)
LATER = (NOON + timedelta(days=1)).isoformat()
OLD = "a" * 64
LINES = itertools.count()


class FakeLine:
    """A line in memory: what inspects, how its parts end, and what was asked of it."""

    def __init__(self):
        self.bundle_id, self.previous = OLD, None
        self.ends = Ends(epoch="e1", ended=1000, ng=10, errors=1)
        self.calibrates: Exception | None = None
        self.meanwhile = lambda: None
        self.shadowed: Shadowed | None = Shadowed(judged=200, changed=3)
        self.changes: Exception | None = None
        self.asked = []

    def now(self):
        return InForce(bundle_id=self.bundle_id, ends=self.ends)

    def promise(self):
        return None

    def calibrate(self, bundle, *, is_own, meanwhile):
        self.asked.append("calibrate" if is_own else "take the calibration")
        self.meanwhile()
        meanwhile()
        if self.calibrates is not None:
            raise self.calibrates
        if not is_own:
            read_calibration(bundle)
        return Promise(
            max_false_reject=0.01, confidence=0.95, is_proved=True, calibrated_at=NOON.isoformat()
        )

    def shadow(self, bundle, *, meanwhile):
        return self.shadowed

    def change(self, kind, bundle, why):
        self.asked.append(kind)
        if self.changes is not None:
            raise self.changes
        if kind == "rollback":
            self.bundle_id, self.previous = self.previous, self.bundle_id
        else:
            self.bundle_id, self.previous = bundle.id, self.bundle_id

    def more(self, ended, *, ng=0, errors=0):
        have = self.ends
        self.ends = replace(
            have, ended=have.ended + ended, ng=have.ng + ng, errors=have.errors + errors
        )


class Agent:
    """An agent of a fleet, and the engineers who sign for it."""

    def __init__(self, registry, keys, folder):
        self.id = f"line-{next(LINES)}"
        self.registry, self.keys, self.folder = registry, keys, folder
        self.client = registry.client(wait_s=2.0)
        self.line, self.time, self.steady = FakeLine(), NOON, 0.0
        self.lines = {LINE: self.line}
        self.said = []
        self.start()

    def start(self):
        self.follower = Follower(
            self.registry.client(wait_s=2.0),
            self.lines,
            self.folder / "fleet",
            Rules(
                agent_id=self.id,
                key=self.keys.public,
                option="fleet.key",
                max_changed=0.2,
                trial=TrialSettings(),
            ),
            tell=self.said.append,
            now=lambda: self.time,
            clock=lambda: self.steady,
            every_s=90.0,
        )

    def push(self, *, gain=60.0, keys=None):
        """A signed bundle, in the registry."""
        bundle = tiny_bundle(self.folder / f"pushed-{gain:g}", gain=gain)
        signed = sign(bundle.read("manifest.json"), (keys or self.keys).private)
        replace_file(bundle.path / SIGNATURE, signed)
        push_bundle(self.client, bundle)
        return bundle

    def make(self, *products):
        """The line makes these."""
        self.lines = {name: FakeLine() for name in products}
        self.start()
        return self.lines.values()

    def desire_of(self, serial, **wanted):
        """A state that names products: bundle, or serial and bundle."""
        named = {
            name: one if isinstance(one, tuple) else (serial, one) for name, one in wanted.items()
        }
        products = [
            Wanted(product=name, serial=since, bundle=bundle.id)
            for name, (since, bundle) in named.items()
        ]
        self.desire(serial, None, products=products)

    def states(self):
        """How the products are, after one more look."""
        return {name: one.state for name, one in self.poll().products.items()}

    def desire(self, serial, bundle, *, agent=None, keys=None, **changes):
        desired = Desired(
            **{"agent": agent or self.id, "serial": serial, "bundle": bundle, "expires": LATER}
            | changes
        )
        key = (keys or self.keys).private
        publish(self.client, repository_of(self.id), desired, key)

    def poll(self):
        """The status after one more look at the registry."""
        self.steady += 4000.0
        self.follower.poll()
        self.follower.watch()
        return self.said[-1]


@pytest.fixture
def agent(session_registry, keys, tmp_path):
    return Agent(session_registry, keys, tmp_path)


def test_a_desired_bundle_comes_into_force_after_its_trial(agent):
    assert agent.poll().state == "waiting"
    assert "no desired state" in agent.said[-1].reason
    bundle = agent.push()
    agent.desire(7, bundle.id)
    status = agent.poll()
    states = [one.state for one in agent.said[-5:]]
    assert states == ["pulling", "calibrating", "shadowing", "shadowing", "on trial"]
    assert agent.line.asked == ["calibrate", "promote"]
    assert (status.serial, status.bundle) == (7, bundle.id)
    assert (status.judged, status.changed_verdicts) == (200, 3)
    agent.line.more(199, ng=3)
    assert agent.poll().state == "on trial"
    agent.line.more(1)
    status = agent.poll()
    assert (status.state, status.reason, status.promise.max_false_reject) == (
        "in force",
        None,
        0.01,
    )
    assert agent.line.asked == ["calibrate", "promote"]
    # Also after a start, and without another look at what is known.
    agent.start()
    assert agent.poll() == status
    assert agent.line.asked == ["calibrate", "promote"]


@pytest.mark.parametrize(
    ("ended", "ends", "why"),
    [
        (25, {"ng": 21}, "21 of 25 parts were NG; at most 0.1 may be"),
        (9, {"errors": 5}, "5 of 9 parts had no verdict; 0.02 may have none"),
    ],
)
def test_a_bundle_that_leaves_its_band_goes_back(agent, ended, ends, why):
    bundle = agent.push()
    agent.desire(1, bundle.id)
    assert agent.poll().state == "on trial"
    agent.start()  # the trial goes on after a start
    agent.line.more(ended, **ends)
    status = agent.poll()
    assert (status.state, status.reason) == ("rolled back", why)
    assert agent.line.bundle_id == OLD
    assert agent.poll().state == "rolled back"
    assert agent.line.asked == ["calibrate", "promote", "rollback"]
    other = agent.push(gain=70.0)
    agent.desire(2, other.id)
    assert agent.poll().state == "on trial"


def test_what_must_not_be_obeyed_is_refused(agent, tmp_path):
    bundle = agent.push()
    strangers = Keys(tmp_path, "stranger")
    agent.desire(5, bundle.id, agent="line-of-others")
    assert "is for the agent 'line-of-others'" in agent.poll().reason
    agent.desire(5, bundle.id, keys=strangers)
    assert "is not signed by the key" in agent.poll().reason
    agent.desire(5, bundle.id, expires=NOON.isoformat())
    assert f"expired on {NOON:%Y-%m-%d %H:%M} UTC" in agent.poll().reason
    other = agent.push(gain=66.0, keys=strangers)
    agent.desire(5, other.id)
    assert "is not a signature of this manifest by the key" in agent.poll().reason
    agent.desire(6, "b" * 64)
    assert "has no signed bundle bbbbbbbbbbbb" in agent.poll().reason
    assert {one.state for one in agent.said if one.reason and "registry has no d" not in one.reason}
    assert agent.said[-1].state == "refused"
    assert agent.line.asked == []
    agent.desire(7, bundle.id)
    assert agent.poll().state == "on trial"
    for serial, why in [(4, "serial 4, and 7 is known"), (7, "two desired states with serial 7")]:
        agent.desire(serial, other.id)
        status = agent.poll()
        assert (status.state, status.serial) == ("refused", 7)
        assert why in status.reason
        assert "\n" not in status.reason
    assert agent.line.asked == ["calibrate", "promote"]


def test_a_clock_a_day_off_is_said_and_catches_up(agent):
    bundle = agent.push()
    agent.desire(1, bundle.id)
    agent.time = NOON + timedelta(days=2)
    said = agent.poll().reason
    assert f"this machine's clock says {agent.time:%Y-%m-%d %H:%M}" in said
    agent.time = NOON - timedelta(days=1)
    assert agent.poll().state == "on trial"
    agent.line.more(200)
    assert agent.poll().state == "in force"
    assert agent.poll().reason == (
        "this machine's clock and the registry's differ by 24 h; set one of them"
    )
    agent.time = NOON
    status = agent.poll()
    assert (status.state, status.reason) == ("in force", None)
    agent.time = NOON + timedelta(days=2)
    assert "and no newer one has come" in agent.poll().reason


def test_an_altered_blob_is_never_used_and_mended_ones_are(agent):
    bundle = agent.push(gain=61.0)
    agent.desire(1, bundle.id)
    stored = agent.registry.blob(bundle.manifest.files["network.onnx"])
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    status = agent.poll()
    assert status.state == "refused"
    assert "were altered or damaged; nothing of them is used" in status.reason
    assert agent.line.asked == []
    assert not list((agent.folder / "fleet").rglob("network.onnx"))
    agent.follower.poll()  # it is not tried again yet
    assert agent.said[-1] == status
    stored.write_bytes(good)
    assert agent.poll().state == "on trial"


def test_one_signed_object_stops_everything(agent):
    bundle = agent.push()
    try:
        stop = Stop(serial=3, is_stopped=True, why="wrong pictures")
        publish(agent.client, STOP, stop, agent.keys.private)
        agent.desire(1, bundle.id)
        status = agent.poll()
        assert (status.state, status.reason) == ("stopped", "wrong pictures")
        publish(agent.client, STOP, replace(stop, serial=2, is_stopped=False), agent.keys.private)
        assert "an old one was put back" in agent.poll().reason
        assert agent.line.asked == []
    finally:
        publish(agent.client, STOP, Stop(serial=4, is_stopped=False), agent.keys.private)
    assert agent.poll().state == "on trial"


def test_a_calibration_of_the_registry_is_taken(agent):
    bundle = agent.push()
    calibrated(bundle, 4.0)
    record = read_calibration(bundle)
    agent.desire(1, bundle.id, calibration=record.id)
    assert "has no calibration" in agent.poll().reason
    push_calibration(agent.client, (bundle.path / "calibration.json").read_bytes(), record.id)
    assert agent.poll().state == "on trial"
    assert agent.line.asked == ["take the calibration", "promote"]


def test_what_the_line_cannot_do_is_said_and_tried_again(agent):
    bundle = agent.push()
    agent.desire(1, bundle.id)
    agent.line.calibrates = DesiredStateError("too few good parts")
    assert agent.poll().reason == "too few good parts"
    agent.follower.poll()  # not so soon again
    assert agent.line.asked == ["calibrate"]
    agent.line.calibrates, agent.line.changes = None, DesiredStateError("the ledger is full")
    assert agent.poll().reason == "the ledger is full"
    agent.line.changes = None
    agent.line.shadowed = Shadowed(judged=200, changed=41)
    assert "41 of 200 kept frames would have another verdict" in agent.poll().reason
    agent.line.shadowed = None
    assert agent.poll().state == "refused"  # that is for people to decide
    agent.desire(2, bundle.id)
    status = agent.poll()
    assert (status.state, status.changed_verdicts) == ("on trial", None)
    agent.line.bundle_id = "c" * 64
    assert "somebody has put bundle cccccccccccc in force" in agent.poll().reason


def test_a_full_disk_is_one_line_and_the_serial_is_not_lost(agent, monkeypatch):
    bundle = agent.push()
    agent.desire(1, bundle.id)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.fleet.kept.replace_file", full)
        status = agent.poll()
        assert (status.state, status.serial) == ("refused", None)
        assert "No space left on device" in status.reason
    with monkeypatch.context() as patch:
        patch.setattr("agent.fleet.oci.os.fsync", full)
        assert "cannot be written (No space left on device)" in agent.poll().reason
    assert agent.line.asked == []
    assert agent.poll().state == "on trial"
    (agent.folder / "fleet" / KEPT).write_text("{}x")
    with pytest.raises(DesiredStateError, match="cannot be read"):
        agent.start()


def test_a_registry_that_dies_changes_nothing(keys, tmp_path):
    with RealRegistry(tmp_path / "registry") as registry:
        agent = Agent(registry, keys, tmp_path)
        bundle = agent.push()
        agent.desire(1, bundle.id)
        assert agent.poll().state == "on trial"
        agent.line.more(200)
        assert agent.poll().state == "in force"
        registry.kill()
        status = agent.poll()
        assert status.state == "in force"
        assert "cannot be reached (Connection refused)" in status.reason
        registry.start()
        assert agent.poll().reason is None
        shutil.rmtree(registry.folder / "docker/registry/v2/repositories/atac/desired")
        assert "no desired state for this agent any more" in agent.poll().reason


def test_what_is_kept_names_the_newest_state(agent):
    bundle = agent.push()
    agent.desire(9, bundle.id)
    agent.poll()
    kept = json.loads((agent.folder / "fleet" / KEPT).read_text())
    assert (kept["serial"], kept["bundles"][LINE]["trial"]["ended"]) == (9, 1000)
    assert sorted(path.name for path in (agent.folder / "fleet/bundles").iterdir()) == [bundle.id]


def test_each_product_follows_its_own_bundle(agent):
    cola, lemon = agent.make("cola", "lemon")
    first, second = agent.push(), agent.push(gain=61.0)
    agent.desire_of(1, cola=first, lemon=second, beer=first)
    assert agent.states() == {"cola": "on trial", "lemon": "on trial", "beer": "refused"}
    status = agent.said[-1]
    assert (status.state, status.bundle, status.judged) == ("refused", None, 400)
    assert status.reason == "beer: this line makes cola, lemon; name one of them"
    lemon.more(200)
    cola.more(25, ng=21)
    assert agent.states() == {"cola": "rolled back", "lemon": "in force", "beer": "refused"}
    assert (cola.bundle_id, lemon.bundle_id) == (OLD, second.id)
    assert (cola.asked, lemon.asked) == (
        ["calibrate", "promote", "rollback"],
        ["calibrate", "promote"],
    )
    # What is said of lemon is no news about cola, also not after a start.
    agent.start()
    agent.desire_of(2, cola=(1, first), lemon=first)
    assert agent.states() == {"cola": "rolled back", "lemon": "on trial"}
    assert agent.said[-1].reason == "cola: 21 of 25 parts were NG; at most 0.1 may be"
    agent.desire_of(3, cola=first, lemon=(2, first))
    assert agent.states() == {"cola": "on trial", "lemon": "on trial"}
    # A trial goes on although nothing is said of it any more.
    agent.desire_of(4, lemon=(2, first))
    cola.more(5, errors=5)
    assert agent.states() == {"cola": "rolled back", "lemon": "on trial"}
    assert lemon.asked == ["calibrate", "promote"] * 2


def test_a_bad_bundle_goes_back_while_that_of_another_product_is_tried(agent):
    cola, lemon = agent.make("cola", "lemon")
    bundle = agent.push()
    agent.desire_of(1, cola=bundle)
    assert agent.states() == {"cola": "on trial"}
    lemon.meanwhile = lambda: cola.more(25, ng=25)
    lemon.calibrates = DesiredStateError("too few good parts")
    agent.desire_of(2, cola=(1, bundle), lemon=bundle)
    assert agent.states() == {"cola": "rolled back", "lemon": "refused"}
    shown = [{name: one.state for name, one in each.products.items()} for each in agent.said]
    assert {"cola": "rolled back", "lemon": "calibrating"} in shown
    assert agent.said[-1].reason == "lemon: too few good parts"
    lemon.calibrates = None
    assert agent.states() == {"cola": "rolled back", "lemon": "on trial"}
    # Who signs a new state is given an old one by the registry.
    agent.desire_of(3, cola=bundle, lemon=(1, bundle))
    assert "says of lemon has serial 1, and 2 is known already" in agent.poll().reason


def test_an_altered_bundle_of_one_product_is_no_matter_of_the_others(agent):
    cola, _ = agent.make("cola", "lemon")
    first, second = agent.push(gain=62.0), agent.push(gain=63.0)
    stored = agent.registry.blob(first.manifest.files["network.onnx"])
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    agent.desire_of(1, cola=first, lemon=second)
    assert agent.states() == {"cola": "refused", "lemon": "on trial"}
    assert "were altered or damaged" in agent.said[-1].products["cola"].reason
    assert cola.asked == []
    stored.write_bytes(good)
    assert agent.states() == {"cola": "on trial", "lemon": "on trial"}


def test_a_state_for_another_kind_of_line_is_refused(agent):
    bundle = agent.push()
    agent.desire_of(1, cola=bundle)
    status = agent.poll()
    assert (status.state, status.reason) == (
        "refused",
        "cola: this line makes no products; name one bundle",
    )
    agent.make("cola", "lemon")
    assert agent.poll().state == "on trial"  # it has become one that makes it
    agent.desire(2, bundle.id)
    status = agent.poll()
    assert (status.state, status.serial) == ("refused", 2)
    assert status.reason.startswith("this line makes cola, lemon; name one of them")
    for wrong in (
        {"bundle": None},
        {"products": [Wanted(product="cola", serial=3, bundle=OLD)]},
        {"bundle": None, "products": [Wanted(product="cola", serial=9, bundle=OLD)]},
        {"bundle": None, "products": [Wanted(product="cola", serial=3, bundle=OLD)] * 2},
        {"bundle": None, "products": [Wanted(product=None, serial=3, bundle=OLD)]},
    ):
        with pytest.raises(ValueError, match="should "):
            agent.desire(3, **({"bundle": OLD} | wrong))
