"""Which part id belongs to which part: by hand, and with lost codes against a known truth."""

import random

import pytest

from agent.ports import Announcement
from agent.triggers.naming import Naming
from agent.triggers.reconcile import Window

BEFORE = Window(min_s=0.2, max_s=0.3)
BEHIND = Window(min_s=-0.1, max_s=-0.05)


def reading(at, part_id):
    return Announcement(at=at, part_id=part_id, is_trigger=False)


def test_an_id_is_read_before_its_part_or_after_it():
    naming = Naming(BEFORE)
    assert naming.read(reading(0.0, "a")) is None
    assert naming.began("p", 0.25).part_id == "a"
    assert naming.began("q", 0.29) is None
    naming = Naming(BEHIND)
    assert naming.began("p", 0.0) is None
    assert naming.read(reading(0.08, "a")) == "p"
    assert naming.read(reading(0.09, "b")) is None


def test_a_code_that_is_read_twice_is_one():
    naming = Naming(BEFORE)
    naming.read(reading(0.0, "a"))
    naming.read(reading(0.05, "a"))
    assert naming.began("p", 0.25).part_id == "a"
    naming.passed(10)
    assert naming.unclaimed == 0


def test_in_doubt_a_part_has_no_id():
    naming = Naming(BEFORE)
    naming.read(reading(0.0, "a"))
    naming.read(reading(0.05, "b"))
    assert naming.began("p", 0.26) is None
    assert "2 part ids fit one part" in naming.fault
    assert naming.began("q", 0.3) is None


def test_an_id_that_belongs_to_no_part_is_said():
    naming = Naming(BEFORE)
    naming.read(reading(0.0, "a"))
    assert naming.due == pytest.approx(0.4)
    naming.passed(0.5)
    assert naming.unclaimed == 1
    assert "belongs to no part: 'a'" in naming.fault
    assert naming.due is None


@pytest.mark.parametrize("window", [BEFORE, BEHIND, Window(min_s=-0.03, max_s=0.05)])
def test_no_part_has_another_one_s_id(window):
    """20 000 parts; one in ten codes is lost, some are read twice, some parts never come."""
    chance = random.Random(7)
    events, at = [], 0.0
    for number in range(20_000):
        at += chance.uniform(0.11, 0.5)
        if chance.random() > 0.05:
            events.append((at, number, None))
        read_at = at - chance.uniform(window.min_s, window.max_s)
        if chance.random() > 0.1:
            events.append((read_at, None, f"id-{number}"))
            if chance.random() > 0.9:
                events.append((read_at + 0.01, None, f"id-{number}"))
    naming, named = Naming(window), {}
    for when, number, part_id in sorted(events, key=lambda event: event[0]):
        if number is not None:
            found = naming.began(number, when)
            if found is not None:
                named[number] = found.part_id
        else:
            part = naming.read(reading(when, part_id))
            if part is not None:
                named[part] = part_id
    assert all(part_id == f"id-{number}" for number, part_id in named.items())
    assert len(named) > 16_500
