"""Many models are trained: a line that fails or a worker that dies costs the others nothing."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.fleet.training import Cluster, _workplace, missing_in, sets_in, train_here, train_on
from engine.bundle import open_bundle
from engine.errors import ConfigurationError

STUB = """
import json, os, pathlib, sys, time
from tests.tiny_bundle import tiny_bundle
assert sys.argv[1] == "train", sys.argv
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
data = pathlib.Path(options.get("--data") or options["--good"])
gain = next(path for path in data.rglob("*.txt")).read_text()
if gain == "bad":
    sys.exit("agent: no image can be learnt from")
marks = pathlib.Path(options["--marks"])
mark = marks / f"begun-{gain}"
is_first = not mark.exists()
mark.with_suffix(".new").write_text(str(os.getppid()))
mark.with_suffix(".new").rename(mark)
while is_first and gain == "42":
    time.sleep(0.05)  # until it is killed
tiny_bundle(pathlib.Path(options["--out"]), gain=float(gain))
"""
"""Makes a bundle as `agent train` would; the first try for line-1 never ends."""


@pytest.fixture
def place(tmp_path):
    """Three sets: what is in them names the bundle."""
    for number in range(3):
        folder = tmp_path / "sets" / f"line-{number}" / "good"
        folder.mkdir(parents=True)
        (folder / "gain.txt").write_text(str(41 + number))
    return tmp_path


def test_lines_are_trained_one_after_another(place):
    (place / "sets/line-1/good/gain.txt").write_text("bad")
    frames = place / "sets/line-2/frames"
    frames.mkdir()
    (place / "sets/line-2/good/gain.txt").rename(frames / "43.txt")
    record = {"epoch": "0123456789ab", "sequence": 1, "label": "good", "file": "frames/43.txt"}
    (place / "sets/line-2/labels.jsonl").write_text(json.dumps(record))
    (place / "begun-42").touch()
    sets = missing_in(place / "out", sets_in(place / "sets"))
    arguments = ["--marks", str(place)]
    done = {one.line: one for one in train_here(sets, place / "out", arguments, command=STUB)}
    assert done["line-1"].failure == "no image can be learnt from"
    assert list(missing_in(place / "out", sets)) == ["line-1"]
    for line in ("line-0", "line-2"):
        assert open_bundle(place / "out" / line).id == done[line].bundle.id
    with pytest.raises(ConfigurationError, match="has no folders"):
        sets_in(place / "sets" / "line-0" / "good")


def test_what_a_killed_worker_has_left_is_removed_by_the_next(place, monkeypatch):
    monkeypatch.setattr("agent.fleet.training.tempfile.tempdir", str(place / "tmp"))
    (place / "tmp").mkdir()
    code = "from agent.fleet.training import _workplace\n"
    code += "with _workplace() as place:\n    print(place, flush=True)\n    input()\n"
    environment = {**os.environ, "TMPDIR": str(place / "tmp")}
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    left = Path(worker.stdout.readline().strip())
    with _workplace():
        assert left.is_dir()  # its owner lives
    worker.kill()
    worker.communicate()
    assert left.is_dir()
    with _workplace() as ours:
        assert list((place / "tmp").iterdir()) == [ours]
    assert not ours.exists()


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install '.[fleet]'"
)
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_is_killed_costs_no_line(place):
    pytest.importorskip("ray")
    killed = []

    def kill() -> None:
        while not (mark := place / "begun-42").exists():
            time.sleep(0.05)
        killed.append(int(mark.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    sets = sets_in(place / "sets")
    done = list(
        train_on(
            Cluster(address="local", retries=2),
            sets,
            place / "out",
            ["--marks", str(place)],
            command=STUB,
        )
    )
    assert [one.failure for one in done] == [None, None, None]
    assert {one.line for one in done} == set(sets)
    assert len(killed) == 1


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install '.[fleet]'"
)
def test_a_cluster_that_cannot_be_used_is_one_line(place, monkeypatch):
    import ray

    def other(**_):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 1.0\n    Python: 3.9\n"
            "This process was started with:\n    Ray: 2.60.0\n"
        )

    def unreached(**_):
        raise ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:6379")

    monkeypatch.setattr(ray, "init", unreached)
    with pytest.raises(ConfigurationError, match="is RAY_AUTH_MODE here as on its nodes"):
        list(train_on(Cluster(address="head:6379"), {}, place / "out", []))
    monkeypatch.setattr(ray, "init", other)
    cluster = Cluster(address="head:6379")
    with pytest.raises(ConfigurationError, match="Version mismatch: The cluster") as refused:
        list(train_on(cluster, sets_in(place / "sets"), place / "out", []))
    assert "\n" not in str(refused.value)
