"""In which order the sender empties the outbox."""

import pytest

import agent.outbox
from agent.ledger import Ledger
from agent.messages import Message
from agent.outbox import Outbox
from agent.part import State
from agent.requests import RequestError
from agent.verdict import Trigger, Verdict


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as opened:
        yield opened


def add(ledger, count):
    for _ in range(count):
        trigger = Trigger(
            sequence=ledger.next_sequence("main"), camera="main", part_id="", triggered_ns=0
        )
        verdict = Verdict(trigger=trigger, state=State.NG, decided_ns=0, threshold=1.0)
        ledger.record(verdict, [Message(topic="t", payload=b"%d" % trigger.sequence)])
    assert ledger.flush()


def take(outbox, count):
    """The next messages by their number; a star at what is marked as resent."""
    found = [outbox.next() for _ in range(count)]
    return [
        f"{one.id}*" if ("resent", "true") in one.message.properties else f"{one.id}"
        for one in found
    ]


def numbers(first, last, star=""):
    return [f"{n}{star}" for n in range(first, last + 1)]


def test_what_is_recorded_now_overtakes_the_backlog(ledger):
    outbox = Outbox(ledger)
    add(ledger, 300)  # the broker is away
    outbox.connected([])
    assert take(outbox, 3) == numbers(1, 3)
    add(ledger, 250)
    assert take(outbox, 250) == numbers(301, 550)
    assert take(outbox, 10) == numbers(4, 13)
    add(ledger, 1)
    assert take(outbox, 2) == ["551", "14"]
    assert outbox.has_more()
    assert take(outbox, 286) == numbers(15, 300)
    assert not outbox.has_more()
    assert outbox.next() is None


def test_what_an_earlier_run_left_may_have_come_before(ledger):
    add(ledger, 2)
    outbox = Outbox(ledger)
    add(ledger, 2)
    outbox.connected([])
    assert take(outbox, 4) == ["1*", "2*", "3", "4"]


def test_what_was_not_acknowledged_goes_first_and_says_so(ledger):
    outbox = Outbox(ledger)
    add(ledger, 150)
    outbox.connected([])
    sent = [outbox.next() for _ in range(4)]
    for one in (sent[0], sent[2]):
        ledger.mark_delivered([one.id])
        outbox.settled(one.id)
    add(ledger, 5)
    live = outbox.next()
    outbox.connected([live, sent[3], sent[1]])
    add(ledger, 1)
    assert take(outbox, 4) == ["2*", "4*", "151*", "156"]
    # The connection is lost once more, before any of these is acknowledged.
    outbox.connected([sent[1]])
    assert take(outbox, 1) == ["2*"]
    rest = take(outbox, 150)
    assert rest == numbers(5, 150) + numbers(152, 155)
    assert outbox.next() is None


def test_everything_comes_once_whatever_happens_to_the_connection(ledger):
    outbox = Outbox(ledger)
    taken = []
    add(ledger, 120)
    for _ in range(8):
        outbox.connected([])
        add(ledger, 30)
        for _ in range(25):
            one = outbox.next()
            taken.append(one.id)
            ledger.mark_delivered([one.id])
            outbox.settled(one.id)
    while (one := outbox.next()) is not None:
        taken.append(one.id)
        outbox.settled(one.id)
    assert sorted(taken) == list(range(1, 361))
    assert not outbox.has_more()


def test_a_replay_comes_when_nothing_else_waits(ledger):
    outbox = Outbox(ledger)
    add(ledger, 60)
    outbox.connected([])
    while (one := outbox.next()) is not None:
        ledger.mark_delivered([one.id])
        outbox.settled(one.id)
    assert ledger.flush()
    assert outbox.replay(ledger.epoch, 5, 50) == 46
    assert outbox.replay("another", 5, 50) == 0
    assert outbox.has_more()
    assert take(outbox, 1) == ["5*"]
    add(ledger, 3)
    assert take(outbox, 4) == ["61", "62", "63", "6*"]
    assert take(outbox, 44) == numbers(7, 50, "*")
    assert outbox.next() is None
    assert not outbox.has_more()
    assert ledger.pending == 46 + 3


def test_a_replay_tries_again_what_was_refused(ledger):
    outbox = Outbox(ledger)
    add(ledger, 2)
    outbox.connected([])
    for number in (1, 2):
        outbox.next()
        outbox.settled(number)
        ledger.mark_refused(number, 0x87)
    assert ledger.flush()
    assert (ledger.pending, ledger.refused) == (0, 2)
    assert outbox.next() is None
    assert outbox.replay(ledger.epoch, 1, 9) == 2
    assert (ledger.pending, ledger.refused) == (2, 0)
    assert take(outbox, 2) == ["1*", "2*"]


def delivered(ledger, count):
    """An outbox whose messages have all been sent and acknowledged."""
    outbox = Outbox(ledger)
    add(ledger, count)
    outbox.connected([])
    while (one := outbox.next()) is not None:
        ledger.mark_delivered([one.id])
        outbox.settled(one.id)
    assert ledger.flush()
    return outbox


def test_a_replay_ends_at_the_newest_part_and_does_not_run_after_the_line(ledger):
    outbox = delivered(ledger, 30)
    assert outbox.replay(ledger.epoch, 6, 1 << 62) == 25
    for n in range(6, 31):
        assert take(outbox, 1) == [f"{n}*"]
        add(ledger, 1)
        live = outbox.next()
        assert live.id == 25 + n
        ledger.mark_delivered([live.id])
        outbox.settled(live.id)
    assert outbox.next() is None


def test_the_same_replay_asked_for_twice_comes_once(ledger):
    outbox = delivered(ledger, 60)
    assert outbox.replay(ledger.epoch, 1, 30) == 30  # under way from now on
    assert outbox.replay(ledger.epoch, 31, 60) == 30
    assert outbox.replay(ledger.epoch, 31, 60) == 30
    assert take(outbox, 60) == numbers(1, 60, "*")
    assert outbox.next() is None


def test_a_replay_that_cannot_be_is_refused_and_not_said_to_be_empty(ledger, monkeypatch):
    outbox = delivered(ledger, 40)
    monkeypatch.setattr(agent.outbox, "_REPLAYS", 2)
    for first in (1, 2):
        outbox.replay(ledger.epoch, first, 40)
    with pytest.raises(RequestError, match="too many replays"):
        outbox.replay(ledger.epoch, 3, 40)
    monkeypatch.setattr(ledger, "_ask", lambda _work: None)
    with pytest.raises(RequestError, match="cannot be read"):
        outbox.replay(ledger.epoch, 4, 40)
