"""What the ledger lets go of, and what it never does."""

import os
import sqlite3
import subprocess
import time
from contextlib import suppress

import pytest

import agent.ledger
from agent.ledger import Ledger
from agent.messages import Message
from agent.part import State
from agent.retention import Limits
from agent.verdict import Trigger, Verdict

DAY_NS = 86_400 * 10**9
MB = 1_000_000
LONG = Limits(keep_ns=10_000 * DAY_NS, max_bytes=1000 * MB)
PICTURE = os.urandom(40_000)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(agent.ledger, "_SWEEP_S", 0.0)
    monkeypatch.setattr(agent.ledger, "_STEP_S", 0.0)
    monkeypatch.setattr(agent.ledger, "_RETRY_S", 0.02)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def add(ledger, parts, *messages, age_days=0.0):
    for _ in range(parts):
        trigger = Trigger(
            sequence=ledger.next_sequence("main"), camera="main", part_id="", triggered_ns=0
        )
        ledger.expect(trigger)
        verdict = Verdict(
            trigger=trigger,
            state=State.NG if messages else State.OK,
            decided_ns=time.time_ns() - round(age_days * DAY_NS),
            threshold=1.0,
        )
        ledger.record(verdict, messages)


def alarm():
    return Message(topic="t/alarm", payload=b"{}")


def picture():
    return Message(topic="t/thumbnail", payload=PICTURE, content_type="image/jpeg")


def deliver(ledger):
    """Deliver all that waits, as the sender would."""
    assert ledger.flush()
    while found := ledger.pending_messages(after=0, limit=100):
        ledger.mark_delivered([one.id for one in found])
        assert ledger.flush()


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def rows(path, query):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def sequences(path):
    return [row[0] for row in rows(path, "SELECT sequence FROM triggers ORDER BY sequence")]


def test_old_parts_go_with_their_messages_unless_these_still_wait(path):
    with Ledger(path, agent_id="line1") as ledger:
        add(ledger, 120, age_days=40)
        add(ledger, 3, alarm(), age_days=40)
        add(ledger, 20, alarm(), age_days=20)
        deliver(ledger)
        add(ledger, 2, alarm(), age_days=40)  # waits for the broker
        add(ledger, 1)
        ledger.flush()
        counts = ledger.accounts()["main"].counts
    keep = list(range(124, 147))
    limits = Limits(keep_ns=30 * DAY_NS, max_bytes=1000 * MB)
    with Ledger(path, agent_id="line1", limits=limits) as ledger:
        until(lambda: len(ledger_rows(ledger)) == len(keep))
        assert ledger.accounts()["main"].counts == counts
        assert ledger.pending == 2
        assert ledger.let_go == {"picture": (), "message": ()}
    assert sequences(path) == keep
    assert rows(path, "SELECT DISTINCT sequence FROM outbox") == [(n,) for n in keep[:-1]]


def ledger_rows(ledger):
    """The rows of a ledger in use, read where it is allowed: in its owner thread."""
    done = []
    ledger.listen(lambda: done.append(None))
    found = []
    with ledger._changed:
        ledger._reads.append(
            lambda: found.append(
                ledger._connection.execute("SELECT sequence FROM triggers").fetchall()
            )
        )
        ledger._changed.notify_all()
    until(lambda: found)
    return found[0]


def test_the_count_goes_on_when_all_has_gone(path):
    limits = Limits(keep_ns=DAY_NS, max_bytes=1000 * MB)
    with Ledger(path, agent_id="line1", limits=limits) as ledger:
        add(ledger, 10, alarm(), age_days=9)
        deliver(ledger)
        until(lambda: len(ledger_rows(ledger)) == 1)
        newest = ledger.newest_message
    with Ledger(path, agent_id="line1", limits=limits) as ledger:
        assert ledger.newest_message == newest
        assert ledger.total() == sum(ledger.accounts()["main"].counts.values()) == 10
        assert ledger.next_sequence("main") == 11


def test_a_file_that_grows_too_large_loses_its_oldest_delivered_parts(path):
    limits = Limits(keep_ns=10_000 * DAY_NS, max_bytes=8 * MB)
    with Ledger(path, agent_id="line1", limits=limits) as ledger:
        for _ in range(40):
            add(ledger, 20, alarm(), picture())
            deliver(ledger)
        assert ledger.let_go == {"picture": (), "message": ()}
        assert ledger.lost == ()
        assert ledger.total() == 800
    kept = sequences(path)
    assert kept == list(range(kept[0], 801))
    assert kept[0] > 100
    assert path.stat().st_size <= 8 * MB


def test_undelivered_pictures_go_before_alarms_and_each_is_named(path):
    limits = Limits(keep_ns=10_000 * DAY_NS, max_bytes=8 * MB)
    with Ledger(path, agent_id="line1", limits=limits) as ledger:
        for _ in range(20):
            add(ledger, 20, alarm(), picture())
            assert ledger.flush()
        until(lambda: len(ledger.let_go["picture"]) == 1 and ledger.is_letting_go is False)
        pictures = ledger.let_go["picture"]
        assert ledger.let_go["message"] == ()
        gone = pictures[0][1]
        assert pictures == ((1, gone),)
        assert ledger.pending == 800 - gone
        deliver(ledger)
        until(lambda: not ledger.is_letting_go)
    assert path.stat().st_size <= 8 * MB
    with Ledger(path, agent_id="line1", limits=limits) as ledger:
        assert ledger.let_go["picture"] == pictures


def test_alarms_go_when_nothing_else_is_left(path):
    limits = Limits(keep_ns=10_000 * DAY_NS, max_bytes=4 * MB)
    heavy = Message(topic="t/alarm", payload=b"x" * 20_000)
    with Ledger(path, agent_id="line1", limits=limits) as ledger:
        add(ledger, 5, heavy)
        ledger.flush()
        held = ledger.pending_messages(after=0, limit=5)  # the sender has these in hand
        for _ in range(20):
            add(ledger, 20, heavy)
            assert ledger.flush()
        until(lambda: ledger.let_go["message"] and not ledger.is_letting_go)
        assert ledger.pending_messages(after=0, limit=5) == held
        ((first, last),) = ledger.let_go["message"]
        assert first == 6
        assert ledger.pending == 405 - (last - first + 1)
        assert ledger.total() == sum(ledger.accounts()["main"].counts.values()) == 405


def test_a_disk_full_of_other_things_takes_new_parts_for_old_ones(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        path = disk / "ledger.sqlite"
        with Ledger(path, agent_id="line1", limits=LONG) as ledger:
            add(ledger, 60, alarm(), picture())
            deliver(ledger)
            until((disk / "ledger.sqlite.reserve").exists)
            with suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
                while other.write(bytes(4096)) == 4096:
                    pass
            for _ in range(10):
                add(ledger, 20, alarm(), picture())
                until(lambda: ledger.flush(0.1))
                deliver(ledger)
            assert ledger.lost == ()
            assert ledger.let_go == {"picture": (), "message": ()}
        (disk / "other").unlink()
        kept = sequences(path)
        assert kept == list(range(kept[0], 261))
        assert kept[0] > 1
    finally:
        subprocess.run(["umount", disk], check=True)
