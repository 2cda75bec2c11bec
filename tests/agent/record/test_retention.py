"""What the ledger lets go of, and what it never does."""

import os
import sqlite3
import subprocess
import time
from contextlib import suppress

import pytest

import agent.record.retention
import agent.record.writer
from agent.part import State
from agent.record.ledger import Ledger
from agent.record.retention import AgeClock, Limits
from tests import records
from tests.records import Wants, settle, with_thumbnails

DAY_NS = 86_400 * 10**9
MB = 1_000_000
LONG = Limits(keep_ns=10_000 * DAY_NS, max_bytes=1000 * MB)
PICTURE = os.urandom(40_000)
NG = State.NG


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(agent.record.writer, "_SWEEP_S", 0.0)
    monkeypatch.setattr(agent.record.writer, "_STEP_S", 0.0)
    monkeypatch.setattr(agent.record.writer, "_RETRY_S", 0.02)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def opened(path, **options):
    return Ledger(path, **{"agent_id": "line1", "sinks": [Wants(with_thumbnails)]} | options)


def add(ledger, parts, state=State.OK, thumbnail=None, *, age_days=0.0):
    decided_ns = time.time_ns() - round(age_days * DAY_NS)
    records.add(ledger, *[state] * parts, thumbnail=thumbnail, decided_ns=decided_ns)


def waiting(ledger, limit=100):
    return ledger.waiting_for("mqtt", after=0, limit=limit)


def deliver(ledger):
    """Deliver all that waits, as a sink would."""
    assert ledger.flush(60)
    while found := waiting(ledger):
        settle(ledger, *found)
        assert ledger.flush(60)


def until(condition):
    end = time.monotonic() + 60
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
    with opened(path) as ledger:
        add(ledger, 120, age_days=40)
        add(ledger, 3, NG, age_days=40)
        add(ledger, 20, NG, age_days=20)
        deliver(ledger)
        add(ledger, 2, NG, age_days=40)  # waits for the broker
        add(ledger, 1)
        ledger.flush(60)
        counts = ledger.cameras()["main"].counts
    keep = list(range(124, 147))
    limits = Limits(keep_ns=30 * DAY_NS, max_bytes=1000 * MB)
    with opened(path, limits=limits) as ledger:
        until(lambda: len(ledger_rows(ledger)) == len(keep))
        assert ledger.cameras()["main"].counts == counts
        assert ledger.waiting("mqtt") == 2
        assert ledger.discarded == {"picture": (), "message": ()}
    assert sequences(path) == keep
    assert rows(path, "SELECT DISTINCT sequence FROM deliveries") == [(n,) for n in keep[:-1]]


def ledger_rows(ledger):
    """The rows of a ledger in use, read where it is allowed: in its owner thread."""
    return ledger._writer.read(
        lambda file: file.execute("SELECT sequence FROM triggers").fetchall()
    )


def test_a_content_is_known_as_long_as_a_camera_asks_for_it_also_when_its_part_is_gone(path):
    with opened(path) as ledger:
        old = time.time_ns() - 40 * DAY_NS
        for source in ("kept", "gone", None):
            part = records.begin(ledger, source=source)
            records.end(ledger, part, decided_ns=old)
        add(ledger, 1)
        ledger.flush(60)
    with opened(path, limits=Limits(keep_ns=30 * DAY_NS, max_bytes=1000 * MB)) as ledger:
        until(lambda: len(ledger_rows(ledger)) == 1)
        assert set(ledger.recorded(["kept", "gone", "new"])) == {"kept", "gone"}
        ledger.flush(60)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE sources SET asked_ns = ?", (time.time_ns() - 20 * DAY_NS,))
    connection.close()
    with opened(path) as ledger:
        assert set(ledger.recorded(["kept"])) == {"kept"}
        ledger.flush(60)
    with opened(path, limits=Limits(keep_ns=10 * DAY_NS, max_bytes=1000 * MB)) as ledger:
        remembered = "SELECT source FROM sources"
        until(
            lambda: len(ledger._writer.read(lambda file: file.execute(remembered).fetchall())) == 1
        )
        assert set(ledger.recorded(["kept", "gone"])) == {"kept"}


def test_the_count_goes_on_when_all_has_gone(path):
    limits = Limits(keep_ns=DAY_NS, max_bytes=1000 * MB)
    with opened(path, limits=limits) as ledger:
        add(ledger, 10, NG, age_days=9)
        deliver(ledger)
        until(lambda: len(ledger_rows(ledger)) == 1)
        newest = ledger.newest("mqtt")
    with opened(path, limits=limits) as ledger:
        assert ledger.newest("mqtt") == newest
        assert ledger.total() == sum(ledger.cameras()["main"].counts.values()) == 10
        assert ledger.next_sequence("main") == 11


def test_a_file_that_grows_too_large_loses_its_oldest_delivered_parts(path):
    limits = Limits(keep_ns=10_000 * DAY_NS, max_bytes=8 * MB)
    with opened(path, limits=limits) as ledger:
        for _ in range(40):
            add(ledger, 20, NG, PICTURE)
            deliver(ledger)
        assert ledger.discarded == {"picture": (), "message": ()}
        assert ledger.lost == ()
        assert ledger.total() == 800
    kept = sequences(path)
    assert kept == list(range(kept[0], 801))
    assert kept[0] > 100
    assert path.stat().st_size <= 8 * MB


def test_undelivered_pictures_go_before_alarms_and_each_is_named(path):
    limits = Limits(keep_ns=10_000 * DAY_NS, max_bytes=8 * MB)
    with opened(path, limits=limits) as ledger:
        for _ in range(20):
            add(ledger, 20, NG, PICTURE)
            assert ledger.flush(60)
        until(lambda: len(ledger.discarded["picture"]) == 1 and ledger.is_discarding is False)
        pictures = ledger.discarded["picture"]
        assert ledger.discarded["message"] == ()
        gone = pictures[0][1]
        assert pictures == ((1, gone),)
        assert ledger.waiting("mqtt") == 800 - gone
        deliver(ledger)
        until(lambda: not ledger.is_discarding)
    assert path.stat().st_size <= 8 * MB
    with opened(path, limits=limits) as ledger:
        assert ledger.discarded["picture"] == pictures


def test_the_rest_goes_when_no_picture_is_left(path, monkeypatch):
    monkeypatch.setattr(agent.record.retention, "_DELIVERIES", 500)
    limits = Limits(keep_ns=10_000 * DAY_NS, max_bytes=500_000)
    with opened(path, limits=limits) as ledger:
        add(ledger, 5, NG)
        ledger.flush(60)
        held = waiting(ledger, limit=5)  # a sink has these in hand
        for _ in range(10):
            add(ledger, 200, NG)
            until(lambda: ledger.flush(0.1))
        until(lambda: ledger.discarded["message"] and not ledger.is_discarding)
        assert waiting(ledger, limit=5) == held
        ((first, last),) = ledger.discarded["message"]
        assert first == 6
        assert ledger.waiting("mqtt") == 2005 - (last - first + 1)
        assert ledger.total() == sum(ledger.cameras()["main"].counts.values()) == 2005


def test_a_disk_full_of_other_things_takes_new_parts_for_old_ones(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        path = disk / "ledger.sqlite"
        with opened(path, limits=LONG) as ledger:
            add(ledger, 60, NG, PICTURE)
            deliver(ledger)
            until((disk / "ledger.sqlite.reserve").exists)
            with suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
                while other.write(bytes(4096)) == 4096:
                    pass
            for _ in range(10):
                add(ledger, 20, NG, PICTURE)
                until(lambda: ledger.flush(0.1))
                deliver(ledger)
            assert ledger.lost == ()
            assert ledger.discarded == {"picture": (), "message": ()}
        (disk / "other").unlink()
        kept = sequences(path)
        assert kept == list(range(kept[0], 261))
        assert kept[0] > 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_wrong_clock_at_the_start_removes_nothing(path):
    limits = Limits(keep_ns=30 * DAY_NS, max_bytes=1000 * MB)
    with opened(path, limits=limits) as ledger:
        add(ledger, 20)
        ledger.flush(60)
    for _ in range(3):  # started again and again by the system
        ledger = opened(path, limits=limits)
        ledger._writer.ages = AgeClock(lambda: time.time_ns() + 60 * DAY_NS)
        with ledger:
            add(ledger, 1)
            ledger.flush(60)
            time.sleep(0.1)  # some sweeps
            assert ledger.ages.now_ns() < time.time_ns() + DAY_NS
    assert len(sequences(path)) == 23
