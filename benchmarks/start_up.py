"""How soon `agent run` has its first verdict, what memory it takes, and that torch stays away.

    python -m benchmarks.start_up --result benchmarks/results/start_up.json
    python -m benchmarks.start_up --bundle runs/real_line/mvtec_bottle/bundle --precision int8 \
        --backend openvino --images ../shared/data/mvtec_bottle/test

Each start is a new process, from its creation to the time that the ledger has for the first
verdict; the first start, whose files and compiled network may not be in any cache and whose modules
are compiled to byte code, is `first_s` and in no median. Byte code lies in a folder of the
measurement's own, as an installed product has it, whatever the environment says. Memory is the peak
of the agent and of its child, each with all the pages that it shares with others, sampled every
0.2 s while `--parts` parts run. Without `--images` the frames are the generated parts of the demo.
No broker answers.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from agent.demo import BUNDLE
from benchmarks.machine import described, write_result

AGENT = str(Path(sys.executable).parent / "agent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="calibrated")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--parts", type=int, default=30)
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as byte_code:
        starts = [started(options, byte_code) for _ in range(options.starts + 1)]
    later = starts[1:]
    result = {
        "machine": described(),
        "bundle": options.bundle.parent.name,
        "backend": starts[0]["backend"],
        "first_s": starts[0]["first_verdict_s"],
        "first_verdict_s": statistics.median(one["first_verdict_s"] for one in later),
        "agent_mib": max(one["agent_mib"] for one in starts),
        "child_mib": max(one["child_mib"] for one in starts),
        "torch": any(one["torch"] for one in starts),
        "starts": starts,
    }
    write_result(result, options.result)


def started(options: argparse.Namespace, byte_code: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPYCACHEPREFIX": byte_code}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        config, ledger = Path(folder) / "agent.yaml", Path(folder) / "ledger.sqlite"
        config.write_text(yaml.safe_dump(settings(options, ledger)), encoding="utf-8")
        began_ns = time.time_ns()
        command = [AGENT, "run", "--config", config, "--parts", str(options.parts), "--json"]
        peaks = {"agent_mib": 0.0, "child_mib": 0.0}
        maps = ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            while process.poll() is None:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                pids = [process.pid, *map(int, read(children).split())]
                for name, pid in zip(peaks, pids, strict=False):
                    peaks[name] = max(peaks[name], peak_mib(pid))
                maps = "".join(read(Path(f"/proc/{pid}/maps")) for pid in pids) or maps
                time.sleep(0.2)
            assert process.stdout is not None
            summary = process.stdout.read()
        if process.returncode:
            raise SystemExit(f"agent run ended with {process.returncode}")
        with closing(sqlite3.connect(ledger)) as database:
            [(first_ns,)] = database.execute("SELECT min(decided_ns) FROM triggers")
    seconds = round((first_ns - began_ns) / 1e9, 3)
    return {
        "first_verdict_s": seconds,
        **peaks,
        "torch": "libtorch" in maps,
        "backend": json.loads(summary)["backend"],
    }


def settings(options: argparse.Namespace, ledger: Path) -> dict[str, Any]:
    camera = (
        {"type": "conveyor", "parts_per_minute": 600}
        if options.images is None
        else {
            "type": "folder",
            "path": str(options.images.resolve()),
            "after_last": "repeat",
        }
    )
    return {
        "agent": {"id": "bench"},
        "bundle": {
            "path": str(options.bundle.resolve()),
            "precision": options.precision,
            "backend": options.backend,
        },
        "camera": camera,
        "ledger": {"path": str(ledger)},
        "mqtt": {"host": "127.0.0.1", "port": 1, "drain_s": 0},
    }


def peak_mib(pid: int) -> float:
    lines = read(Path(f"/proc/{pid}/status")).splitlines()
    found = (int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return next(found, 0.0)


def read(path: Path) -> str:
    """A file of /proc, empty where its process has gone."""
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""


if __name__ == "__main__":
    main()
