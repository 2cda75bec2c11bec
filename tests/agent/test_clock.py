"""The clock that tests drive: it stands still, and wakes whoever waits by it."""

import threading

import pytest

from agent.clock import ManualClock, SystemClock


def test_time_passes_only_when_it_is_told_to():
    clock = ManualClock(now=5.0, utc_ns=1_000)
    assert (clock.now(), clock.utc_ns()) == (5.0, 1_000)
    clock.advance(2.5)
    assert (clock.now(), clock.utc_ns()) == (7.5, 2_500_001_000)


def test_a_wait_ends_when_enough_time_was_given(eventually):
    clock, woken = ManualClock(), []
    thread = threading.Thread(target=lambda: woken.append(clock.wait(threading.Event(), 10.0)))
    thread.start()
    eventually(lambda: clock.waiting == 1)
    clock.advance(9.0)
    assert not woken
    clock.advance(1.0)
    thread.join(60)
    assert woken == [False]


@pytest.mark.parametrize("clock", [ManualClock(), SystemClock()])
def test_a_wait_ends_when_its_event_is_set(clock):
    event = threading.Event()
    thread = threading.Thread(target=lambda: clock.wait(event, 1e6))
    thread.start()
    event.set()
    thread.join(60)
    assert not thread.is_alive()
    assert clock.wait(event, 0.0)


def test_the_system_s_clock_goes_on():
    clock = SystemClock()
    before = clock.now(), clock.utc_ns()
    assert not clock.wait(threading.Event(), 0.001)
    assert clock.now() > before[0]
