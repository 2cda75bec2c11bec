import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agent.record.rescue
import agent.record.runs
import agent.record.writer
from agent.part import Part, State, Trigger
from agent.record.annotations import Change, Label, ThresholdChange
from agent.record.ledger import Ledger
from agent.record.replay import requeue_in_file
from agent.record.retention import Limits
from agent.record.rows import Event, software, with_span
from agent.record.runs import ABANDONED, write_tally
from agent.record.schema import TABLES, damage, note_path
from engine.errors import ConfigurationError, LedgerError
from tests.records import Wants, add, begin, end, fill, inspected, settle, with_thumbnails

PICTURE = os.urandom(2000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes; gives its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(_mount(folder, "size=2m"), check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def _mount(folder, options):
    return ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]


def opened(path, **options):
    return Ledger(path, **{"agent_id": "line1", "sinks": [Wants(with_thumbnails)]} | options)


def waiting(ledger, **options):
    return ledger.waiting_for("mqtt", **{"after": 0, "limit": 1000} | options)


def rows(path, query="SELECT sequence, state FROM triggers ORDER BY sequence"):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def total(ledger):
    return sum(sum(camera.counts.values()) for camera in ledger.cameras().values())


def test_every_trigger_ends_in_one_state_and_the_states_sum_to_the_triggers(path):
    rng = random.Random(1)
    states = [rng.choice(list(State)) for _ in range(200)]
    with opened(path) as ledger:
        for state in states:
            assert end(ledger, begin(ledger), state)
        assert ledger.flush(60)
        assert ledger.cameras()["main"].counts == {state: states.count(state) for state in State}
        assert ledger.total() == total(ledger) == 200
    assert rows(path) == [(n, state.value) for n, state in enumerate(states, 1)]


def test_sequences_go_on_without_a_gap_and_so_do_the_counts(path):
    epochs = set()
    for run in range(3):
        with opened(path) as ledger:
            epochs.add(ledger.epoch)
            for n in range(1, 4):
                trigger = begin(ledger)
                assert trigger.trigger.sequence == 3 * run + n
                end(ledger, trigger, State.NG)
    with opened(path) as ledger:
        assert ledger.cameras()["main"].counts[State.NG] == ledger.total() == 9
        assert ledger.waiting("mqtt") == 9
    assert len(epochs) == 1


def test_another_agent_id_counts_for_itself(path):
    with opened(path) as ledger:
        end(ledger, begin(ledger))
        first = ledger.epoch
    with Ledger(path, agent_id="line2") as ledger:
        assert ledger.epoch != first
        assert ledger.total() == 0
    with opened(path) as ledger:
        assert ledger.epoch == first
        assert ledger.total() == 1


def test_a_row_holds_all_that_was_found_and_gives_it_back(path):
    with opened(path, bundle_id="b", calibration_id="c") as ledger:
        part = inspected(begin(ledger, "part 9", count=3))
        end(ledger, part, State.NG, PICTURE, decided_ns=3)
        assert ledger.flush(60)
        (_, alarm), (_, picture) = waiting(ledger)
    assert alarm == Event(
        agent_id="line1", epoch=ledger.epoch, sequence=1, position=1, camera="main",
        part_id="part 9", count=3, triggered_ns=1, deadline_ns=2, state=State.NG, decided_ns=3,
        reason="", late_state=None, late_s=None, threshold=1.5, frame_number=7, captured_ns=11,
        frame_width=64, frame_height=48, device_id="CAM1", block_id=70_007, device_ns=13,
        exposure_us=4000.0, trigger_count=5, score=2.5, deviation=2.5, attention_s=1e-5,
        passes=part.inspection.passes, bundle_id="b", calibration_id="c", software=software(),
        has_thumbnail=True,
    )  # fmt: skip
    assert picture == replace(alarm, thumbnail=PICTURE)
    ((evidence,),) = rows(path, "SELECT evidence FROM triggers")
    assert json.loads(evidence)["passes"][1] == {
        "box": [10, 20, 30, 40], "score": 2.5, "view_s": 1e-4, "network_s": 1e-3
    }  # fmt: skip


def test_it_knows_the_sources_whose_parts_have_ended(path):
    with opened(path) as ledger:
        for source in ("a", "b"):
            part = begin(ledger, source=source)
            end(ledger, part)
        begin(ledger, source="open")
        ledger.flush(60)
        assert set(ledger.recorded(["a", "x", "open"])) == {"a"}
        assert set(ledger.recorded([])) == set()
    with opened(path) as ledger:
        assert set(ledger.recorded(["a", "b", "open"])) == {"a", "b", "open"}


def test_the_first_verdict_counts(path):
    with opened(path) as ledger:
        trigger = begin(ledger)
        assert end(ledger, trigger, State.TIMEOUT)
        assert not end(ledger, trigger, State.OK)
        assert total(ledger) == 1
    assert rows(path) == [(1, "TIMEOUT")]
    assert rows(path, "SELECT count(*) FROM deliveries") == [(1,)]


def test_a_trigger_that_nobody_began_is_a_bug(path):
    with opened(path) as ledger:
        stranger = Part(trigger=Trigger(sequence=1, camera="main", triggered_ns=0), received=0.0)
        with pytest.raises(ValueError, match="was not given"):
            ledger.expect(stranger)
        with pytest.raises(ValueError, match="was not given"):
            end(ledger, stranger)


def test_a_part_id_that_is_no_unicode_does_no_harm(path):
    """A file name in an older encoding, as Python gives it."""
    with opened(path) as ledger:
        end(ledger, begin(ledger, b"part-\xe9".decode(errors="surrogateescape")))
        assert ledger.flush(60)
    assert rows(path, "SELECT part_id FROM triggers") == [("part-?",)]


def test_triggers_begun_before_a_stop_end_as_errors_and_are_delivered(path):
    with opened(path, bundle_id="before") as ledger:
        end(ledger, begin(ledger))
        begin(ledger, "left open", "side")
    for _ in range(2):
        with opened(path, bundle_id="after") as ledger:
            assert ledger.cameras()["side"].counts[State.ERROR] == 1
            assert ledger.total() == total(ledger) == 2
            ((delivery, event),) = waiting(ledger)
            assert (delivery.item, delivery.sequence, delivery.epoch) == ("alarm", 2, ledger.epoch)
            assert (event.state, event.reason) == (State.ERROR, ABANDONED)
            assert (event.camera, event.part_id, event.deadline_ns) == ("side", "left open", 2)
            assert event.threshold is None
            assert event.bundle_id == "before"


KILLED = """
import itertools, sys
from pathlib import Path
from agent.part import State
from agent.record.schema import TABLES
from agent.record.ledger import Ledger
from tests.records import Wants, begin, end

with Ledger(Path(sys.argv[1]), agent_id="line1", sinks=[Wants()]) as ledger:
    for n in itertools.count():
        part = begin(ledger)
        if n % 10 == 9:  # now and then look what is safe
            ledger.flush(60)
            print(part.trigger.sequence, flush=True)
        end(ledger, part, State.NG)
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
        with opened(path) as ledger:
            last = ledger.total()
            assert last >= safe
            assert total(ledger) == last
            errors = ledger.cameras()["main"].counts[State.ERROR]
        assert errors <= kill + 1
        found = rows(path)
        assert [sequence for sequence, _ in found] == list(range(1, last + 1))
        assert all(state is not None for _, state in found)
        alarms = [sequence for sequence, state in found if state != "OK"]
        assert rows(path, "SELECT sequence FROM deliveries ORDER BY id") == [(n,) for n in alarms]


def test_deliveries_come_in_order_until_they_are_settled(path):
    with opened(path) as ledger:
        add(ledger, *[State.NG] * 5, thumbnail=PICTURE)
        ledger.flush(60)
        everything = waiting(ledger)
        assert [(one.item, one.sequence) for one, _ in everything] == [
            (item, n) for n in range(1, 6) for item in ("alarm", "thumbnail")
        ]
        assert ledger.newest("mqtt") == everything[-1][0].id
        assert waiting(ledger, after=everything[2][0].id, limit=2) == everything[3:5]
        settle(ledger, everything[0], everything[1])
        settle(ledger, everything[0])
        settle(ledger, everything[2], refused="denied", code=0x87)
        ledger.flush(60)
        assert (ledger.waiting("mqtt"), ledger.refused("mqtt")) == (7, 1)
        assert waiting(ledger) == everything[3:]
    with opened(path) as ledger:
        assert (ledger.waiting("mqtt"), ledger.refused("mqtt")) == (7, 1)
        assert waiting(ledger) == everything[3:]
    assert rows(path, "SELECT id, code, reason FROM deliveries WHERE state = 'refused'") == [
        (3, 0x87, "denied")
    ]


def test_every_sink_has_deliveries_of_its_own(path):
    plc = Wants(lambda _part: ("result",), "plc")
    with Ledger(path, agent_id="line1", sinks=[Wants(), plc]) as ledger:
        add(ledger, State.OK, State.NG)
        ledger.flush(60)
        assert (ledger.waiting("mqtt"), ledger.waiting("plc")) == (1, 2)
        settle(ledger, *ledger.waiting_for("plc", after=0, limit=9))
        ledger.flush(60)
        assert (ledger.waiting("mqtt"), ledger.waiting("plc")) == (1, 0)
        found = ledger.requeue("plc", ledger.epoch, (1, 9), parts=9)
        assert len(found.ids) == 2
        assert (ledger.waiting("mqtt"), ledger.waiting("plc")) == (1, 2)


def test_what_a_sink_that_is_no_longer_there_waits_for_is_set_aside_until_it_is_back(path, caplog):
    plc = Wants(lambda _part: ("result",), "plc")
    with Ledger(path, agent_id="line1", sinks=[Wants(), plc]) as ledger:
        add(ledger, State.OK, State.NG)
    with Ledger(path, agent_id="line2", sinks=[Wants()]) as ledger:  # whose parts are others
        assert (ledger.waiting("mqtt"), ledger.waiting("plc")) == (1, 2)
    caplog.clear()
    with Ledger(path, agent_id="line1", sinks=[Wants()]) as ledger:
        assert (ledger.waiting("mqtt"), ledger.waiting("plc")) == (1, 0)
    (said,) = caplog.messages
    assert said.startswith("2 messages for the sink plc are set aside")
    assert damage(path) is None
    with Ledger(path, agent_id="line1", sinks=[Wants(), plc]) as ledger:
        assert (ledger.waiting("mqtt"), ledger.waiting("plc")) == (1, 2)
        assert len(ledger.waiting_for("plc", after=0, limit=9)) == 2
    assert len(caplog.messages) == 1


def test_a_listener_hears_of_its_own_deliveries_only(path):
    heard = threading.Semaphore(0)
    with opened(path) as ledger:
        ledger.listen("mqtt", heard.release)
        end(ledger, begin(ledger))
        ledger.flush(60)
        assert not heard.acquire(blocking=False)
        end(ledger, begin(ledger), State.NG)
        assert heard.acquire(timeout=60)


def test_a_file_that_is_open_elsewhere_is_waited_for_and_that_said_once(
    path, caplog, monkeypatch, eventually
):
    monkeypatch.setattr(agent.record.writer, "_RETRY_S", 0.01)
    with opened(path) as ledger:
        add(ledger, State.NG)
    reader = sqlite3.connect(path)
    cursor = reader.execute("SELECT * FROM triggers")
    cursor.fetchone()  # a shell that has read one row and is idle
    ledger, counted = opened(path), []

    def run():
        with ledger:
            counted.append(ledger.total())

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: "is open in another program" in caplog.text)
    assert not counted
    cursor.close()
    reader.close()
    thread.join(60)
    assert counted == [1]
    assert caplog.text.count("is open in another program") == 1


def test_the_wait_for_a_file_ends_with_the_stop(path):
    stop = threading.Event()
    with opened(path), ThreadPoolExecutor(1) as pool:

        def enter():
            with opened(path, agent_id="line2", stop=stop):
                pass

        waits = pool.submit(enter)
        stop.set()
        with pytest.raises(LedgerError, match="until the stop"):
            waits.result(20)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (".", "is a folder"),
        ("file/ledger", "its folder cannot be made"),
        ("pipe", "is no regular file"),
        ("loop", "is no regular file"),
        ("/dev/null", "is no regular file"),
        ("agent.yaml", "is a file of another kind"),
    ],
)
def test_a_place_where_no_ledger_can_be(tmp_path, place, reason):
    (tmp_path / "file").touch()
    (tmp_path / "agent.yaml").write_text("agent: {id: a}\n")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(ConfigurationError, match=reason),
        Ledger(tmp_path / place, agent_id="line1"),
    ):
        pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ("PRAGMA application_id = 1096040771; PRAGMA user_version = 99", "newer atac-agent"),
        ("CREATE TABLE x (y)", "another program"),
        ("CREATE TABLE outbox (y); PRAGMA user_version = 7", "from before version 0.1.0; move it"),
    ],
)
def test_a_file_that_is_not_ours_to_write(path, make, reason):
    connection = sqlite3.connect(path)
    connection.executescript(make)
    connection.close()
    with pytest.raises(ConfigurationError, match=reason), opened(path):
        pass


def test_a_damaged_file_is_moved_aside_and_its_readable_rows_are_kept(path, caplog):
    with opened(path) as ledger:
        for _ in range(300):
            end(ledger, begin(ledger), State.NG, PICTURE)
        before = ledger.epoch
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 40 * 4096] = os.urandom(40 * 4096)
    path.write_bytes(data)
    with opened(path) as ledger:
        assert ledger.epoch != before
        assert ledger.total() == 0
        kept = waiting(ledger)
        pictures = [event for _, event in kept if event.thumbnail is not None]
        assert 100 < len(pictures) < 300
        end(ledger, begin(ledger))
        assert ledger.flush(60)
    assert [old.read_bytes() for old in path.parent.glob("*.damaged-*Z")] == [bytes(data)]
    assert "was damaged: moved to" in caplog.text


def test_doctor_finds_what_the_start_would(path):
    assert damage(path) is None
    with opened(path) as ledger:
        add(ledger, *[State.NG] * 100, thumbnail=PICTURE)
        ledger.flush(60)
        assert damage(path) is None  # an agent has it open
    before = {one.name: one.read_bytes() for one in path.parent.iterdir()}
    assert damage(path) is None
    assert before == {one.name: one.read_bytes() for one in path.parent.iterdir()}
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = os.urandom(len(data) - len(data) // 2)
    path.write_bytes(data)
    assert damage(path) is not None


def test_copies_of_damaged_files_are_bounded(path, monkeypatch):
    for n in range(6):
        monkeypatch.setattr(agent.record.rescue, "utc", lambda _ns, n=n: f"time-{n}")
        note_path(path).touch()
        path.write_bytes(b"not a database at all" * 1000)
        with opened(path):
            pass
    assert sorted(one.name[-6:] for one in path.parent.glob("*.damaged-*")) == [
        "time-3", "time-4", "time-5"
    ]  # fmt: skip


def test_a_file_with_every_kind_of_row_opens_is_sound_and_replays(path):
    """SQLite 3.40.1 finds a NULL that is not there where a key's columns do not come first."""
    change = ThresholdChange(
        calibration_id="c", by="Ada", nonce="nonce-01", old=1.0, new=2.0, is_calibrated=False
    )
    with opened(path, calibration_id="c") as ledger:
        add(ledger, *State, thumbnail=PICTURE)
        begin(ledger)
        ledger.flush(60)
        everything = waiting(ledger)
        settle(ledger, *everything[:4])
        settle(ledger, everything[4], refused="denied", code=1)
        assert ledger.label(Label(epoch=ledger.epoch, sequence=1, label="good"))
        assert ledger.change_threshold(change)
        assert ledger.note_change(Change(kind="promote", who="Ada", why="better", old="1", new="2"))
        assert [(one.kind, one.who, one.why, one.old, one.new) for one in ledger.changes()] == [
            ("threshold", "Ada", "", "1", "2"), ("promote", "Ada", "better", "1", "2")
        ]  # fmt: skip
        assert ledger.changes(time.time_ns() + 10**9) == []
        assert ledger.audited("c", 1.0) == (0, 0)
        assert ledger.use_nonce("nonce-01", until_ns=1 << 62, now_ns=1)
        ledger._writer.ask(
            lambda file: (
                file.execute("INSERT INTO losses VALUES ('e', 1, 2, 3, 'full')"),
                file.execute("INSERT INTO sources VALUES ('1:2:3', 4)"),
                file.execute("INSERT INTO discarded VALUES ('e', 1, 'picture', 3)"),
            )
        )
        epoch = ledger.epoch
    filled = {table for table in TABLES if rows(path, f"SELECT 1 FROM {table}")}
    assert filled == set(TABLES)
    assert requeue_in_file(path, "line1", ["mqtt"], (1, 9), None) == 5
    with opened(path, calibration_id="c") as ledger:
        assert ledger.epoch == epoch
        assert ledger.changed_threshold("c") == 2.0
        assert ledger.use_nonce("nonce-01", until_ns=1 << 62, now_ns=1) is False
        assert (ledger.waiting("mqtt"), ledger.refused("mqtt")) == (len(everything) + 1, 0)
        found = ledger._writer.read(lambda file: file.execute("PRAGMA quick_check").fetchall())
        assert [tuple(row) for row in found] == [("ok",)]
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_finding_that_the_table_denies_is_no_damage(path, monkeypatch):
    """What SQLite 3.40.1 says of a table whose key columns do not come first."""
    with opened(path) as ledger:
        add(ledger, State.NG)
    file = sqlite3.connect(path)
    file.execute(
        "CREATE TABLE odd (a TEXT NOT NULL, b TEXT NOT NULL, c, PRIMARY KEY (a, c)) WITHOUT ROWID"
    )
    file.execute("INSERT INTO odd VALUES ('x', 'y', 'z')")
    file.commit()
    file.close()
    with opened(path) as ledger:
        assert ledger.total() == 1
    assert not list(path.parent.glob("*.damaged-*"))


def test_nobody_else_may_read_it(path):
    with opened(path) as ledger:
        add(ledger, State.NG)
        ledger.flush(60)
        modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    assert modes["ledger.sqlite"] == modes["ledger.sqlite-wal"] == 0o640
    path.chmod(0o644)
    with opened(path):
        assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_removed_is_noticed_and_a_new_one_begun(
    path, monkeypatch, caplog, eventually
):
    monkeypatch.setattr(agent.record.writer, "_LOOK_S", 0.05)
    monkeypatch.setattr(agent.record.writer, "_RETRY_S", 0.05)
    with opened(path) as ledger:
        add(ledger, State.NG, State.NG)
        ledger.flush(60)
        newest, epoch = ledger.newest("mqtt"), ledger.epoch
        path.unlink()
        eventually(lambda: "was removed or replaced" in caplog.text)
        eventually(path.exists)
        add(ledger, State.NG)
        assert ledger.flush(60)
        assert ledger.epoch == epoch
        ((delivery, event),) = waiting(ledger, after=newest)
        assert (delivery.sequence, event.state) == (3, State.NG)
        assert ledger.total() == 3


def test_one_odd_value_costs_one_part(path, caplog):
    with opened(path) as ledger:
        parts = [begin(ledger) for _ in range(3)]
        end(ledger, parts[0], State.NG)
        end(ledger, parts[1], State.NG, decided_ns=1 << 80)
        end(ledger, parts[2], State.NG, reason="\ud800")
        assert ledger.flush(60)
        assert ledger.lost == ((2, 2),)
        assert ledger.fault is None
    assert "part 2 cannot be recorded: OverflowError" in caplog.text
    assert rows(path) == [(1, "NG"), (3, "NG")]
    with opened(path) as ledger:
        assert ledger.lost == ((2, 2),)
        assert ledger.next_sequence("main") == 4


def test_each_delivery_names_the_one_before_of_its_item(path):
    with opened(path) as ledger:
        add(ledger, State.OK)
        add(ledger, State.NG, thumbnail=PICTURE)
        add(ledger, State.NG)
    with opened(path) as ledger:
        add(ledger, State.NG, thumbnail=PICTURE)
        ledger.flush(60)
        assert [(one.item, one.previous) for one, _ in waiting(ledger)] == [
            ("alarm", 0),
            ("thumbnail", 0),
            ("alarm", 2),
            ("alarm", 3),
            ("thumbnail", 2),
        ]


def test_a_mark_does_not_write_the_picture_again(path):
    def written():
        return path.with_name(path.name + "-wal").stat().st_size

    with opened(path) as ledger:
        add(ledger, State.NG, thumbnail=os.urandom(60_000))
        ledger.flush(60)
        before = written()
        assert before > 60_000
        settle(ledger, *waiting(ledger))
        ledger.flush(60)
        assert 0 < written() - before < 40_000


def test_what_lies_beside_the_ledger_is_not_followed_and_not_waited_for(path, tmp_path):
    other = tmp_path / "of somebody else"
    other.write_text("theirs")
    for name in ("lost", "reserve"):
        path.with_name(f"{path.name}.{name}").symlink_to(other)
    with opened(path, limits=Limits(keep_ns=10**18, max_bytes=10**9)) as ledger:
        add(ledger, State.NG)
        assert ledger.flush(60)
    for name in ("lost", "reserve"):
        path.with_name(f"{path.name}.{name}").unlink()
        os.mkfifo(path.with_name(f"{path.name}.{name}"))
    with opened(path, limits=Limits(keep_ns=10**18, max_bytes=10**9)) as ledger:
        add(ledger, State.NG)
        assert ledger.flush(60)
    assert other.read_text() == "theirs"


def test_a_file_that_is_no_database_is_moved_aside_where_a_ledger_was(path):
    note_path(path).touch()
    path.write_bytes(b"not a database at all" * 1000)
    with opened(path) as ledger:
        end(ledger, begin(ledger))
        assert ledger.flush(60)
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_a_file_damaged_while_in_use_stops_nothing(path, caplog):
    with opened(path) as ledger:
        for _ in range(50):
            end(ledger, begin(ledger), State.NG, PICTURE)
        ledger.flush(60)
        for part in path.parent.iterdir():
            part.write_bytes(b"\0" * part.stat().st_size)
        for _ in range(50):
            end(ledger, begin(ledger), State.NG, PICTURE)
        assert ledger.flush(60)
        assert ledger.total() == total(ledger) == 100
        assert ledger.fault is None


def test_a_full_disk_stops_nothing_and_is_said_once(small_disk, caplog, monkeypatch, eventually):
    monkeypatch.setattr(agent.record.writer, "_RETRY_S", 0.05)
    ballast = small_disk / "ballast"
    path = small_disk / "ledger.sqlite"
    with opened(path) as ledger:
        end(ledger, begin(ledger))
        ledger.flush(60)
        ballast.write_bytes(b"x" * (_free(small_disk) - 50_000))
        for _ in range(100):
            end(ledger, begin(ledger), State.NG, PICTURE)
        eventually(lambda: "full" in (ledger.fault or ""))
        assert ledger.lost == ()
        assert ledger.total() == total(ledger) == 101
        ballast.unlink()
        assert ledger.flush(60)
        assert ledger.fault is None
        assert ledger.waiting("mqtt") == 200
    assert [sequence for sequence, _ in rows(path)] == list(range(1, 102))
    said = [record.message for record in caplog.records]
    assert sum("nothing can be recorded" in line for line in said) == 1
    assert sum("again" in line for line in said) == 1


def test_what_does_not_fit_into_memory_is_counted_to_the_part(small_disk, monkeypatch):
    monkeypatch.setattr(agent.record.writer, "_RETRY_S", 0.05)
    path = small_disk / "ledger.sqlite"
    ballast = small_disk / "ballast"
    with Ledger(path, agent_id="line1", memory_bytes=60_000) as ledger:
        ledger.flush(60)
        ballast.write_bytes(b"x" * (_free(small_disk) - 10_000))
        ended = []
        for n in range(60):
            trigger = begin(ledger)
            time.sleep(0.001)
            end(ledger, trigger, State.NG if n % 2 else State.ERROR, PICTURE)
            ended.append(trigger.trigger.sequence)
        ledger.flush(0.3)
        lost = [n for first, last in ledger.lost for n in range(first, last + 1)]
        assert lost
        assert total(ledger) == ledger.total() == 60
        ballast.unlink()
        assert ledger.flush(60)
        end(ledger, begin(ledger))
        assert ledger.flush(60)
        ranges = ledger.lost
    kept = [sequence for sequence, _ in rows(path)]
    assert sorted(kept + lost) == list(range(1, 62))
    with opened(path) as ledger:
        assert ledger.lost == ranges
        assert ledger.cameras()["main"].counts == {
            **dict.fromkeys(State, 0),
            State.NG: 30,
            State.ERROR: 30,
            State.OK: 1,
        }
        assert ledger.next_sequence("main") == 62


def test_a_disk_that_is_full_at_the_start(small_disk, monkeypatch):
    monkeypatch.setattr(agent.record.writer, "_RETRY_S", 0.05)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (_free(small_disk) - 4096))
    path = small_disk / "ledger.sqlite"
    with opened(path) as ledger:
        assert ledger.fault is not None
        end(ledger, begin(ledger), State.NG)
        epoch = ledger.epoch
        ballast.unlink()
        assert ledger.flush(60)
        assert ledger.waiting("mqtt") == 1
    with opened(path) as ledger:
        assert ledger.epoch == epoch
        assert ledger.total() == 1


def test_a_disk_that_becomes_read_only(small_disk, monkeypatch):
    monkeypatch.setattr(agent.record.writer, "_RETRY_S", 0.05)
    path = small_disk / "ledger.sqlite"
    with opened(path) as ledger:
        end(ledger, begin(ledger))
        first = ledger.epoch
    subprocess.run(_mount(small_disk, "remount,ro"), check=True)
    with opened(path) as ledger:
        end(ledger, begin(ledger), State.NG)
        assert not ledger.flush(0.3)
        assert "read-only" in ledger.fault
        assert waiting(ledger) == []
        subprocess.run(_mount(small_disk, "remount,rw"), check=True)
        assert ledger.flush(60)
        assert ledger.fault is None
        assert ledger.epoch != first  # nobody could know where the old count stood
    assert {state for _, state in rows(path)} == {"OK", "NG"}


def test_what_a_full_disk_has_cost_is_known_after_a_stop(small_disk, caplog, monkeypatch):
    path = small_disk / "ledger.sqlite"
    monkeypatch.setattr(agent.record.writer, "_SWEEP_S", 0.01)
    with opened(path) as ledger:
        add(ledger, State.OK)
        ledger.flush(60)
        epoch = ledger.epoch
        fill(small_disk)
        add(ledger, *[State.NG] * 200, thumbnail=PICTURE)
        assert not ledger.flush(0.2)
        kept = waiting(ledger)
    lost = [n for first, last in ledger.lost for n in range(first, last + 1)]
    assert ledger.lost_in_this_run == len(lost) > 0
    assert "stopped while nothing could be recorded" in caplog.text
    (small_disk / "ballast").unlink()
    with opened(path) as again:
        assert again.epoch == epoch
        assert again.lost == ledger.lost
        assert again.lost_in_this_run == 0
        assert again.total() == total(again) == 201
        assert again.next_sequence("main") == 202
    recorded = {n for n, _ in rows(path)}
    assert not recorded & set(lost)
    assert len(recorded) >= 1 + len(kept) // 2


FULL = """
import sys, time
from pathlib import Path
import agent.record.writer
from agent.record.ledger import Ledger
from agent.part import State
from tests.records import Wants, add, fill, with_thumbnails

path = Path(sys.argv[1])
agent.record.writer._SWEEP_S = agent.record.writer._RETRY_S = 0.01
with Ledger(path, agent_id="line1", sinks=[Wants(with_thumbnails)]) as ledger:
    add(ledger, State.OK)
    ledger.flush(60)
    fill(path.parent)
    while ledger.fault is None:
        add(ledger, State.NG, thumbnail=bytes(2000))
        ledger.flush(0.1)
    for _ in range(20):
        add(ledger, *[State.NG] * 5)
        time.sleep(0.01)
        if ledger.may_leave(ledger.last_sequence):
            print(ledger.last_sequence, flush=True)
    print("done", flush=True)
    time.sleep(60)
"""


def test_no_sequence_that_left_the_process_comes_again_after_a_kill(small_disk):
    path = small_disk / "ledger.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", FULL, path], stdout=subprocess.PIPE, cwd=Path.cwd(), text=True
    )
    left = list(iter(process.stdout.readline, "done\n"))
    process.kill()
    process.wait()
    process.stdout.close()
    assert left
    newest = int(left[-1])
    (small_disk / "ballast").unlink()
    with opened(path) as ledger:
        assert ledger.next_sequence("main") > newest
        assert any(first <= newest <= last for first, last in ledger.lost)
        # What is not known to have begun is lost, but counts as no part.
        assert total(ledger) <= ledger.last_sequence


def test_a_sequence_may_leave_once_it_is_committed(path, monkeypatch):
    monkeypatch.setattr(agent.record.writer, "_GATHER_S", 600.0)
    with opened(path) as ledger:
        add(ledger, State.OK)
        part = begin(ledger)
        assert not ledger.may_leave(part.trigger.sequence)
        ledger.flush(60)
        assert ledger.may_leave(part.trigger.sequence, 10.0)


def test_callers_do_not_wait_for_the_disk(path, monkeypatch):
    """While a commit hangs, thousands of verdicts are taken, and all of them are written."""
    hanging, go_on = threading.Event(), threading.Event()
    write = agent.record.runs.write_ended

    def slow(*arguments):
        hanging.set()
        assert go_on.wait(60)
        return write(*arguments)

    monkeypatch.setattr(agent.record.runs, "write_ended", slow)
    with opened(path) as ledger:
        end(ledger, begin(ledger))
        assert hanging.wait(60)
        for _ in range(2000):
            end(ledger, begin(ledger))
        assert not ledger.flush(0.01)
        go_on.set()
        assert ledger.flush(30)
    assert len(rows(path)) == 2001


def test_a_disk_that_hangs_is_a_fault_and_a_stop_leaves_it_behind(
    path, monkeypatch, eventually, caplog
):
    go_on, write = threading.Event(), agent.record.runs.write_ended

    def hang(*arguments):
        go_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(agent.record.runs, "write_ended", hang)
    monkeypatch.setattr(agent.record.writer, "_HELD_UP_S", 0.05)
    monkeypatch.setattr(agent.record.writer, "_STOP_S", 0.2)
    with opened(path) as ledger:
        assert ledger.fault is None
        add(ledger, State.NG)
        eventually(lambda: ledger.fault)
        assert ledger.fault.endswith("does not answer: nothing is recorded, messages wait")
        add(ledger, State.NG, State.OK)
    assert ledger.lost == ((1, 3),)
    assert ledger.lost_in_this_run == 3
    assert "stopped while nothing could be recorded; lost: parts 1-3" in caplog.messages
    go_on.set()
    eventually(lambda: not ledger.is_alive)


def test_what_has_no_messages_waits_for_company(path, monkeypatch, eventually):
    committed = []
    ng, ok = ("main", State.NG), ("main", State.OK)

    def tally(connection, epoch, counts):
        write_tally(connection, epoch, counts)
        committed.append(dict(counts))

    monkeypatch.setattr(agent.record.writer, "_GATHER_S", 600.0)
    monkeypatch.setattr(agent.record.runs, "write_tally", tally)
    with opened(path) as ledger:
        first, second, third = (begin(ledger) for _ in range(3))
        end(ledger, first, State.NG)
        eventually(lambda: {ng: 1} in committed)
        end(ledger, second)
        time.sleep(0.1)  # long enough for a commit
        end(ledger, third, State.NG)
        eventually(lambda: {ng: 2, ok: 1} in committed)
    assert {ng: 1, ok: 1} not in committed


def test_many_threads_may_record(path):
    with opened(path) as ledger:

        def work():
            for _ in range(100):
                end(ledger, begin(ledger), State.NG)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.flush(60)
        assert ledger.waiting("mqtt") == ledger.total() == total(ledger) == 800
    assert len(rows(path)) == 800


def test_after_the_end_nothing_hangs(path):
    with opened(path) as ledger:
        pass
    assert waiting(ledger) == []


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
