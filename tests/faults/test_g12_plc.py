"""G12: a PLC that scans every 10 ms, loses readings and acknowledgements, and begins again.

The agent is a process that is killed again and again. The PLC's program runs over pymodbus; each
part is known to the camera by its number, which its score tells. No result may be another part's,
none may come twice, and every part has an end that the PLC knows. In full ten lines have a tenth
of the parts each, five of them at a time.
"""

import itertools
import multiprocessing
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.agent.plc.line import THRESHOLD, Plc, Told, score
from tests.ports import free_port

PARTS, EVERY, LINES, AT_A_TIME = 10_000, 250, 10, 10
SHORT_PARTS, SHORT_EVERY = 60, 25
FAULTS = {
    "slow": 0.01,
    "lost reading": 0.02,
    "lost writing": 0.02,
    "reconnect": 0.002,
    "restart": 0.0005,
}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What became of a line's parts."""

    parts: int
    told: Told
    wrong_in_ledger: int
    without_frame: Counter[str]
    said: Counter[str]
    kills: int
    strays: int


def test_no_result_is_another_part_s_whatever_begins_again(tmp_path, is_full, record):
    began = time.monotonic()
    if is_full:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(AT_A_TIME, context) as pool:
            run = partial(line, tmp_path, parts=PARTS, every=EVERY)
            lines = list(pool.map(run, range(1, LINES + 1)))
    else:
        lines = [line(tmp_path, 1, parts=SHORT_PARTS, every=SHORT_EVERY)]
    told = [each.told for each in lines]
    quantiles = statistics.quantiles((s for each in told for s in each.latencies_s), n=100)
    ends = sum((each.ends for each in told), Counter())
    record(
        "g12",
        "plc",
        lines=len(lines),
        parts=sum(each.parts for each in lines),
        ends=dict(ends),
        wrong=sum(each.wrong for each in told),
        twice=sum(each.twice for each in told),
        wrong_in_ledger=sum(each.wrong_in_ledger for each in lines),
        without_frame=sum((each.without_frame for each in lines), Counter()),
        said=sum((each.said for each in lines), Counter()),
        agent_kills=sum(each.kills for each in lines),
        plc_restarts=sum(each.restarts for each in told),
        strays=sum(each.strays for each in lines),
        seconds=round(time.monotonic() - began, 1),
        trigger_to_result_ms={"p50": round(quantiles[49] * 1e3), "p99": round(quantiles[98] * 1e3)},
    )
    for each in lines:
        assert each.kills
        assert each.told.wrong == each.told.twice == each.wrong_in_ledger == 0
    assert ends["OK"] + ends["NG"] > ends.total() // 3


def line(folder: Path, seed: int, *, parts: int, every: int) -> Seen:
    """One agent and one PLC; the agent is killed each time when about `every` parts have ended."""
    folder = folder / f"line-{seed}"
    folder.mkdir()
    modbus = free_port()
    rng, kills, triggers = random.Random(seed), 0, itertools.count()
    with (
        socket.socket(type=socket.SOCK_DGRAM) as light,
        socket.socket(type=socket.SOCK_DGRAM) as camera,
        (folder / "log").open("a") as log,
    ):
        camera.bind(("127.0.0.1", 0))
        module = (sys.executable, "-m", "tests.faults.plc_line")
        command = (*module, str(folder), str(modbus), str(camera.fileno()))

        def started() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, stderr=log, pass_fds=(camera.fileno(),))

        def show(number: int, _count: int) -> None:
            light.sendto(f"{number} {next(triggers)}".encode(), camera.getsockname())

        plc = Plc(modbus, parts, show, faults=FAULTS, seed=seed, every_s=0.03)
        agent = started()
        plc.start()
        try:
            next_kill = every
            while plc.is_alive():
                plc.join(0.2)
                assert agent.poll() is None, "the agent has ended by itself"
                if len(plc.ended) >= next_kill:
                    next_kill += rng.randrange(every, 2 * every)
                    agent.send_signal(signal.SIGKILL)
                    agent.wait()
                    kills += 1
                    agent = started()
        finally:
            plc.stopping.set()
            plc.join(10)
            agent.terminate()
            agent.wait(30)
    assert len(plc.ended) == parts
    wrong, without_frame = in_ledger(folder)
    said = (folder / "log").read_text().splitlines()
    return Seen(
        parts=parts,
        told=plc.told,
        wrong_in_ledger=wrong,
        without_frame=without_frame,
        said=Counter(
            each for each in said if each.startswith("camera") and "count went" not in each
        ),
        kills=kills,
        strays=plc.program.strays,
    )


def in_ledger(folder: Path) -> tuple[int, Counter[str]]:
    """Rows of named parts whose score is another part's, and why parts had no frame."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        rows = ledger.execute(
            "SELECT part_id, score, state FROM triggers "
            "WHERE part_id LIKE 'part-%' AND score NOT NULL"
        ).fetchall()
        why = ledger.execute("SELECT reason FROM triggers WHERE state = 'NO_FRAME'").fetchall()
    wrong = 0
    for part_id, found, state in rows:
        wanted = score(int(part_id.removeprefix("part-"))) / 1000
        is_right_state = state == "TIMEOUT" or (state == "OK") == (wanted <= THRESHOLD)
        wrong += round(found, 3) != wanted or not is_right_state
    return wrong, Counter(reason for (reason,) in why)
