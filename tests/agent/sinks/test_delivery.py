"""The thread that delivers: whatever a sink does, nothing is lost and nothing waits for it."""

import threading

import pytest

import agent.sinks.delivery
from agent.clock import ManualClock
from agent.part import State
from agent.record.ledger import Ledger
from agent.record.rows import Delivery
from agent.sinks.delivery import Deliverer
from agent.sinks.memory import MemorySink
from engine.errors import SinkError
from tests.agent.statuses import status
from tests.records import add


@pytest.fixture
def sink():
    return MemorySink()


@pytest.fixture
def ledger(tmp_path, sink):
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1", sinks=[sink]) as opened:
        yield opened


def ng(ledger, count=1):
    add(ledger, *[State.NG] * count)


def sent(sink):
    """The alarms that a sink got, by sequence; a star at what is marked as resent."""
    return [f"{one.sequence}{'*' * one.is_resent}" for one, _ in sink.got]


def test_what_is_wanted_is_delivered_in_order_and_the_receiver_is_told_of_the_end(
    sink, ledger, eventually
):
    with Deliverer(sink, ledger) as deliverer:
        ng(ledger, 100)
        eventually(lambda: deliverer.status().delivered == 100)
        now = deliverer.status()
        assert (now.is_connected, now.fault, now.refused) == (True, None, 0)
        assert not sink.has_left
    assert sent(sink) == [str(n) for n in range(1, 101)]
    assert sink.has_left
    assert ledger.waiting("memory") == 0


def test_stopping_delivers_what_is_left(sink, ledger):
    with Deliverer(sink, ledger):
        ng(ledger, 300)
    assert ledger.waiting("memory") == 0
    assert len(sink.got) == 300


def test_the_window_bounds_what_has_no_receipt(sink, ledger, eventually):
    sink.holds_back, sink.window = True, 7
    with Deliverer(sink, ledger, drain_s=0) as deliverer:
        ng(ledger, 20)
        eventually(lambda: len(sink.got) == 7)
        sink.holds_back = False
        eventually(lambda: deliverer.status().delivered == 20)


def test_a_receiver_that_is_away_is_said_once_and_tried_with_back_off(
    sink, ledger, eventually, caplog
):
    sink.fault = "nobody answers"
    clock = ManualClock()
    with Deliverer(sink, ledger, clock=clock, drain_s=0) as deliverer:
        ng(ledger, 3)
        for _ in range(5):
            eventually(lambda: clock.waiting)
            clock.advance(60)
        assert deliverer.status().fault == "nobody answers"
        assert not deliverer.status().is_connected
        said = [
            record.message for record in caplog.records if "waits in the ledger" in record.message
        ]
        assert said == ["memory: what it wants waits in the ledger: nobody answers"]
        sink.fault = None
        eventually(lambda: clock.advance(60) or deliverer.status().delivered == 3)
        assert deliverer.status().fault is None
    assert sent(sink) == ["1", "2", "3"]


def test_what_had_no_receipt_comes_again_and_says_so(sink, ledger, eventually):
    sink.holds_back = True
    clock = ManualClock()
    with Deliverer(sink, ledger, clock=clock, drain_s=0):
        ng(ledger, 3)
        eventually(lambda: len(sink.got) == 3)
        sink.fault = "broken"
        eventually(lambda: not sink.is_connected)
        sink.fault, sink.holds_back = None, False
        ng(ledger)
        eventually(lambda: clock.advance(60) or ledger.waiting("memory") == 0)
    assert sent(sink) == ["1", "2", "3", "1*", "2*", "3*", "4"]


def test_one_that_acknowledges_nothing_is_connected_anew(sink, ledger, eventually):
    sink.holds_back = True
    clock = ManualClock()
    with Deliverer(sink, ledger, clock=clock, drain_s=0) as deliverer:
        ng(ledger)
        eventually(lambda: sink.got)
        clock.advance(30)
        eventually(lambda: "acknowledges nothing" in (deliverer.status().fault or ""))
        eventually(lambda: clock.advance(30) or sink.connections == 2)


def test_what_is_refused_is_kept_named_and_replayed(sink, ledger, eventually):
    sink.refuses = lambda one: "no room" if one.sequence % 2 else None
    with Deliverer(sink, ledger) as deliverer:
        ng(ledger, 5)
        eventually(lambda: deliverer.status().refused == 3)
        ng(ledger, 2)
        eventually(lambda: deliverer.status().refused == 4)
        assert deliverer.status().fault == "refuses alarm: no room"
        assert ledger.flush(60)
        assert (ledger.waiting("memory"), ledger.refused("memory")) == (0, 4)
        sink.refuses = lambda _one: None
        assert deliverer.replay(ledger.epoch, 1, 7) == 7
        eventually(lambda: len(sink.got) == 14)
        eventually(lambda: deliverer.status().fault is None)
    assert sent(sink)[7:] == [f"{n}*" for n in range(1, 8)]


def test_one_that_cannot_be_sent_is_set_aside_and_those_behind_it_go_on(sink, ledger, eventually):
    def refuses(one: Delivery) -> str | None:
        if one.sequence == 2:
            raise ValueError("a topic with a NUL")
        return None

    sink.refuses = refuses
    with Deliverer(sink, ledger) as deliverer:
        ng(ledger, 4)
        eventually(lambda: deliverer.status().delivered == 3)
        assert deliverer.status().refused == 1
    assert sent(sink) == ["1", "3", "4"]


def test_an_error_that_nobody_expected_is_a_fault_and_tried_again(
    sink, ledger, eventually, monkeypatch
):
    clock = ManualClock()
    connect = sink.connect
    monkeypatch.setattr(sink, "connect", lambda: 1 // 0)
    with Deliverer(sink, ledger, clock=clock) as deliverer:
        ng(ledger)
        eventually(lambda: "ZeroDivisionError" in (deliverer.status().fault or ""))
        assert deliverer.is_alive
        monkeypatch.setattr(sink, "connect", connect)
        eventually(lambda: clock.advance(60) or deliverer.status().delivered == 1)


def test_live_ones_do_not_wait_for_the_backlog(sink, ledger, eventually):
    ng(ledger, 500)
    ledger.flush(60)
    sink.holds_back, sink.window = True, 1
    with Deliverer(sink, ledger) as deliverer:
        eventually(lambda: sink.got)
        ng(ledger)
        ledger.flush(60)
        sink.holds_back = False
        eventually(lambda: deliverer.status().delivered == 501)
    order = sent(sink)
    # What an earlier run left may have come before.
    assert order[0] == "1*"
    assert order.index("501") < 5


def test_only_the_newest_status_is_told(sink, ledger, eventually):
    sink.fault = "away"
    clock = ManualClock()
    with Deliverer(sink, ledger, clock=clock) as deliverer:
        eventually(lambda: deliverer.status().fault == "away")
        for number in range(20):
            deliverer.report(status(uptime_s=float(number)))
        sink.fault = None
        eventually(lambda: clock.advance(60) or sink.statuses)
        assert [one.uptime_s for one in sink.statuses] == [19.0]


def test_two_sinks_go_their_own_ways(tmp_path, eventually):
    slow, quick = MemorySink("slow"), MemorySink("quick")
    slow.fault = "away"
    with (
        Ledger(tmp_path / "two.sqlite", agent_id="line1", sinks=[slow, quick]) as ledger,
        Deliverer(slow, ledger, drain_s=0, clock=ManualClock()),
        Deliverer(quick, ledger) as deliverer,
    ):
        ng(ledger, 50)
        eventually(lambda: deliverer.status().delivered == 50)
        eventually(lambda: deliverer.status().pending == 0)
        assert ledger.waiting("slow") == 50


def test_no_thread_is_left_behind(sink, ledger):
    before = set(threading.enumerate())
    with Deliverer(sink, ledger):
        pass
    assert set(threading.enumerate()) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_a_fault(sink, ledger, eventually, monkeypatch):
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agent.sinks.delivery.Deliverer, "_connect_and_deliver", dies)
    with Deliverer(sink, ledger) as deliverer:
        eventually(lambda: not deliverer.is_alive)
        assert "has died" in deliverer.status().fault


def test_a_sink_error_says_whether_waiting_helps():
    assert SinkError("no", is_refusal=True).is_refusal
