"""`agent bench`: what it reports adds up, and what it recommends kept every verdict."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bench import BareNetwork, LineSpeed, Round, Speed, compared, recommended
from engine.errors import BackendError
from tests.tiny_bundle import tiny_bundle

AGENT = Path(sys.executable).parent / "agent"


def bench(*arguments):
    done = subprocess.run(
        [AGENT, "bench", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_one_round_of_line_and_bare_network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = tiny_bundle(tmp_path / "bundle")
    options = ("--bundle", bundle.path, "--backend", "onnxruntime", "--megapixels", 0.05)
    code, out, err = bench(*options, "--seconds", 0.5, "--rounds", 1, "--json")
    assert code == 0, err
    (speed,) = json.loads(out)["speeds"]
    (only,) = speed["rounds"]
    assert speed["backend"] == "onnxruntime cpu fp32"
    assert speed["score_difference"] == 0
    assert speed["objections"] is None  # this bundle has no parity.json
    line = only["saturated"]
    allowed = only["bare"]["passes_per_second"] / line["passes_per_part"]
    assert only["share_of_bare"] == pytest.approx(line["parts_per_second"] / allowed)
    bound = min(allowed, speed["cores"] * 1e3 / line["cpu_ms_per_part"])
    assert only["share_of_bound"] == pytest.approx(line["parts_per_second"] / bound)
    for name in ("view_1", "pass_1", "end_to_end"):
        stage = line["stages"][name]
        assert 0 < stage["p50_ms"] <= stage["p95_ms"] <= stage["p99_ms"]
    code, out, err = bench("--bundle", bundle.path, "--images", tmp_path / "bundle")
    assert (code, out) == (2, "")
    assert "there are no images below it" in err


def speed(backend: str, rate: float, objections: tuple[str, ...] | None) -> Speed:
    line = LineSpeed(
        parts=1,
        parts_per_second=rate,
        passes_per_part=1,
        cpu_ms_per_part=1,
        jitter_ms=1,
        stages={},
    )
    once = Round(
        bare=BareNetwork(passes_per_second=1, cpu_ms_per_pass=1),
        saturated=line,
        share_of_bare=1,
        share_of_bound=1,
        paced=line,
    )
    return Speed(
        backend=backend,
        precision="int8",
        workers=1,
        cores=1,
        frame=(1, 1),
        ready_s=1,
        child_mb=1,
        agent_mb=1,
        score_difference=0,
        objections=objections,
        rounds=(once,),
    )


def test_the_fastest_that_the_gate_has_no_objection_to_is_recommended():
    slow, fast = speed("slow", 1, ()), speed("fast", 2, ())
    flips, unknown = speed("flips", 9, ("3 of 9 verdicts change",)), speed("unknown", 9, None)
    assert recommended([slow, flips, fast, unknown]) is fast
    assert recommended([flips, unknown]) is None


def test_every_runtime_is_tried_and_what_cannot_run_says_why(tmp_path, monkeypatch):
    bundle = tiny_bundle(tmp_path / "bundle", precisions=("fp32", "int8"))

    def no_bf16_here(_bundle, _frames, runtime, **_):
        if runtime.precision == "bf16":
            raise BackendError("does not compute in bf16")
        return speed(runtime.cpu_name, 1, None)

    monkeypatch.setattr("agent.bench.measured", no_bf16_here)
    found, missing = compared(bundle, (), seconds=1, rounds=1)
    assert [each.backend for each in found] == [
        "onnxruntime cpu fp32", "onnxruntime cpu int8", "openvino cpu fp32", "openvino cpu int8"
    ]  # fmt: skip
    assert missing == ("openvino bf16: does not compute in bf16",)
