"""G12: a PLC that scans every 10 ms, loses readings and acknowledgements, and begins again.

The agent is a process that is killed again and again. The PLC's program runs over pymodbus; each
part is known to the camera by its number, which its score tells. No result may be another part's,
none may come twice, and every part has an end that the PLC knows.
"""

import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing

from tests.agent.plc.line import THRESHOLD, Plc, score
from tests.ports import free_port

FULL = {"parts": 10_000, "every": 250}
SHORT = {"parts": 60, "every": 25}
FAULTS = {
    "slow": 0.01,
    "lost reading": 0.02,
    "lost writing": 0.02,
    "reconnect": 0.002,
    "restart": 0.0005,
}


def test_no_result_is_another_part_s_whatever_begins_again(tmp_path, is_full, record):
    sizes = FULL if is_full else SHORT
    modbus, camera = free_port(), free_port(socket.SOCK_DGRAM)
    command = [sys.executable, "-m", "tests.faults.plc_line", tmp_path, str(modbus), str(camera)]
    command = [str(each) for each in command]
    rng, kills = random.Random(1), 0
    with (
        socket.socket(type=socket.SOCK_DGRAM) as light,
        (tmp_path / "log").open("a") as log,
    ):

        def show(number, _count):
            light.sendto(str(number).encode(), ("127.0.0.1", camera))

        plc = Plc(modbus, sizes["parts"], show, faults=FAULTS, seed=1, every_s=0.03)
        began = time.monotonic()
        agent = subprocess.Popen(command, stderr=log)
        plc.start()
        try:
            next_kill = sizes["every"]
            while plc.is_alive():
                plc.join(0.2)
                assert agent.poll() is None, "the agent has ended by itself"
                if len(plc.ended) >= next_kill:
                    next_kill += rng.randrange(sizes["every"], 2 * sizes["every"])
                    agent.send_signal(signal.SIGKILL)
                    agent.wait()
                    kills += 1
                    agent = subprocess.Popen(command, stderr=log)
            seconds = time.monotonic() - began
        finally:
            plc.stopping.set()
            plc.join(10)
            agent.terminate()
            agent.wait(30)
    told = plc.told
    wrong = in_ledger(tmp_path)
    if told.latencies_s:
        quantiles = statistics.quantiles(told.latencies_s, n=100)
    record(
        "g12",
        "plc",
        parts=sizes["parts"],
        ends=dict(told.ends),
        wrong=told.wrong,
        twice=told.twice,
        wrong_in_ledger=wrong,
        without_frame=without_frame(tmp_path),
        agent_kills=kills,
        plc_restarts=told.restarts,
        strays=plc.program.strays,
        seconds=round(seconds, 1),
        trigger_to_result_ms={"p50": round(quantiles[49] * 1e3), "p99": round(quantiles[98] * 1e3)},
    )
    assert kills
    assert len(plc.ended) == sizes["parts"]
    assert told.wrong == told.twice == wrong == 0
    assert told.ends["OK"] + told.ends["NG"] > sizes["parts"] // 3


def without_frame(folder):
    """Why parts had no frame, and what the agents said of frames that they gave to no part."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        why = ledger.execute(
            "SELECT reason, count(*) FROM triggers WHERE state = 'NO_FRAME' GROUP BY reason"
        ).fetchall()
    said = (folder / "log").read_text().splitlines()
    return {"parts": dict(why), "said": dict(Counter(x for x in said if x.startswith("camera")))}


def in_ledger(folder):
    """Rows of named parts whose score is another part's."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        rows = ledger.execute(
            "SELECT part_id, score, state FROM triggers "
            "WHERE part_id LIKE 'part-%' AND score NOT NULL"
        ).fetchall()
    wrong = 0
    for part_id, found, state in rows:
        wanted = score(int(part_id.removeprefix("part-"))) / 1000
        is_right_state = state == "TIMEOUT" or (state == "OK") == (wanted <= THRESHOLD)
        wrong += round(found, 3) != wanted or not is_right_state
    return wrong
