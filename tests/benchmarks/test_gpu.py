"""The script for a GPU machine runs from end to end on the stand-ins."""

import json
import sys
from types import SimpleNamespace

import pytest

from agent.demo import BUNDLE
from benchmarks.gpu import measure, run


def measured(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["run", "--bundle", str(BUNDLE), *options])
    run.main()
    printed = capsys.readouterr()
    assert "of the bare network's rate" in printed.err
    return json.loads(printed.out)


def test_every_part_finds_something_on_the_stand_ins(monkeypatch, capsys, kernels):
    # Built once for all tests.
    monkeypatch.setattr("benchmarks.gpu.stand_ins.Kernels", lambda _folder: kernels)
    found = measured(monkeypatch, capsys, "--dry", "--network", "tensorrt")
    assert found["dry"] is True
    assert "say nothing" in found["note"]
    for part in (
        *("driver", "kernels", "verdicts", "latency", "precisions", "stages", "cameras"),
        "floors",
    ):
        assert found[part].keys().isdisjoint({"failed", "refused"}), found[part]
    assert found["driver"]["view_1"]["equal"] == 1
    assert found["driver"]["replay_is_equal"]
    used = found["runtimes"]["used"]
    assert used.startswith("tensorrt ")
    assert found["runtimes"]["tensorrt"]["fp32"]["pass_ms"] > 0
    assert found["runtimes"]["cuda"]["fp32"]["pass_ms"] > 0
    verdicts = found["verdicts"]["networks"]
    assert {name.partition(" ")[0] for name in verdicts} == {"tensorrt", "cuda"}
    assert all(each["flips"] == 0 for each in verdicts.values())
    assert found["stages"]["small mono"]["kernels"] > 0
    assert found["precisions"][used]["p99_ms"] > 0
    for name in ("small mono", "odd mono"):
        kernels = found["kernels"][name]
        assert kernels["view_1"]["within_1"] == kernels["view_2"]["within_1"] == 1
        assert kernels["box_equal"]
    assert found["kernels"]["bayer_equals_rgb"]
    assert sum(found["stages"]["small rgb"]["share"].values()) == pytest.approx(1)
    # torch sees no GPU here and TensorRT-RTX cannot be run: answers like any other.
    assert "refused" in found["runtimes"]["torch fp16"]
    assert found["runtimes"]["tensorrt_rtx"]["fp32"].keys() <= {"refused", "failed"}


def test_a_runtime_that_takes_its_process_with_it_is_an_answer_too(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run"])
    found = measure._probed_apart(SimpleNamespace(plans=tmp_path), "tensorrt_rtx")
    assert found["any"]["failed"].startswith("ended with -6")


def test_a_dry_run_leaves_no_results_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["run", "--dry", "--out", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit):
        run.main()
    assert not list(tmp_path.iterdir())
