"""G3: a disk that is full, or a ledger that is, stops no inspection; what it costs is counted."""

import json
import os
import random
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

import agent.record.writer
from agent.part import Part, State
from agent.record.ledger import Ledger
from agent.record.retention import Limits
from agent.station.run import run_station
from agent.station.station import Model
from agent.station.status import Status
from tests.faults.belt import Belt, Eye, configured
from tests.records import Wants, add, settle, with_thumbnails

DISK_MB = 32
RATE = 200
MEMORY_MB = 1
FULL_S = 15.0
"""How long a disk stays full where nothing is lost."""


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of a few megabytes; gives its folder."""
    if os.geteuid():
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs"]
    if subprocess.run(["mount", *options, folder], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Something else takes every byte of the disk, also those that are given up meanwhile."""
    filler = folder / "something else"
    over = threading.Event()

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while not over.wait(0.02):
                with suppress(OSError):
                    while True:
                        file.write(bytes(4096))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        filler.unlink()


@pytest.mark.broker
def test_a_full_disk_stops_no_inspection(
    broker, small_disk, tmp_path, hear, eventually, is_full, record
):
    cycles = 20 if is_full else 1
    rng = random.Random(3)
    told: list[tuple[float, Status]] = []
    config = configured(small_disk, broker.port)
    config = replace(config, ledger=replace(config.ledger, memory_mb=MEMORY_MB))
    heard = hear(broker.settings, "atac/line1/verdict")
    stop = threading.Event()
    belt = Belt(RATE, stop)
    settled: list[Part] = []
    line = threading.Thread(
        target=run_station,
        args=(config,),
        kwargs={"cameras": [belt], "inspector": Eye(), "model": Model(threshold=1.0), "stop": stop,
                "observers": [settled.append],
                "readers": [lambda status: told.append((time.monotonic(), status))]},
    )  # fmt: skip
    line.start()
    recoveries_s = []
    try:
        eventually(lambda: len(heard.messages) > 20, 60)
        for _ in range(cycles):
            time.sleep(rng.uniform(0.0, 1.0))
            with filled(small_disk):
                # What consumers have makes room for new parts, so a full disk need not cost one.
                lost, until = told[-1][1].ledger.lost, time.monotonic() + FULL_S
                while told[-1][1].ledger.lost == lost and time.monotonic() < until:
                    time.sleep(0.02)
                time.sleep(rng.uniform(0.0, 1.0))
            free_at = time.monotonic()
            eventually(
                lambda free_at=free_at: told[-1][0] > free_at and told[-1][1].ledger.fault is None,
                60,
            )
            recoveries_s.append(told[-1][0] - free_at)
            count = len(heard.messages)
            eventually(lambda count=count: len(heard.messages) > count + 20, 60)
    finally:
        stop.set()
        line.join()
    handed_over = belt.handed_over
    with closing(sqlite3.connect(small_disk / "ledger.sqlite")) as file:
        kept = {n for (n,) in file.execute("SELECT sequence FROM triggers WHERE state NOT NULL")}
        (still_open,) = file.execute("SELECT count(*) FROM triggers WHERE state IS NULL").fetchone()
        spans = file.execute("SELECT first, last FROM losses").fetchall()
        (ended,) = file.execute("SELECT sum(ended) FROM tally").fetchone()
    lost = {n for first, last in spans for n in range(first, last + 1)}
    # What was delivered may have been removed to make room; then a consumer has it.
    told_of = {json.loads(payload)["sequence"] for _, payload in heard.messages}
    final = told[-1][1]
    record(
        "g3",
        "full disk",
        cycles=cycles,
        parts=handed_over,
        inspected=sum(part.inspection is not None for part in settled),
        recorded=len(kept | told_of),
        lost=len(lost),
        lost_says_status=len(numbers(final.ledger.lost)),
        slowest_recovery_s=round(max(recoveries_s), 2),
    )
    assert (
        len(settled)
        == handed_over
        == ended
        == sum(each.triggers for each in final.cameras.values())
    )
    assert all(part.ended.state in {State.OK, State.NG} for part in settled)
    assert still_open == 0
    assert lost
    assert numbers(final.ledger.lost) == lost
    assert not lost & (kept | told_of)
    assert lost | kept | told_of == set(range(1, handed_over + 1))
    if is_full:
        assert max(recoveries_s) <= 10


def test_a_ledger_at_its_limit_names_what_had_to_go(
    tmp_path, monkeypatch, eventually, is_full, record
):
    """SQLite's own limit, `max_page_count`, with a broker that is away."""
    if not is_full:
        monkeypatch.setattr(agent.record.writer, "_RETRY_S", 0.02)
    parts = 20_000 if is_full else 450
    limits = Limits(keep_ns=10**18, max_bytes=(64 if is_full else 4) * 1_000_000)
    path = tmp_path / "ledger.sqlite"
    picture = random.Random(5).randbytes(10_000)
    delivered: dict[str, set[int]] = {"message": set(), "picture": set()}
    sinks = [Wants(with_thumbnails)]
    with Ledger(path, agent_id="line1", limits=limits, sinks=sinks) as ledger:
        for n in range(parts):
            add(ledger, State.NG, thumbnail=picture)
            if n % 20 == 0:
                assert ledger.flush(60)
        assert ledger.flush(60)
        assert ledger.is_discarding
        assert ledger.cameras()["main"].counts[State.NG] == parts
        # The receiver is back.
        back_at = time.monotonic()
        last = 0
        while found := ledger.waiting_for("mqtt", after=last, limit=100):
            last = found[-1][0].id
            for one, event in found:
                if one.item == "thumbnail":
                    assert event.thumbnail == picture
                kind = "picture" if one.item == "thumbnail" else "message"
                delivered[kind].add(one.sequence)
            settle(ledger, *found)
        assert ledger.flush(60)
        eventually(lambda: not ledger.is_discarding and ledger.fault is None, 60)
        recovery_s = time.monotonic() - back_at
        gone = {kind: numbers(spans) for kind, spans in ledger.discarded.items()}
        lost = numbers(ledger.lost)
        assert ledger.waiting("mqtt") == 0
    record(
        "g3",
        "ledger at its limit",
        parts=parts,
        limit_bytes=limits.max_bytes,
        file_bytes=path.stat().st_size,
        pictures_discarded=len(gone["picture"]),
        messages_discarded=len(gone["message"]),
        verdicts_lost=len(lost),
        recovery_s=round(recovery_s, 2),
    )
    assert path.stat().st_size <= limits.max_bytes
    assert gone["picture"]
    for kind in ("picture", "message"):
        assert not gone[kind] & delivered[kind]
        assert not lost & (gone[kind] | delivered[kind])
        assert gone[kind] | delivered[kind] | lost == set(range(1, parts + 1))
    if is_full:
        assert recovery_s <= 10


def numbers(spans: tuple[tuple[int, int], ...]) -> set[int]:
    return {n for first, last in spans for n in range(first, last + 1)}
