import itertools
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agent.ledger
from agent.cameras.settings import UNNAMED
from agent.ledger import Account, Ledger
from agent.ledger_file import _SCHEMAS, ABANDONED, with_span, write_tally
from agent.messages import Message, chained
from agent.part import State
from agent.verdict import Trigger, Verdict
from engine.errors import ConfigurationError
from engine.frame import Box, Frame, Inspection, Pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte; gives its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(_mount(folder, "size=1m"), check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def _mount(folder, options):
    return ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]


def begin(ledger, part_id="part", camera="main"):
    trigger = Trigger(
        sequence=ledger.next_sequence(camera),
        camera=camera,
        part_id=part_id,
        triggered_ns=1,
        deadline_ns=2,
    )
    ledger.expect(trigger)
    return trigger


def end(ledger, trigger, state=State.OK, *messages, **values):
    verdict = Verdict(
        trigger=trigger, state=state, decided_ns=3, threshold=1.5, **{"reason": "", **values}
    )
    return ledger.record(verdict, messages)


def message(payload=b"{}"):
    return Message(topic="atac/line1/alarm", payload=payload, properties=(("id", "x"),))


def rows(path, query="SELECT sequence, state FROM triggers ORDER BY sequence"):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def total(ledger):
    return sum(sum(account.counts.values()) for account in ledger.accounts().values())


def test_every_trigger_ends_in_one_state_and_the_states_sum_to_the_triggers(path):
    rng = random.Random(1)
    states = [rng.choice(list(State)) for _ in range(200)]
    with Ledger(path, agent_id="line1") as ledger:
        for state in states:
            assert end(ledger, begin(ledger), state)
        assert ledger.flush()
        assert ledger.accounts()["main"].counts == {state: states.count(state) for state in State}
        assert ledger.total() == total(ledger) == 200
    assert rows(path) == [(n, state.value) for n, state in enumerate(states, 1)]


def test_sequences_go_on_without_a_gap_and_so_do_the_counts(path):
    epochs = set()
    for run in range(3):
        with Ledger(path, agent_id="line1") as ledger:
            epochs.add(ledger.epoch)
            for n in range(1, 4):
                trigger = begin(ledger)
                assert trigger.sequence == 3 * run + n
                end(ledger, trigger, State.NG, message())
    with Ledger(path, agent_id="line1") as ledger:
        assert ledger.accounts()["main"].counts[State.NG] == ledger.total() == ledger.pending == 9
    assert len(epochs) == 1


def test_another_agent_id_counts_for_itself(path):
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger))
        first = ledger.epoch
    with Ledger(path, agent_id="line2") as ledger:
        assert ledger.epoch != first
        assert ledger.total() == 0
    with Ledger(path, agent_id="line1") as ledger:
        assert ledger.epoch == first
        assert ledger.total() == 1


def test_a_row_holds_all_that_was_found(path):
    found = Inspection(
        score=2.5,
        deviation=2.25,
        passes=(
            Pass(box=Box.whole(64, 48), score=2.0, view_s=0.1, network_s=0.2),
            Pass(box=Box(left=1, top=2, right=30, bottom=40), score=3.0, view_s=0.4, network_s=0.5),
        ),
        attention=np.zeros((2, 2), np.float32),
        score_map=np.zeros((2, 2), np.float32),
        attention_s=0.3,
    )
    frame = Frame(pixels=np.zeros((48, 64), np.uint8), number=7, captured_ns=11)
    with Ledger(path, agent_id="line1", bundle_id="b", calibration_id="c") as ledger:
        end(ledger, begin(ledger, "part 9"), State.NG, frame=frame, inspection=found)
    assert rows(path, "SELECT * FROM triggers JOIN runs USING (run, epoch)")[0][1:-3] == (
        1, 1, "part 9", 1, 2, "NG", 3, "", 1.5, 7, 11, 64, 48,
        2.5, 2.0, 3.0, 2.25, 1, 2, 30, 40, 1, 0.1, 0.2, 0.3, 0.4, 0.5, None, "main",
    )  # fmt: skip
    assert rows(path, "SELECT bundle_id, calibration_id FROM runs") == [("b", "c")]


def test_the_first_verdict_counts(path):
    with Ledger(path, agent_id="line1") as ledger:
        trigger = begin(ledger)
        assert end(ledger, trigger, State.TIMEOUT)
        assert not end(ledger, trigger, State.OK, message())
        assert total(ledger) == 1
    assert rows(path) == [(1, "TIMEOUT")]
    assert rows(path, "SELECT count(*) FROM outbox") == [(0,)]


def test_a_trigger_that_nobody_began_is_a_bug(path):
    with Ledger(path, agent_id="line1") as ledger:
        stranger = Trigger(sequence=1, camera="main", part_id="", triggered_ns=0)
        with pytest.raises(ValueError, match="was not given"):
            ledger.expect(stranger)
        with pytest.raises(ValueError, match="was not given"):
            end(ledger, stranger)


def test_a_part_id_that_is_no_unicode_does_no_harm(path):
    """A file name in an older encoding, as Python gives it."""
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger, b"part-\xe9".decode(errors="surrogateescape")))
        assert ledger.flush()
    assert rows(path, "SELECT part_id FROM triggers") == [("part-?",)]


def test_triggers_begun_before_a_stop_end_as_errors_and_are_announced(path):
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger))
        begin(ledger, "left open", "side")
    heard = []

    def announce(verdict, epoch):
        heard.append((verdict, epoch))
        return [message(b"late")]

    with Ledger(path, agent_id="line1", announce=announce) as ledger:
        assert ledger.accounts()["side"].counts[State.ERROR] == 1
        assert ledger.total() == total(ledger) == 2
        assert [one.message.payload for one in ledger.pending_messages(after=0, limit=9)] == [
            b"late"
        ]
        assert [epoch for _, epoch in heard] == [ledger.epoch]
    verdict = heard[0][0]
    assert verdict.trigger == Trigger(
        sequence=2, camera="side", part_id="left open", triggered_ns=1, deadline_ns=2
    )
    assert (verdict.state, verdict.reason) == (State.ERROR, ABANDONED)
    assert math.isnan(verdict.threshold)
    with Ledger(path, agent_id="line1", announce=announce) as ledger:
        assert ledger.total() == 2
        assert ledger.accounts()["side"].triggers == 1
    assert len(heard) == 1


KILLED = """
import itertools, sys, time
from pathlib import Path
from agent.ledger import Ledger
from agent.messages import Message, chained
from agent.part import State
from agent.verdict import Trigger, Verdict

with Ledger(Path(sys.argv[1]), agent_id="line1") as ledger:
    for n in itertools.count():
        sequence = ledger.next_sequence("main")
        trigger = Trigger(sequence=sequence, camera="main", part_id="", triggered_ns=0)
        ledger.expect(trigger)
        if n % 10 == 9:  # now and then look what is safe
            ledger.flush()
            print(trigger.sequence, flush=True)
        verdict = Verdict(trigger=trigger, state=State.NG, decided_ns=0, threshold=1.0)
        ledger.record(verdict, [Message(topic="t", payload=b"x" * 500)])
"""


def test_kill_9_loses_nothing_that_was_committed(path):
    safe = 0
    for kill in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, cwd=Path.cwd(), text=True
        )
        for _ in range(3 + kill):
            safe = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        safe = max([safe, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        with Ledger(path, agent_id="line1") as ledger:
            last = ledger.total()
            assert last >= safe
            assert total(ledger) == last
            errors = ledger.accounts()["main"].counts[State.ERROR]
        assert errors <= kill + 1
        found = rows(path)
        assert [sequence for sequence, _ in found] == list(range(1, last + 1))
        assert all(state is not None for _, state in found)
        verdicts = [sequence for sequence, state in found if state == "NG"]
        assert rows(path, "SELECT sequence FROM outbox ORDER BY id") == [(n,) for n in verdicts]


def test_the_outbox_gives_messages_in_order_until_they_are_marked(path):
    with Ledger(path, agent_id="line1") as ledger:
        for n in range(5):
            end(ledger, begin(ledger), State.NG, message(b"%da" % n), message(b"%db" % n))
        ledger.flush()
        everything = ledger.pending_messages(after=0, limit=100)
        assert [one.message.payload for one in everything] == [
            b"%d%c" % (n, letter) for n in range(5) for letter in b"ab"
        ]
        assert everything[0].message == chained(message(b"0a"), 0)
        assert ledger.newest_message == everything[-1].id
        assert ledger.pending_messages(after=everything[2].id, limit=2) == everything[3:5]
        ledger.mark_delivered([everything[0].id, everything[1].id])
        ledger.mark_delivered([everything[0].id])
        ledger.mark_refused(everything[2].id, 0x87)
        ledger.flush()
        assert (ledger.pending, ledger.refused) == (7, 1)
        assert ledger.pending_messages(after=0, limit=100) == everything[3:]
    with Ledger(path, agent_id="line1") as ledger:
        assert (ledger.pending, ledger.refused) == (7, 1)
        assert ledger.pending_messages(after=0, limit=100) == everything[3:]
    assert rows(path, "SELECT refused FROM outbox WHERE refused IS NOT NULL") == [(0x87,)]


def test_a_listener_hears_of_new_messages_only(path):
    heard = threading.Semaphore(0)
    with Ledger(path, agent_id="line1") as ledger:
        ledger.listen(heard.release)
        end(ledger, begin(ledger))
        ledger.flush()
        assert not heard.acquire(blocking=False)
        end(ledger, begin(ledger), State.NG, message())
        assert heard.acquire(timeout=10)


def test_one_file_has_one_agent(path):
    with (
        Ledger(path, agent_id="line1"),
        pytest.raises(ConfigurationError, match="another agent is writing"),
        Ledger(path, agent_id="line2"),
    ):
        pass
    with Ledger(path, agent_id="line2") as ledger:
        assert ledger.trouble is None


@pytest.mark.parametrize(
    ("place", "reason"),
    [(".", "is a folder"), ("file/ledger", "its folder cannot be made")],
)
def test_a_place_where_no_ledger_can_be(tmp_path, place, reason):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigurationError, match=reason),
        Ledger(tmp_path / place, agent_id="line1"),
    ):
        pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [("PRAGMA user_version = 99", "newer atac-agent"), ("CREATE TABLE x (y)", "another program")],
)
def test_a_file_that_is_not_ours_to_write(path, make, reason):
    connection = sqlite3.connect(path)
    connection.execute(make)
    connection.close()
    with pytest.raises(ConfigurationError, match=reason), Ledger(path, agent_id="line1"):
        pass


def test_a_damaged_file_is_moved_aside_and_its_readable_rows_are_kept(path, caplog):
    with Ledger(path, agent_id="line1") as ledger:
        for _ in range(300):
            end(ledger, begin(ledger), State.NG, message(b"x" * 2000))
        before = ledger.epoch
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 3 * 4096] = os.urandom(3 * 4096)
    path.write_bytes(data)
    with Ledger(path, agent_id="line1") as ledger:
        assert ledger.epoch != before
        assert ledger.total() == 0
        kept = len(ledger.pending_messages(after=0, limit=1000))
        assert 200 < kept < 300
        end(ledger, begin(ledger))
        assert ledger.flush()
    assert [old.read_bytes() for old in path.parent.glob("*.damaged-*Z")] == [bytes(data)]
    assert "was damaged: moved to" in caplog.text


def older(path, version, parts):
    """A ledger as it was when each message's payload lay in its row; half of it is delivered."""
    connection = sqlite3.connect(path)
    for statement in ";\n".join(_SCHEMAS[:version]).split(";\n"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("INSERT INTO epochs VALUES ('0123456789ab', 'line1', 1)")
    for n in range(1, parts + 1):
        connection.execute(
            "INSERT INTO triggers (epoch, sequence, run, part_id, triggered_ns, state, decided_ns)"
            " VALUES ('0123456789ab', ?, 1, 'part', 1, 'NG', 2)",
            (n,),
        )
        connection.execute(
            "INSERT INTO outbox (epoch, sequence, topic, payload, qos, retain, content_type,"
            " properties, delivered_ns)"
            " VALUES ('0123456789ab', ?, 't/alarm', ?, 1, 0, '', '[]', ?)",
            (n, b"%d" % n * 1000, 3 if n <= parts // 2 else None),
        )
    connection.execute("DELETE FROM outbox WHERE id = ?", (parts,))
    connection.execute("INSERT INTO tally VALUES ('0123456789ab', 'NG', ?)", (parts,))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("version", [1, 4])
def test_a_file_of_an_older_version_is_brought_up_to_date(path, version):
    older(path, version, 10)
    with Ledger(path, agent_id="line1") as ledger:
        assert ledger.epoch == "0123456789ab"
        assert ledger.pending == 4
        found = ledger.pending_messages(after=0, limit=99)
        assert [one.message.payload for one in found] == [b"%d" % n * 1000 for n in range(6, 10)]
        end(ledger, begin(ledger), State.NG, replace(message(), topic="t/alarm"))
        ledger.flush()
        (new,) = ledger.pending_messages(after=10, limit=99)
        assert new.id == 11  # the id of the message that was removed does not come again
        assert new.message.properties == (("id", "x"), ("previous", "9"))
        # All before had one camera, without a name.
        counts = dict.fromkeys(State, 0) | {State.NG: 11}
        assert ledger.accounts() == {UNNAMED: Account(counts=counts)}


@pytest.mark.parametrize("version", [1, 4])
def test_a_damaged_file_of_an_older_version_is_rescued(path, version):
    older(path, version, 300)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 3 * 4096] = os.urandom(3 * 4096)
    path.write_bytes(data)
    with Ledger(path, agent_id="line1") as ledger:
        found = ledger.pending_messages(after=0, limit=999)
        assert 100 < len(found) < 150
        assert len(found) == ledger.pending
        assert all(one.message.payload == b"%d" % one.id * 1000 for one in found)


def test_each_message_names_the_one_before_on_its_topic(path):
    def previous():
        return [
            (one.message.topic, dict(one.message.properties)["previous"])
            for one in ledger.pending_messages(after=0, limit=99)
        ]

    picture = replace(message(), topic="atac/line1/thumbnail")
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger), State.OK)
        end(ledger, begin(ledger), State.NG, message(), picture)
        end(ledger, begin(ledger), State.NG, message())
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger), State.NG, message(), picture)
        ledger.flush()
        assert previous() == [
            ("atac/line1/alarm", "0"),
            ("atac/line1/thumbnail", "0"),
            ("atac/line1/alarm", "2"),
            ("atac/line1/alarm", "3"),
            ("atac/line1/thumbnail", "2"),
        ]


def test_a_mark_does_not_write_the_payload_again(path):
    def written():
        return path.with_name(path.name + "-wal").stat().st_size

    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger), State.NG, message(os.urandom(60_000)))
        ledger.flush()
        before = written()
        assert before > 60_000
        ledger.mark_delivered([1])
        ledger.flush()
        assert 0 < written() - before < 30_000


def test_a_file_that_is_no_database_is_moved_aside(path):
    path.write_bytes(b"not a database at all" * 1000)
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger))
        assert ledger.flush()
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_a_file_damaged_while_in_use_stops_nothing(path, caplog):
    with Ledger(path, agent_id="line1") as ledger:
        for _ in range(50):
            end(ledger, begin(ledger), State.NG, message(b"x" * 2000))
        ledger.flush()
        for part in path.parent.iterdir():
            part.write_bytes(b"\0" * part.stat().st_size)
        for _ in range(50):
            end(ledger, begin(ledger), State.NG, message(b"x" * 2000))
        assert ledger.flush()
        assert ledger.total() == total(ledger) == 100
        assert ledger.trouble is None


def test_a_full_disk_stops_nothing_and_is_said_once(small_disk, caplog, monkeypatch, eventually):
    monkeypatch.setattr(agent.ledger, "_RETRY_S", 0.05)
    ballast = small_disk / "ballast"
    path = small_disk / "ledger.sqlite"
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger))
        ledger.flush()
        ballast.write_bytes(b"x" * (_free(small_disk) - 50_000))
        for _ in range(100):
            end(ledger, begin(ledger), State.NG, message(b"x" * 2000))
        eventually(lambda: "full" in (ledger.trouble or ""))
        assert ledger.lost == ()
        assert ledger.total() == total(ledger) == 101
        ballast.unlink()
        assert ledger.flush()
        assert ledger.trouble is None
        assert ledger.pending == 100
    assert [sequence for sequence, _ in rows(path)] == list(range(1, 102))
    said = [record.message for record in caplog.records]
    assert sum("nothing can be recorded" in line for line in said) == 1
    assert sum("again" in line for line in said) == 1


def test_what_does_not_fit_into_memory_is_counted_to_the_part(small_disk, monkeypatch):
    monkeypatch.setattr(agent.ledger, "_RETRY_S", 0.05)
    path = small_disk / "ledger.sqlite"
    ballast = small_disk / "ballast"
    with Ledger(path, agent_id="line1", memory_bytes=60_000) as ledger:
        ledger.flush()
        ballast.write_bytes(b"x" * (_free(small_disk) - 10_000))
        ended = []
        for n in range(60):
            trigger = begin(ledger)
            time.sleep(0.001)
            end(ledger, trigger, State.NG if n % 2 else State.ERROR, message(b"x" * 2000))
            ended.append(trigger.sequence)
        ledger.flush(0.3)
        lost = [n for first, last in ledger.lost for n in range(first, last + 1)]
        assert lost
        assert total(ledger) == ledger.total() == 60
        ballast.unlink()
        assert ledger.flush()
        end(ledger, begin(ledger))
        assert ledger.flush()
        ranges = ledger.lost
    kept = [sequence for sequence, _ in rows(path)]
    assert sorted(kept + lost) == list(range(1, 62))
    with Ledger(path, agent_id="line1") as ledger:
        assert ledger.lost == ranges
        assert ledger.accounts()["main"].counts == {
            **dict.fromkeys(State, 0),
            State.NG: 30,
            State.ERROR: 30,
            State.OK: 1,
        }
        assert ledger.next_sequence("main") == 62


def test_a_disk_that_is_full_at_the_start(small_disk, monkeypatch):
    monkeypatch.setattr(agent.ledger, "_RETRY_S", 0.05)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (_free(small_disk) - 4096))
    path = small_disk / "ledger.sqlite"
    with Ledger(path, agent_id="line1") as ledger:
        assert ledger.trouble is not None
        end(ledger, begin(ledger), State.NG, message())
        epoch = ledger.epoch
        ballast.unlink()
        assert ledger.flush()
        assert ledger.pending == 1
    with Ledger(path, agent_id="line1") as ledger:
        assert ledger.epoch == epoch
        assert ledger.total() == 1


def test_a_disk_that_becomes_read_only(small_disk, monkeypatch):
    monkeypatch.setattr(agent.ledger, "_RETRY_S", 0.05)
    path = small_disk / "ledger.sqlite"
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger))
        first = ledger.epoch
    subprocess.run(_mount(small_disk, "remount,ro"), check=True)
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger), State.NG, message())
        assert not ledger.flush(0.3)
        assert "read-only" in ledger.trouble
        assert ledger.pending_messages(after=0, limit=10) == []
        subprocess.run(_mount(small_disk, "remount,rw"), check=True)
        assert ledger.flush()
        assert ledger.trouble is None
        assert ledger.epoch != first  # nobody could know where the old count stood
    assert {state for _, state in rows(path)} == {"OK", "NG"}


def test_stopping_in_trouble_says_what_is_lost(small_disk, caplog):
    (small_disk / "ballast").write_bytes(b"x" * (_free(small_disk) - 4096))
    with Ledger(small_disk / "ledger.sqlite", agent_id="line1") as ledger:
        for _ in range(5):
            end(ledger, begin(ledger))
    assert "verdicts lost: sequences 1-5" in caplog.text


def test_callers_do_not_wait_for_the_disk(path, monkeypatch):
    """While a commit hangs, thousands of verdicts are taken, and all of them are written."""
    hanging, go_on = threading.Event(), threading.Event()
    insert = agent.ledger.insert_ended

    def slow(*arguments):
        hanging.set()
        assert go_on.wait(30)
        return insert(*arguments)

    monkeypatch.setattr(agent.ledger, "insert_ended", slow)
    with Ledger(path, agent_id="line1") as ledger:
        end(ledger, begin(ledger))
        assert hanging.wait(30)
        for _ in range(2000):
            end(ledger, begin(ledger))
        assert not ledger.flush(0.01)
        go_on.set()
        assert ledger.flush(30)
    assert len(rows(path)) == 2001


def test_what_has_no_messages_waits_for_company(path, monkeypatch, eventually):
    committed = []
    ng, ok = ("main", State.NG), ("main", State.OK)

    def tally(connection, epoch, counts):
        write_tally(connection, epoch, counts)
        committed.append(dict(counts))

    monkeypatch.setattr(agent.ledger, "_GATHER_S", 600.0)
    monkeypatch.setattr(agent.ledger, "write_tally", tally)
    with Ledger(path, agent_id="line1") as ledger:
        first, second, third = (begin(ledger) for _ in range(3))
        end(ledger, first, State.NG, message())
        eventually(lambda: {ng: 1} in committed)
        end(ledger, second)
        time.sleep(0.1)  # long enough for a commit
        end(ledger, third, State.NG, message())
        eventually(lambda: {ng: 2, ok: 1} in committed)
    assert {ng: 1, ok: 1} not in committed


def test_many_threads_may_record(path):
    with Ledger(path, agent_id="line1") as ledger:

        def work():
            for _ in range(100):
                end(ledger, begin(ledger), State.NG, message())

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.flush()
        assert ledger.pending == ledger.total() == total(ledger) == 800
    assert len(rows(path)) == 800


def test_after_the_end_nothing_hangs(path):
    with Ledger(path, agent_id="line1") as ledger:
        pass
    assert ledger.pending_messages(after=0, limit=1) == []


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=30))
def test_spans_are_the_set_of_their_numbers(spans):
    ranges = []
    numbers = set()
    for first, length in spans:
        ranges = with_span(ranges, first, first + length)
        numbers |= set(range(first, first + length + 1))
    assert [n for first, last in ranges for n in range(first, last + 1)] == sorted(numbers)
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(ranges))


def _free(folder):
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize
