"""The status: a value that any number of readers share, made at once when a fault changes."""

import threading
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.part import State
from agent.record.feed import Feed
from agent.settings import load_config
from agent.station.live import Live
from agent.station.monitor import DropWatch, Monitor
from agent.station.status import BOUNDS_S, Histogram
from agent.station.summary import STAGES, Timing
from engine.frame import Box
from tests.agent.parts import ended
from tests.agent.statuses import NO_TIMES, camera_status, status
from tests.inspections import inspection


class Source:
    """Makes statuses, each at its own second."""

    def __init__(self):
        self.made = 0
        self.faults = ()

    def make(self):
        self.made += 1
        return status(uptime_s=float(self.made), faults=self.faults)


CONFIG = load_config(Path(__file__).parents[3] / "agent.yaml")
NO_FEED = Feed(rows_after=lambda _cursor, _limit: [], thumbnail=lambda _epoch, _sequence: None)


def monitoring(source, clock, *readers):
    return Monitor(
        source.make,
        feed=NO_FEED,
        config=CONFIG,
        live=Live(),
        requests=None,
        clock=clock,
        readers=readers,
    )


@pytest.fixture
def source():
    return Source()


def test_a_status_is_a_value(source):
    with pytest.raises(FrozenInstanceError):
        source.make().is_paused = True
    assert not source.make().is_degraded
    assert status(faults=("ledger: full",)).is_degraded


def test_it_is_told_every_second_and_at_once_when_a_fault_changes(source, eventually):
    clock, told = ManualClock(), []
    with monitoring(source, clock, told.append) as monitor:

        def look():
            before = source.made
            eventually(lambda: clock.waiting)
            clock.advance(0.25)
            eventually(lambda: source.made > before and clock.waiting)

        eventually(lambda: len(told) == 1)
        for _ in range(3):
            look()
        assert len(told) == 1
        look()
        assert len(told) == 2
        source.faults = ("camera main: gone",)
        look()
        assert told[-1].faults == ("camera main: gone",)
        assert monitor.status() is told[-1]
        source.faults = ()
        look()
        assert [each.faults for each in told[-2:]] == [("camera main: gone",), ()]
    assert told[-1].is_last
    assert not any(each.is_last for each in told[:-1])


def test_many_readers_get_the_same_and_one_that_fails_is_told_no_more(source, eventually, caplog):
    clock, one, two = ManualClock(), [], []

    def fail(_status):
        raise RuntimeError("a bug")

    with monitoring(source, clock, one.append, fail, two.append) as monitor:
        eventually(lambda: two)
        clock.advance(2.0)
        eventually(lambda: len(two) == 2)
        assert monitor.status().faults == ("status: a reader ended with RuntimeError: a bug",)
    assert one == two
    assert all(a is b for a, b in zip(one, two, strict=True))
    assert caplog.text.count("receives no more") == 1


def test_a_status_that_cannot_be_made_is_a_fault_and_the_next_one_may_be(
    source, eventually, caplog
):
    clock, told, make = ManualClock(), [], source.make

    def make_or_fail():
        if clock.now() < 1002:
            raise ZeroDivisionError("a bug")
        return make()

    with monitoring(source, clock, told.append) as monitor:
        eventually(lambda: told)
        monitor._make = make_or_fail
        clock.advance(1.0)
        eventually(lambda: "a bug" in caplog.text and clock.waiting)
        clock.advance(2.0)
        eventually(lambda: len(told) > 1)
    assert "ZeroDivisionError: a bug" in told[-1].faults[0]


def test_a_service_waits_for_a_newer_one(source):
    clock, got = ManualClock(), []
    with monitoring(source, clock) as monitor:
        first = monitor.status()
        waiting = threading.Thread(target=lambda: got.append(monitor.newer(first, 60)))
        waiting.start()
        clock.advance(2.0)
        waiting.join(60)
        assert got
        assert got[0] is not first
        assert monitor.newer(monitor.status(), 0.0) is None
    assert monitor.age_s() == 0.0


def counted(ok, dropped):
    return {"main": camera_status(OK=ok, DROPPED=dropped)}


def test_a_share_of_parts_that_were_not_inspected_is_a_fault_for_a_minute():
    clock = ManualClock()
    drops = DropWatch({"main": 0.01}, clock)
    assert drops.faults(counted(1000, 500)) == {}  # of earlier runs
    clock.advance(1.0)
    assert drops.faults(counted(1010, 505)) == {}  # of few parts no share is taken
    clock.advance(1.0)
    found = drops.faults(counted(1100, 505))
    assert "more than 0.01 of its parts" in found["main"]
    clock.advance(1.0)
    assert drops.faults(counted(1110, 506)) == found  # the same text: no news
    clock.advance(61.0)
    assert drops.faults(counted(2000, 506)) == {}


def test_no_share_is_too_large_where_the_limit_is_one():
    clock = ManualClock()
    drops = DropWatch({"main": 1.0}, clock)
    drops.faults(counted(0, 0))
    clock.advance(1.0)
    assert drops.faults(counted(0, 100)) == {}


times = st.lists(st.floats(1e-4, 20.0), min_size=1, max_size=60)


@given(times, st.sampled_from([0.1, 0.5, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(seconds, share):
    counts = np.bincount(np.searchsorted(BOUNDS_S, seconds), minlength=len(BOUNDS_S) + 1)
    histogram = Histogram(counts=tuple(map(int, counts)), total_s=sum(seconds))
    exact = float(np.quantile(seconds, share, method="inverted_cdf"))
    found = histogram.quantile(share)
    bounds = (0.0, *BOUNDS_S, BOUNDS_S[-1])
    bucket = int(np.searchsorted(BOUNDS_S, exact))
    assert bounds[bucket] <= found <= bounds[bucket + 1]


@given(times, times)
def test_what_was_timed_since_an_earlier_reading(before, after):
    timing = Timing()
    for index, seconds in enumerate((*before, *after)):
        if index == len(before):
            earlier = timing.histograms()
        part = ended(index + 1, State.OK, inspection=inspection(1.0, Box.whole(4, 4)))
        part.begun = 0.0
        timing.add(part, seconds)
    now = timing.histograms()
    assert list(now) == list(STAGES)
    recent = now["end_to_end"].since(earlier["end_to_end"])
    assert recent.count == len(after)
    assert recent.total_s == pytest.approx(sum(after))
    assert now["view_2"] == NO_TIMES  # a pass that was skipped took no time
    assert NO_TIMES.quantile(0.5) is None


def test_the_sum_of_all_ends():
    both = replace(
        status(), cameras={"left": camera_status(OK=2, NG=1), "right": camera_status(DROPPED=4)}
    )
    assert both.ended == 7
