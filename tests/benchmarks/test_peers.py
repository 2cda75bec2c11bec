"""What one would pick instead: turns, ratios and the process of the peers, without the peers.

anomalib is not installed beside the product, so a stand-in has the inferencer's place.
"""

import json
import os
import sys
import threading

import cv2
import pytest

from agent.demo import BUNDLE
from benchmarks.peers import __main__ as benchmark
from benchmarks.peers.turns import EXPORTS, Turn, told, turn
from engine.image import read_image
from tests.tiny_bundle import good_part

STAND_IN = """
import os, sys

print("libraries print what they like")

class OpenVINOInferencer:
    def __init__(self, path, device, config):
        if not path.exists():
            raise RuntimeError(f"cannot open {path.resolve()}")
        self.busy = False
        with open("settings", "a") as file:
            print(config["INFERENCE_NUM_THREADS"], file=file)

    def predict(self, pixels):
        assert pixels.shape == (256, 256, 3) and pixels.dtype == "uint8"
        assert not self.busy, "two threads in one inferencer"
        self.busy = True
        os.sched_yield()
        self.busy = False
"""


@pytest.fixture
def peers_folder(tmp_path, monkeypatch):
    """As `set_up` leaves it: a Python that finds a stand-in for anomalib, and one model of two."""
    package = tmp_path / "packages" / "anomalib"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "deploy.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "venv").symlink_to(sys.prefix)
    (folder / "there.xml").touch()
    exported = [
        {"name": "There", "precision": "fp32", "file": "there.xml"},
        {"name": "Gone", "precision": "int8", "file": "gone.xml"},
    ]
    (folder / EXPORTS).write_text(json.dumps({"exported": exported, "missing": {}}))
    return folder


def test_a_turn_counts_what_all_lanes_did_in_it():
    seen, lanes = [], set()
    met = threading.Barrier(2, timeout=10)

    def look(frame):
        if threading.get_ident() not in lanes:  # the look before the time begins
            lanes.add(threading.get_ident())
            met.wait()
            return 2
        seen.append(frame)
        return 1 + frame % 2

    done = turn(look, [0, 1, 2, 3], lanes=2, seconds=0.05)
    assert done.parts == len(seen)
    assert done.passes == sum(1 + frame % 2 for frame in seen)
    assert set(seen) == {0, 1, 2, 3}
    assert done.passes_per_second > 0


def test_a_part_that_was_begun_is_finished():
    done = turn(lambda _frame: 1, ["only"], lanes=1, seconds=1e-9)
    assert (done.parts, done.passes) == (1, 1)


def test_rates_are_as_if_every_part_were_looked_at_twice():
    contender = benchmark.Contender(
        name="x",
        precision="fp32",
        passes=2,
        take=lambda _seconds: Turn(parts=4, passes=7, passes_per_second=14.0),
    )
    assert benchmark.played([contender], 0, 1.0) == {
        "x, fp32": {"parts": 4, "looked_twice": 0.75, "parts_per_second": 7.0}
    }


def rounds_of(**rates):
    names = {
        "open": "this product, OpenVINO, fp32",
        "onnx": "this product, ONNX Runtime, fp32",
        "int8": "this product, OpenVINO, int8",
        "peer": "Peer, fp32",
    }
    contenders = [
        benchmark.Contender(
            name=names[key].rpartition(", ")[0],
            precision=names[key].rpartition(", ")[2],
            passes=1 if key == "peer" else 2,
            take=lambda _seconds: None,
        )
        for key in rates
    ]
    rounds = [
        {
            names[key]: {"parts_per_second": rate, "looked_twice": 0.5}
            for key, rate in zip(rates, one, strict=True)
        }
        for one in zip(*rates.values(), strict=True)
    ]
    return contenders, rounds


def test_ratios_are_of_one_round_and_one_precision():
    # The machine was half as fast in the second round, for all.
    found = benchmark.summary(
        *rounds_of(open=[12, 6, 12], onnx=[8, 4, 8], int8=[99, 99, 99], peer=[4, 2, 3])
    )
    assert found["faster_by"] == {
        "Peer, fp32": {"this product, OpenVINO": 3.0, "this product, ONNX Runtime": 2.0}
    }
    assert found["parts_per_second"]["Peer, fp32"] == 3
    assert set(found["looked_twice"].values()) == {0.5}
    assert len(found["looked_twice"]) == 3  # a peer looks once, which is all it does


def test_each_peer_takes_turns_in_the_faster_of_its_ways(peers_folder, monkeypatch):
    monkeypatch.setattr(benchmark, "TRIAL_S", 0.01)
    frames = [good_part(0), cv2.cvtColor(good_part(1), cv2.COLOR_RGB2GRAY)]
    exports = json.loads((peers_folder / EXPORTS).read_text())
    with benchmark.Peers(peers_folder, frames) as process:
        (there,) = benchmark.peers(process, exports)
        seen = there.take(0.01)
    assert there.label == "There, fp32"
    assert seen.parts == seen.passes > 0
    # One inferencer for each core, and one that has them all.
    threads = (peers_folder / "settings").read_text().split()
    cores = os.cpu_count()
    assert {"1", str(cores)} == set(threads)
    assert threads.count("1") >= cores
    rates = {way["lanes"]: way["parts_per_second"] for way in exports["exported"][0]["trial"]}
    assert rates[exports["exported"][0]["lanes"]] == max(rates.values())
    assert exports["missing"] == {"Gone, int8": "RuntimeError: cannot open gone.xml"}


def test_a_process_of_the_peers_that_ends_is_told(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o700)
    with (
        pytest.raises(RuntimeError, match="has ended"),
        benchmark.Peers(tmp_path, [good_part(0)]),
    ):
        pass


def test_one_command_measures_all_and_names_no_folder(peers_folder, monkeypatch, capsys, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), good_part(number))
    result = tmp_path / "result.json"
    monkeypatch.setattr(benchmark, "TRIAL_S", 0.01)
    arguments = ["--images", images, "--peers", peers_folder, "--bundle", BUNDLE]
    arguments += ["--seconds", "0.01", "--rounds", "2", "--result", result]
    monkeypatch.setattr(sys, "argv", ["peers", *map(str, arguments)])
    benchmark.main()
    text = result.read_text()
    found = json.loads(text)
    assert list(found["rounds"][0]) == list(reversed(found["rounds"][1]))
    assert list(found["faster_by"]) == ["torch, a plain loop, fp32", "There, fp32"]
    assert all(set(ratios) == set(benchmark.OURS) for ratios in found["faster_by"].values())
    assert found["frames"]["shape"] == list(read_image(images / "0.png").shape)
    assert str(tmp_path) not in text
    assert '"/' not in text
    told_now = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["peers", "--show", "--result", str(result)])
    benchmark.main()
    shown = capsys.readouterr().out
    assert shown in told_now
    assert "| There, fp32 |" in shown
    assert "- Gone, int8: RuntimeError: cannot open gone.xml" in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Errno 2] No such file: '/home/someone/x.xml'", "[Errno 2] No such file: 'x.xml'"),
        ("no nncf at https://host.example/simple/nncf", "no nncf at …"),
        (
            "from src/cpp/infer_request.cpp:117:\n  1 / 2",
            "from src/cpp/infer_request.cpp:117: 1 / 2",
        ),
        (ValueError("/a/b/c.py broke"), "ValueError: c.py broke"),
    ],
)
def test_failures_are_told_without_folders_and_hosts(text, expected):
    assert told(text) == expected


def test_without_a_set_up_it_says_so_at_once(tmp_path, monkeypatch, capsys):
    cv2.imwrite(str(tmp_path / "0.png"), good_part(0))
    monkeypatch.setattr(sys, "argv", ["peers", "--images", str(tmp_path), "--peers", str(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "run benchmarks.peers.set_up first" in capsys.readouterr().err
