"""Counts of trigger source, camera and agent, compared at the end of each shift."""

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from agent.cameras.settings import LineSettings
from agent.part import Trigger
from agent.station.counts import CountWatch
from tests.agent.parts import part


class Line:
    """Parts of one camera, and a clock that goes on as it is told; times are UTC here."""

    def __init__(self):
        self.now = datetime(2026, 11, 27, 13, 0, tzinfo=UTC)
        self.watch = CountWatch({"main": LineSettings()}, self._utc_ns)
        self.number = 0

    def _utc_ns(self):
        return round(self.now.timestamp() * 1e9)

    def ends(self, count=None, counted=None, number=None):
        self.number += 1
        made = part(self.number)
        made.trigger = Trigger(
            sequence=self.number,
            camera="main",
            triggered_ns=0,
            count=count,
            number=self.number if number is None else number,
        )
        made.frame = replace(made.frame, trigger_count=counted)
        self.watch.add(made)

    def next_shift(self):
        self.now = self.now.replace(hour=(self.now.hour + 8) % 24, day=28)
        return self.watch


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def line():
    return Line()


def test_equal_counts_say_nothing(line):
    for number in range(5):
        line.ends(100 + number, 7 + number)
    line.next_shift()
    line.ends(105, 12)
    assert line.watch.fault is None


def test_a_difference_is_said_for_the_shift_that_follows(line):
    line.ends(1, 1)
    line.ends(2, 4)
    line.ends(5, 5)
    assert line.watch.fault is None
    line.next_shift()
    line.ends(6, 6)
    assert line.watch.fault == (
        "camera main: of the 3 parts until 14:00, the trigger source counted 2 more and the camera "
        "counted 2 more; check wiring and window"
    )
    line.next_shift()
    line.ends(7, 7)
    assert line.watch.fault is None


def test_wraps_and_restarts_are_no_difference(line):
    for count in (65_534, 65_535, 0, 1):
        line.ends(count)
    for count in (65_535, 1, 2):
        line.ends(count)
    line.ends(3, 900)
    line.ends(4, 2)
    line.next_shift()
    line.ends(5, 3)
    assert line.watch.fault is None


def test_parts_that_end_in_another_order_are_no_difference(line):
    line.ends(1, 1, number=1)
    line.ends(3, 3, number=3)
    line.ends(2, None, number=2)
    line.ends(4, 4, number=4)
    line.next_shift()
    line.ends(5, 5, number=5)
    assert line.watch.fault is None
