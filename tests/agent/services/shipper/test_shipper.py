"""Parts of a real ledger go to a real S3 service as Parquet, each once."""

import threading
import time

import duckdb
import pytest

from agent.clock import ManualClock
from agent.part import State
from agent.services.shipper.names import Missing, Shipped, missing
from agent.services.shipper.serving import Rounds
from agent.services.shipper.shipper import Shipper, ShippingError
from agent.services.shipper.store import S3Address, S3Store, StoreError
from tests.records import add, begin, end, inspected
from tests.s3 import KEYS


class Source:
    """What the shipper reads, of a ledger in this process."""

    def __init__(self, ledger, frames=()):
        self.ledger, self.frames, self.labels = ledger, dict(frames), []

    def rows_after(self, after):
        return self.ledger.feed.rows_after(after, 500)

    def labels_after(self, known):
        found = [label for label in self.labels if label["id"] > known]
        return self.ledger.epoch, found

    def frame(self, epoch, sequence):
        return self.frames.get(sequence)


def store(s3, **changes):
    address = {
        "bucket": s3.bucket,
        "endpoint": s3.endpoint,
        "region": "us-east-1",
        "access_key": KEYS["aws_access_key_id"],
        "secret_key": KEYS["aws_secret_access_key"],
    }
    return S3Store(S3Address(**address | changes), max_bytes_s=1e9)


def shipper(source, to, folder, **changes):
    values = {"site": "hamburg", "agent_id": "line-3", "near": 0.1, "frames_an_hour": 100}
    return Shipper(
        source, lambda: to, folder=folder / "shipper", rest=lambda _: None, **values | changes
    )


def read(s3, folder, what="sequence"):
    """What Parquet in the bucket says of all parts."""
    s3.fetch(folder)
    found = duckdb.sql(
        f"SELECT {what} FROM read_parquet('{folder}/parts/**/*.parquet', hive_partitioning = true)"
        " ORDER BY position"
    )
    return found.fetchall()


def test_parts_are_there_once_with_all_that_the_ledger_knows(s3, ledger, tmp_path):
    add(ledger, *[State.OK] * 1200)
    end(ledger, inspected(begin(ledger, "nut 7", triggered_ns=5)), State.NG, threshold=1.5)
    assert ledger.flush(5)
    shipping = shipper(Source(ledger), store(s3), tmp_path)
    assert shipping.ship() == 1201
    assert shipping.ship() == 0
    (name,) = s3.names()
    shipped = Shipped.of(name)
    assert shipped.name == name
    assert (shipped.agent, shipped.first, shipped.last, shipped.count) == ("line-3", 1, 1201, 1201)
    found = read(s3, tmp_path / "read", "sequence, site, agent, state, part_id, score")
    assert [row[0] for row in found] == list(range(1, 1202))
    assert found[-1][1:] == ("hamburg", "line-3", "NG", "nut 7", 2.5)
    add(ledger, State.OK)
    assert ledger.flush(5)
    assert shipper(Source(ledger), store(s3), tmp_path).ship() == 1  # the cursor is in a file
    assert list(missing(Shipped.of(name) for name in s3.names())) == []


def test_what_was_put_without_an_answer_is_not_there_twice(s3, ledger, tmp_path):
    class Unanswered:
        def put(self, name, data):
            store(s3).put(name, data)
            raise StoreError("no answer")

    add(ledger, *[State.OK] * 3)
    assert ledger.flush(5)
    with pytest.raises(StoreError):
        shipper(Source(ledger), Unanswered(), tmp_path).ship()
    add(ledger, *[State.OK] * 2)
    assert ledger.flush(5)
    assert shipper(Source(ledger), store(s3), tmp_path).ship() == 5
    assert [row[0] for row in read(s3, tmp_path / "read")] == [1, 2, 3, 4, 5]
    assert len(s3.names()) == 2


def test_parts_that_are_made_meanwhile_wait_for_the_next_round(s3, ledger, tmp_path):
    class Busy:
        def put(self, name, data):
            add(ledger, *[State.OK] * 2)
            assert ledger.flush(5)
            return store(s3).put(name, data)

    add(ledger, *[State.OK] * 3)
    assert ledger.flush(5)
    shipping = shipper(Source(ledger), Busy(), tmp_path)
    assert [shipping.ship(), shipping.ship()] == [3, 2]
    assert len(s3.names()) == 2


def test_a_day_has_objects_of_its_own(s3, ledger, tmp_path):
    midnight = 1_767_225_600_000_000_000
    add(ledger, State.OK, decided_ns=midnight - 1)
    add(ledger, State.OK, decided_ns=midnight)
    add(ledger, State.OK, decided_ns=midnight - 5)  # the clock was set back
    assert ledger.flush(5)
    shipper(Source(ledger), store(s3), tmp_path).ship()
    dates = sorted((each.first, each.date) for each in map(Shipped.of, s3.names()))
    assert dates == [(1, "2025-12-31"), (2, "2026-01-01"), (3, "2025-12-31")]


def test_a_list_of_names_shows_what_is_missing():
    def one(first, last, count, epoch="e"):
        return Shipped(
            site="s", agent="a", date="2026-11-27", epoch=epoch, first=first, last=last, count=count
        )

    whole = [one(1, 5, 5), one(6, 9, 4), one(10, 12, 3, "f")]
    assert list(missing(whole)) == []
    assert list(missing([one(1, 5, 5), one(8, 9, 1)])) == [
        Missing(epoch="e", first=6, last=7, parts=2),
        Missing(epoch="e", first=8, last=9, parts=1),
    ]
    assert Shipped.of("frames/site=s/agent=a/e-1.jpg") is None


def test_any_agent_has_a_name_in_the_bucket():
    odd = Shipped(
        site="s", agent="line 3=ä", date="2026-11-27", epoch="e", first=1, last=2, count=2
    )
    assert odd.name.startswith("parts/date=2026-11-27/site=s/agent=line%203%3D%C3%A4/")
    assert Shipped.of(odd.name) == odd


def test_chosen_frames_and_labelled_ones_go_too(s3, ledger, tmp_path):
    for score in (0.2, 1.45, 2.5):
        state = State.NG if score > 1.5 else State.OK
        end(ledger, inspected(begin(ledger), score), state, threshold=1.5)
    assert ledger.flush(5)
    source = Source(ledger, {1: b"good", 2: b"doubtful", 3: b"alarm"})
    shipping = shipper(source, store(s3), tmp_path)
    shipping.ship()
    frames = f"frames/site=hamburg/agent=line-3/{ledger.epoch}"
    assert s3.names("frames/") == [f"{frames}-2.jpg", f"{frames}-3.jpg"]
    source.labels.append({"id": 1, "epoch": ledger.epoch, "sequence": 1, "label": "good"})
    shipping.ship()
    assert s3.get(f"{frames}-1.jpg") == b"good"
    assert b'"good"' in s3.get(f"labels/site=hamburg/agent=line-3/{ledger.epoch}-1-1.jsonl")


def test_no_more_frames_than_are_wanted(s3, ledger, tmp_path):
    for _ in range(5):
        end(ledger, inspected(begin(ledger)), State.NG, threshold=1.5)
    assert ledger.flush(5)
    source = Source(ledger, dict.fromkeys(range(1, 6), b"alarm"))
    shipper(source, store(s3), tmp_path, frames_an_hour=2).ship()
    assert len(s3.names("frames/")) == 2


def test_a_service_that_is_away_for_an_hour_costs_no_part(s3, ledger, tmp_path):
    clock, shipped = ManualClock(), tmp_path / "read"
    rounds = Rounds(
        shipper(Source(ledger), store(s3), tmp_path),
        every_s=600,
        clock=clock,
        chance=lambda: 0.5,
    )
    thread = threading.Thread(target=rounds.run)
    s3.stop()
    thread.start()
    try:
        for _ in range(60):
            add(ledger, State.OK, decided_ns=clock.utc_ns())
            pass_minute(clock)
        assert ledger.flush(5)
        wait_for(lambda: rounds.fault)
        assert f"bucket plant at {s3.endpoint}: nobody answers there" in rounds.fault
        s3.start()
        for _ in range(15):
            add(ledger, State.OK, decided_ns=clock.utc_ns())
            assert ledger.flush(5)
            pass_minute(clock)
        wait_for(lambda: rounds.fault is None)
    finally:
        rounds.stop.set()
        thread.join()
        if s3._server is None:
            s3.start()
    found = [row[0] for row in read(s3, shipped)]
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= 60
    assert list(missing(Shipped.of(name) for name in s3.names())) == []


def pass_minute(clock):
    """Let a minute pass, once everybody waits."""
    wait_for(lambda: clock.waiting)
    clock.advance(60)


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_why_nothing_can_be_put_is_one_line_without_a_key(s3):
    key = s3.key_without_rights()
    wrong = {
        "its key may not write there; allow s3:PutObject": key,
        "its secret key is another; correct secret_key": key | {"secret_key": "a-secret"},
        "its key is not known there": {},
        "nobody answers there": {"endpoint": "http://127.0.0.1:9"},
    }
    with s3.asking_for_rights():
        for said, changes in wrong.items():
            with pytest.raises(StoreError) as caught:
                store(s3, **changes).put("name", b"data")
            assert said in str(caught.value)
            assert "\n" not in str(caught.value)
            assert "a-secret" not in str(caught.value)
    with pytest.raises(StoreError, match="there is no such bucket; make it, or correct bucket"):
        store(s3, bucket="another").put("name", b"data")
    assert "a-secret" not in repr(S3Address(**vars_of(s3)))


def vars_of(s3):
    return {
        "bucket": s3.bucket,
        "endpoint": s3.endpoint,
        "region": "r",
        "access_key": "a-key",
        "secret_key": "a-secret",
    }


def test_a_cursor_that_cannot_be_kept_says_so(s3, ledger, tmp_path):
    (tmp_path / "shipper").write_text("a file in its place")
    add(ledger, State.OK)
    assert ledger.flush(5)
    with pytest.raises(ShippingError, match="shipper: File exists; make room, or name another"):
        shipper(Source(ledger), store(s3), tmp_path).ship()
