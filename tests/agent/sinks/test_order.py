"""In which order the sender empties the order."""

import pytest

import agent.sinks.order
from agent.part import State
from agent.record.ledger import Ledger
from agent.requests import RequestError
from agent.sinks.order import Order
from tests import records
from tests.records import Wants, settle


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1", sinks=[Wants()]) as opened:
        yield opened


def add(ledger, count):
    records.add(ledger, *[State.NG] * count)
    assert ledger.flush(60)


def take(order, count):
    """The next deliveries by their number; a star at what is marked as resent."""
    found = [order.next() for _ in range(count)]
    return [f"{one.id}*" if one.is_resent else f"{one.id}" for one, _ in found]


def done(ledger, order, one, **how):
    """The sink has settled a delivery."""
    settle(ledger, one, **how)
    order.settled(one[0].id)


def numbers(first, last, star=""):
    return [f"{n}{star}" for n in range(first, last + 1)]


def test_what_is_recorded_now_overtakes_the_backlog(ledger):
    order = Order(ledger, "mqtt")
    add(ledger, 300)  # the broker is away
    order.connected([])
    assert take(order, 3) == numbers(1, 3)
    add(ledger, 250)
    assert take(order, 250) == numbers(301, 550)
    assert take(order, 10) == numbers(4, 13)
    add(ledger, 1)
    assert take(order, 2) == ["551", "14"]
    assert order.has_more()
    assert take(order, 286) == numbers(15, 300)
    assert not order.has_more()
    assert order.next() is None


def test_what_an_earlier_run_left_may_have_come_before(ledger):
    add(ledger, 2)
    order = Order(ledger, "mqtt")
    add(ledger, 2)
    order.connected([])
    assert take(order, 4) == ["1*", "2*", "3", "4"]


def test_what_was_not_acknowledged_goes_first_and_says_so(ledger):
    order = Order(ledger, "mqtt")
    add(ledger, 150)
    order.connected([])
    sent = [order.next() for _ in range(4)]
    for one in (sent[0], sent[2]):
        done(ledger, order, one)
    add(ledger, 5)
    live = order.next()
    order.connected([live, sent[3], sent[1]])
    add(ledger, 1)
    assert take(order, 4) == ["2*", "4*", "151*", "156"]
    # The connection is lost once more, before any of these is acknowledged.
    order.connected([sent[1]])
    assert take(order, 1) == ["2*"]
    rest = take(order, 150)
    assert rest == numbers(5, 150) + numbers(152, 155)
    assert order.next() is None


def test_everything_comes_once_whatever_happens_to_the_connection(ledger):
    order = Order(ledger, "mqtt")
    taken = []
    add(ledger, 120)
    for _ in range(8):
        order.connected([])
        add(ledger, 30)
        for _ in range(25):
            one = order.next()
            taken.append(one[0].id)
            done(ledger, order, one)
    while (one := order.next()) is not None:
        taken.append(one[0].id)
        order.settled(one[0].id)
    assert sorted(taken) == list(range(1, 361))
    assert not order.has_more()


def test_a_replay_comes_when_nothing_else_waits(ledger):
    order = Order(ledger, "mqtt")
    add(ledger, 60)
    order.connected([])
    while (one := order.next()) is not None:
        done(ledger, order, one)
    assert ledger.flush(60)
    assert order.replay(ledger.epoch, 5, 50) == 46
    assert order.replay("another", 5, 50) == 0
    assert order.has_more()
    assert take(order, 1) == ["5*"]
    add(ledger, 3)
    assert take(order, 4) == ["61", "62", "63", "6*"]
    assert take(order, 44) == numbers(7, 50, "*")
    assert order.next() is None
    assert not order.has_more()
    assert ledger.waiting("mqtt") == 46 + 3


def test_a_replay_tries_again_what_was_refused(ledger):
    order = Order(ledger, "mqtt")
    add(ledger, 2)
    order.connected([])
    for _ in range(2):
        done(ledger, order, order.next(), refused="denied", code=0x87)
    assert ledger.flush(60)
    assert (ledger.waiting("mqtt"), ledger.refused("mqtt")) == (0, 2)
    assert order.next() is None
    assert order.replay(ledger.epoch, 1, 9) == 2
    assert take(order, 2) == ["1*", "2*"]
    assert (ledger.waiting("mqtt"), ledger.refused("mqtt")) == (2, 0)


def delivered(ledger, count):
    """An order whose messages have all been sent and acknowledged."""
    order = Order(ledger, "mqtt")
    add(ledger, count)
    order.connected([])
    while (one := order.next()) is not None:
        done(ledger, order, one)
    assert ledger.flush(60)
    return order


def test_a_replay_ends_at_the_newest_part_and_does_not_run_after_the_line(ledger):
    order = delivered(ledger, 30)
    assert order.replay(ledger.epoch, 6, 1 << 62) == 25
    for n in range(6, 31):
        assert take(order, 1) == [f"{n}*"]
        add(ledger, 1)
        live = order.next()
        assert live[0].id == 25 + n
        done(ledger, order, live)
    assert order.next() is None


def test_the_same_replay_asked_for_twice_comes_once(ledger):
    order = delivered(ledger, 60)
    assert order.replay(ledger.epoch, 1, 30) == 30  # under way from now on
    assert order.replay(ledger.epoch, 31, 60) == 30
    assert order.replay(ledger.epoch, 31, 60) == 30
    assert take(order, 60) == numbers(1, 60, "*")
    assert order.next() is None


def test_a_replay_that_cannot_be_is_refused_and_not_said_to_be_empty(ledger, monkeypatch):
    order = delivered(ledger, 40)
    monkeypatch.setattr(agent.sinks.order, "_REPLAYS", 2)
    for first in (1, 2):
        order.replay(ledger.epoch, first, 40)
    with pytest.raises(RequestError, match="too many replays"):
        order.replay(ledger.epoch, 3, 40)
    monkeypatch.setattr(ledger._writer, "ask", lambda *_, **__: None)
    with pytest.raises(RequestError, match="cannot be read"):
        order.replay(ledger.epoch, 4, 40)
