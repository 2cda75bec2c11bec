"""The script for a GPU machine runs from end to end on the stand-ins."""

import json
import sys

import pytest

from agent.demo import BUNDLE
from benchmarks.gpu import run


def measured(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["run", "--bundle", str(BUNDLE), *options])
    run.main()
    return json.loads(capsys.readouterr().out)


def test_every_part_finds_something_on_the_stand_ins(monkeypatch, capsys):
    found = measured(monkeypatch, capsys, "--dry")
    assert found["dry"] is True
    assert "say nothing" in found["note"]
    for part in ("kernels", "verdicts", "latency", "stages", "cameras", "floors"):
        assert found[part].keys().isdisjoint({"failed", "refused"}), found[part]
    assert found["runtimes"]["used"].startswith("tensorrt ")
    assert found["verdicts"]["flips"] == 0
    for name in ("small mono", "odd mono"):
        kernels = found["kernels"][name]
        assert kernels["view_1"]["within_1"] == kernels["view_2"]["within_1"] == 1
        assert kernels["box_equal"]
    assert found["kernels"]["bayer_equals_rgb"]
    assert sum(found["stages"]["small rgb"]["share"].values()) == pytest.approx(1)
    # torch sees no GPU here, and that is an answer like any other.
    assert "refused" in found["runtimes"]["torch fp16"]


def test_a_dry_run_leaves_no_results_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["run", "--dry", "--out", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit):
        run.main()
    assert not list(tmp_path.iterdir())
