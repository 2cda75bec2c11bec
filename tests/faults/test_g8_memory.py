"""G8: the agent's memory at ten times the demo's rate.

`agent run` as a user starts it: the demo's bundle, the conveyor, a real broker, every part a
message. Both processes are watched from outside, and the slope is that of their sum.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from agent.demo import BUNDLE
from tests.faults.growth import held, slope

pytestmark = pytest.mark.broker

ROOT = Path(__file__).parents[2]
DEMO_PER_MINUTE = float(
    re.search(r"parts_per_minute: (\d+)", (ROOT / "agent.yaml").read_text(encoding="utf-8"))[1]
)
SLOPE_MB_H = 1.0
SAMPLE_S = 1.0
CONFIGURATION = """\
agent: {{id: line-3}}
bundle: {{path: {bundle}}}
camera: {{type: conveyor, parts_per_minute: {rate}}}
ledger: {{path: ledger.sqlite, max_mb: 64}}
evidence: {{folder: evidence, max_files: 200}}
mqtt: {{host: {host}, port: {port}, every_part: true, health_s: 1, drain_s: 60}}
"""


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def wait_until_steady(pid: int) -> None:
    """Wait until a start, however slow the machine, has made all its threads."""
    deadline, before = time.monotonic() + 120, 1
    while time.monotonic() < deadline:
        time.sleep(2)
        now = held(pid).threads
        if now == before > 1:
            return
        before = now
    raise AssertionError(f"the agent is not up after two minutes: {before} threads")


def test_memory_does_not_grow(broker, tmp_path, is_full, record):
    warm_up_s, watched_s = (600, 1200) if is_full else (2, 4)
    configuration = tmp_path / "agent.yaml"
    configuration.write_text(
        CONFIGURATION.format(
            bundle=BUNDLE, rate=10 * DEMO_PER_MINUTE, host=broker.host, port=broker.port
        )
    )
    agent = subprocess.Popen(
        [Path(sys.executable).with_name("agent"), "run", "--config", configuration, "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_until_steady(agent.pid)
        time.sleep(warm_up_s)
        (child,) = children(agent.pid)
        times, sizes = [], {"agent": [], "inference": []}
        begun = time.monotonic()
        first = held(agent.pid)
        while time.monotonic() - begun < watched_s:
            time.sleep(SAMPLE_S)
            times.append(time.monotonic() - begun)
            sizes["agent"].append(held(agent.pid).rss_kb)
            sizes["inference"].append(held(child).rss_kb)
        last = held(agent.pid)
        assert children(agent.pid) == [child]  # it was not started anew
    finally:
        agent.send_signal(signal.SIGTERM)
        out, _ = agent.communicate(timeout=120)
    assert agent.returncode == 0
    summary = json.loads(out)
    both = [sum(pair) for pair in zip(*sizes.values(), strict=True)]
    slopes = {name: round(slope(times, each), 3) for name, each in sizes.items()}
    slopes["both"] = round(slope(times, both), 3)
    record(
        "g8",
        "memory",
        parts_per_minute=10 * DEMO_PER_MINUTE,
        warm_up_s=warm_up_s,
        watched_s=watched_s,
        parts=summary["triggers"],
        parts_per_second=round(summary["parts_per_second"], 2),
        delivered=summary["delivered"],
        undelivered=summary["undelivered"],
        rss_kb={name: [each[0], each[-1]] for name, each in sizes.items()},
        slope_mb_h=slopes,
        threads=[first.threads, last.threads],
        files=[first.files, last.files],
    )
    assert sum(summary["counts"].values()) == summary["triggers"] > 0
    assert last.threads <= first.threads
    assert last.files <= first.files + 2  # SQLite opens its temporary files as it needs them
    if is_full:  # seconds say nothing about hours
        assert summary["parts_per_second"] > 0.95 * 10 * DEMO_PER_MINUTE / 60
        assert slopes["both"] <= SLOPE_MB_H
