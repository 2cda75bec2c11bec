"""The feed: readers that stall, die or are slow cost the ledger nothing and hear of every gap."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.part import State
from agent.record import feed
from agent.record.feed import START, FeedClient, Gap, cursor, follow
from agent.record.ledger import Ledger
from agent.record.retention import Limits
from tests.records import Wants, add, begin, end, inspected, with_thumbnails

PICTURE = os.urandom(1000)


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, agent_id="line1", sinks=[Wants(with_thumbnails)]) as opened:
        yield opened


@contextmanager
def child(ledger, *, room=1000):
    """The two ends of a feed over a socket: the server, and what a child would hold."""
    ours, theirs = socket.socketpair()
    with ledger.feed.serve(ours, room=room) as server, theirs:
        yield server, FeedClient(theirs, room=room)


def numbers(events, count):
    """The next so many sequences."""
    return [event.sequence for _, event in zip(range(count), events, strict=False)]


def recorded(ledger, count, state=State.OK):
    add(ledger, *[state] * count)
    assert ledger.flush(60)


def test_a_reader_is_told_of_each_part_as_it_is_recorded(ledger):
    with ledger.feed.subscribe() as reader:
        assert reader.next(0) is None
        part = inspected(begin(ledger))
        end(ledger, part, State.NG, PICTURE)
        ledger.flush(60)
        event = reader.next(10)
        assert (event.sequence, event.state, event.score) == (1, State.NG, 2.5)
        assert event.passes == part.inspection.passes
        assert event.regions == part.inspection.regions
        assert (event.has_thumbnail, event.thumbnail) == (True, None)
        assert reader.thumbnail(event.epoch, event.sequence) == PICTURE
        assert reader.thumbnail(event.epoch, 2) is None
        assert reader.rows_after(START) == [event]
        assert reader.rows_after(cursor(event)) == []


def test_a_child_gets_the_same(ledger):
    with child(ledger) as (_, reader):
        end(ledger, inspected(begin(ledger)), State.NG, PICTURE)
        recorded(ledger, 3)
        with ledger.feed.subscribe() as here:
            rows = here.rows_after(START)
        assert [reader.next(10) for _ in range(4)] == rows
        assert reader.rows_after(cursor(rows[0]), limit=2) == rows[1:3]
        assert reader.thumbnail(rows[0].epoch, 1) == PICTURE
        assert reader.thumbnail(rows[0].epoch, 2) is None
        assert reader.next(0.01) is None


def test_rows_come_in_the_order_of_recording(ledger):
    parts = [begin(ledger) for _ in range(4)]
    for n in (2, 0, 3, 1):
        end(ledger, parts[n])
    ledger.flush(60)
    with ledger.feed.subscribe() as reader:
        rows = reader.rows_after(START)
        assert [row.sequence for row in rows] == [3, 1, 4, 2]
        assert [row.sequence for row in reader.rows_after(cursor(rows[1]))] == [4, 2]


def test_one_who_falls_behind_is_told_the_gap_and_catches_up(ledger):
    with ledger.feed.subscribe(room=10) as reader:
        recorded(ledger, 30)
        heard = [reader.next(10) for _ in range(11)]
        assert [event.sequence for event in heard[:10]] == list(range(1, 11))
        assert heard[10] == Gap(after=(ledger.epoch, 10))
        assert [row.sequence for row in reader.rows_after(heard[10].after)] == list(range(11, 31))
        recorded(ledger, 1)
        assert reader.next(10).sequence == 31


def test_no_more_than_500_rows_come_at_once(ledger):
    recorded(ledger, 620)
    with ledger.feed.subscribe() as reader:
        assert len(reader.rows_after(START, limit=10_000)) == 500


@pytest.mark.parametrize("is_child", [False, True])
def test_nothing_is_lost_over_a_catch_up_while_parts_come(ledger, is_child):
    """A reader with room for five, behind a line that records as fast as it can."""
    over = threading.Event()
    count = 3000

    def line():
        for _ in range(count // 100):
            recorded(ledger, 100)
        over.set()

    def heard(reader):
        return numbers(follow(reader), count)

    thread = threading.Thread(target=line)
    thread.start()
    try:
        if is_child:
            with child(ledger, room=5) as (_, reader):
                found = heard(reader)
        else:
            with ledger.feed.subscribe(room=5) as reader:
                found = heard(reader)
    finally:
        thread.join()
    assert found == list(range(1, count + 1))


def test_who_catches_up_rests_longer_than_its_questions_take(ledger, monkeypatch):
    recorded(ledger, 1200)
    now = iter(range(100))
    monkeypatch.setattr(feed, "perf_counter", lambda: next(now) * 0.01)
    rests = []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            rests.append(timeout)
            return False

    with ledger.feed.subscribe() as reader:
        assert numbers(follow(reader, stop=Stop()), 1200) == list(range(1, 1201))
    assert rests == pytest.approx([0.2, 0.2])


def test_a_reader_goes_on_where_it_was(ledger):
    recorded(ledger, 20)
    with ledger.feed.subscribe() as reader:
        assert numbers(follow(reader, (ledger.epoch, 12)), 8) == list(range(13, 21))


def test_who_asks_after_a_part_that_is_gone_gets_what_there_is(tmp_path, monkeypatch, eventually):
    monkeypatch.setattr("agent.record.writer._SWEEP_S", 0.0)
    limits = Limits(keep_ns=10**15, max_bytes=10**9)
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1", limits=limits) as ledger:
        add(ledger, *[State.OK] * 10, decided_ns=0)
        add(ledger, *[State.OK] * 5)
        ledger.flush(60)
        with ledger.feed.subscribe() as reader:
            eventually(lambda: reader.rows_after(START)[0].sequence == 11)
            rows = reader.rows_after((ledger.epoch, 5))
            assert [row.sequence for row in rows] == list(range(11, 16))
            assert reader.rows_after(("another", 5)) == rows


def test_a_child_that_stalls_holds_up_nobody_and_hears_of_the_gap(ledger):
    with child(ledger, room=10) as (server, reader):
        recorded(ledger, 3000)  # more than its socket and its buffer take
        assert server.is_alive
        found, gaps = 0, 0
        while (item := reader.next(0.5)) is not None:
            gaps += isinstance(item, Gap)
            found += not isinstance(item, Gap)
        assert gaps
        assert found < 3000
        assert numbers(follow(reader), 3000) == list(range(1, 3001))


DIES = """
import socket, sys
from agent.record.feed import FeedClient, follow
reader = FeedClient(socket.socket(fileno=int(sys.argv[1])))
for event in follow(reader):
    print(event.sequence, flush=True)
"""


def test_a_child_that_is_killed_is_left_and_costs_nothing(ledger, eventually):
    ours, theirs = socket.socketpair()
    with ledger.feed.serve(ours) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", DIES, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            cwd=Path.cwd(),
            text=True,
        )
        theirs.close()
        recorded(ledger, 5)
        assert [process.stdout.readline() for _ in range(5)] == [f"{n}\n" for n in range(1, 6)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        eventually(lambda: recorded(ledger, 10) or not server.is_alive)
        eventually(lambda: not ledger.feed.is_heard)


def test_a_child_that_sends_rubbish_is_left(ledger, eventually):
    ours, theirs = socket.socketpair()
    with ledger.feed.serve(ours) as server, theirs:
        theirs.sendall(b"\xff" * 100)
        eventually(lambda: not server.is_alive)
        recorded(ledger, 5)


def test_the_feed_ends_with_the_ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", agent_id="line1") as ledger:
        recorded(ledger, 3)
        reader = ledger.feed.subscribe()
        reader.__enter__()
        events = follow(reader)
        assert numbers(events, 3) == [1, 2, 3]
    assert list(events) == []
    assert reader.is_closed
