"""A roll-out advances from ring to ring on what lines report, and stops where they are not well."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from agent.fleet.desired import Desired
from agent.fleet.follower import not_made
from agent.fleet.plan import RollOutSettings, load_plan
from agent.fleet.reports import Report
from agent.fleet.rollout import next_step
from agent.services.fleet.service import places_of
from agent.settings import load_config
from engine.errors import ConfigurationError

BUNDLE = "b" * 64
RULES = RollOutSettings(max_changed=0.05, max_false_reject=0.03)
WELL = Report(
    agent="",
    time="2026-11-27T12:00:00.000Z",
    bundle_id=BUNDLE,
    state="in force",
    serial=1,
    judged=200,
    changed_verdicts=10,
    max_false_reject=0.03,
)
PLAN = """
registry: {address: http://127.0.0.1:5000/atac}
key: signing.pub.pem
brokers: [{host: broker.example}]
"""


def plan(tmp_path, count, more=""):
    path = tmp_path / "fleet.yaml"
    lines = ", ".join(f"line-{number}" for number in range(count))
    path.write_text(f"{PLAN}lines: [{lines}]\n{more}")
    return load_plan(path)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (5, [1, 4]), (200, [1, 1, 18, 180]), (1000, [1, 9, 90, 900])]
)
def test_rings_are_one_line_one_percent_ten_and_all(tmp_path, count, sizes):
    rings = plan(tmp_path, count).rings
    assert [len(ring) for ring in rings] == sizes
    assert [line for ring in rings for line in ring] == [f"line-{n}" for n in range(count)]


class Fleet:
    """Lines that all obey at once."""

    def __init__(self, rings, rules=RULES):
        self.rings, self.rules = rings, rules
        self.published, self.reports = {}, {}

    def step(self):
        return next_step(
            self.rings, BUNDLE, published=self.published, reports=self.reports, rules=self.rules
        )

    def obey(self, lines, **changes):
        self.published |= dict.fromkeys(lines, 1)
        self.reports |= {line: replace(WELL, agent=line, **changes) for line in lines}


def test_a_ring_follows_when_the_one_before_is_well():
    fleet = Fleet([["a"], ["b", "c"], ["d"]])
    kinds = []
    while (step := fleet.step()).kind == "publish":
        kinds.append(step.lines)
        fleet.obey(step.lines)
    assert (kinds, step.kind) == ([("a",), ("b", "c"), ("d",)], "done")


@pytest.mark.parametrize(
    ("changes", "kind", "why"),
    [
        ({"state": "rolled back", "reason": "9 NG"}, "stop", "a: rolled back: 9 NG"),
        ({"state": "refused", "reason": "too few"}, "stop", "a: refused: too few"),
        ({"changed_verdicts": 11}, "stop", "a: 11 of 200 kept frames have another verdict"),
        ({"max_false_reject": 0.05}, "stop", "a: it promises no less than 0.05 false rejects"),
        ({"max_false_reject": None}, "stop", "a: it reports no promise"),
        ({"state": "on trial", "reason": "until 200 parts"}, "wait", "on trial: until 200 parts"),
        ({"state": "pulling"}, "wait", "pulling"),
        ({"serial": 0}, "wait", "in force"),
        ({"is_online": False}, "wait", "offline"),
    ],
)
def test_a_line_that_is_not_well_holds_all_others_up(changes, kind, why):
    fleet = Fleet([["a"], ["b"]])
    fleet.obey(["a"], **changes)
    step = fleet.step()
    assert (step.kind, step.ring, step.why) == (kind, 1, why)
    fleet.reports.clear()
    assert fleet.step().lines == ("a",)


def test_some_lines_of_a_large_ring_may_be_in_fault_or_silent():
    ring = [f"line-{number}" for number in range(20)]
    fleet = Fleet([ring], replace(RULES, tolerate=0.1))
    fleet.obey(ring)
    del fleet.reports["line-0"]
    fleet.obey(["line-1"], state="refused", reason="a full disk")
    assert fleet.step().kind == "done"
    fleet.obey(["line-2"], state="on trial")
    assert fleet.step().kind == "wait"
    fleet.obey(["line-2", "line-3"], state="refused", reason="a full disk")
    assert fleet.step().kind == "stop"


def test_the_documented_plan_loads(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "fleet.md").read_text()
    (example,) = re.findall(r"```yaml\n(registry:.*?)```", page, re.DOTALL)
    (tmp_path / "fleet.yaml").write_text(example)
    found = load_plan(tmp_path / "fleet.yaml")
    assert (len(found.lines), len(found.brokers)) == (3, 2)
    assert found.key == tmp_path / "signing.pub.pem"


def test_the_documented_line_with_products_loads(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "fleet.md").read_text()
    (example,) = re.findall(r"```yaml\n(agent:\n  id: line-4.*?)```", page, re.DOTALL)
    (tmp_path / "agent.yaml").write_text(example)
    places = places_of(load_config(tmp_path / "agent.yaml"))
    assert {name: place.cameras for name, place in places.items()} == {
        "cola": (),
        "lemon": ("top",),
        "lemon at side": ("side",),
    }
    (state,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert TypeAdapter(Desired).validate_json(state).wanted.keys() <= places.keys()
    assert not_made(places) in page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("lines: []", "names no line"),
        ("lines: [a, b, a]", "lines: 'a': stands there twice"),
        ("lines: [a]\nroll_out: {shares: [2]}", r"roll_out.shares.0: 2: should be less than 1"),
        ("lines: [a]\nrings: 3", "rings"),
        ("", "lines: is missing"),
    ],
)
def test_a_plan_that_cannot_work_is_one_line(tmp_path, more, said):
    path = tmp_path / "fleet.yaml"
    path.write_text(PLAN + more)
    with pytest.raises(ConfigurationError, match=said) as refused:
        load_plan(path)
    assert "\n" not in str(refused.value)
