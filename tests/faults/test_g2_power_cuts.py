"""G2: a power cut loses no committed row; with `synchronous = NORMAL` it would."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from agent.part import State
from agent.record.ledger import Ledger
from agent.record.runs import ABANDONED
from tests.faults.power_cut_disk import PowerCutDisk, mount, unmount, why_not
from tests.records import Wants, add, settle

ROOT = Path(__file__).parents[2]
DISK_BYTES = 48 << 20
CUTS_A_DISK = 10


def write(folder: Path, told: int, synchronous: str) -> None:
    """Record parts in groups as they come; `told` always holds how many are committed."""
    sinks = [Wants()]
    with Ledger(folder / "ledger.sqlite", agent_id="line1", sinks=sinks) as ledger:
        # In the owner thread and outside a transaction, where SQLite takes it.
        ledger._writer.read(lambda file: file.execute(f"PRAGMA synchronous = {synchronous}"))
        rng = random.Random(1)
        while True:
            add(ledger, *[State.NG] * rng.randrange(1, 6))
            assert ledger.flush(60)
            assert ledger.fault is None
            os.pwrite(told, ledger.total().to_bytes(8, "little"), 0)
            newest = ledger.newest("mqtt")
            settle(ledger, *ledger.waiting_for("mqtt", after=newest - 1, limit=1))


def survivors(place: Path, image: Path) -> tuple[int, int, int]:
    """How many first verdicts and alarms the agent finds, and how many triggers had begun."""
    folder = place / "after"
    folder.mkdir(exist_ok=True)
    mount(image, folder)
    try:
        if not (folder / "ledger.sqlite").exists():
            return 0, 0, 0
        with Ledger(folder / "ledger.sqlite", agent_id="line1") as ledger:
            assert ledger.fault is None
            # With NORMAL a cut can take every row, and the camera's account with them.
            accounts = ledger.cameras().values()
            assert sum(sum(each.counts.values()) for each in accounts) == ledger.total()
        assert not list(folder.glob("*.damaged-*"))
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as file:
            verdicts = unbroken(
                file, f"SELECT sequence FROM triggers WHERE reason IS NOT '{ABANDONED}'"
            )
            alarms = unbroken(file, "SELECT sequence FROM deliveries")
            (begun,) = file.execute("SELECT count(*) FROM triggers").fetchone()
        return verdicts, alarms, begun
    finally:
        unmount(folder)


def unbroken(file: sqlite3.Connection, query: str) -> int:
    """The last sequence before the first gap."""
    found = {sequence for (sequence,) in file.execute(query)}
    return next(n for n in range(len(found) + 1) if n + 1 not in found)


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_a_power_cut_loses_nothing_that_was_committed(tmp_path, is_full, record, synchronous):
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    cuts = 100 if is_full else 4
    rng = random.Random(7)
    committed_rows = lost_cuts = lost_rows = unflushed = 0
    for first in range(0, cuts, CUTS_A_DISK):
        place = tmp_path / f"disk-{first}"
        place.mkdir()
        told = place / "committed"
        told.write_bytes(bytes(8))
        with PowerCutDisk(place, DISK_BYTES) as disk:
            writer = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.test_g2_power_cuts",
                 disk.folder, told, synchronous],
                cwd=ROOT,
            )  # fmt: skip
            try:
                for _ in range(min(CUTS_A_DISK, cuts - first)):
                    before = int.from_bytes(told.read_bytes(), "little")
                    while int.from_bytes(told.read_bytes(), "little") < before + 20:
                        assert writer.poll() is None
                        time.sleep(0.005)
                    time.sleep(rng.uniform(0.0, 0.3))
                    committed = int.from_bytes(told.read_bytes(), "little")
                    unflushed += disk.cut(place / "image", rng)
                    verdicts, alarms, begun = survivors(place, place / "image")
                    assert begun >= min(verdicts, committed) * (synchronous == "FULL")
                    missing = max(0, committed - min(verdicts, alarms))
                    committed_rows += committed
                    lost_rows += missing
                    lost_cuts += missing > 0
            finally:
                writer.kill()
                writer.wait()
        (place / "image").unlink()
    record(
        "g2",
        f"synchronous {synchronous}",
        power_cuts=cuts,
        cuts_that_lost=lost_cuts,
        committed_parts=committed_rows,
        committed_parts_lost=lost_rows,
        unflushed_blocks=unflushed,
    )
    if synchronous == "FULL":
        assert lost_rows == 0
    else:
        assert lost_rows > 0, "the control must lose, or the test sees nothing"


if __name__ == "__main__":
    write(Path(sys.argv[1]), os.open(sys.argv[2], os.O_RDWR), sys.argv[3])
