"""G9: malformed frames, configurations and commands: refused in one way, never a crash or a hang.

Mutations of good inputs come from a seeded generator, so a failure comes again. A fuzzer that is
guided by coverage (atheris) looks further; without it that test is skipped.
"""

import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from time import time_ns

import numpy as np
import pytest

from agent.part import State
from agent.settings import AgentSettings, BundleSettings, Config, LedgerSettings
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.run import run_station
from agent.station.station import Model
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.frame import Frame
from engine.methods import open_method
from tests.faults.parsers import PARSERS
from tests.tiny_bundle import good_part, tiny_bundle

ROOT = Path(__file__).parents[2]
HANG_S = 10
ODD = (
    b"", b"\0", b"\xff", b"-1", b"0", b"1e999", b"nan", b"null", b"{}", b"[]", b"''", b"&a", b"*a",
    b"!!python/object/apply:os.system [ls]", b"\xef\xbb\xbf", b"\n", b": ", b"- ", b"%", b'"',
    b"9" * 400, b"[" * 300, b"a" * 5000,
)  # fmt: skip


def mutated(rng: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """One of the seeds with one to eight changes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 8)):
        at = rng.randint(0, len(data))
        upto = min(len(data), at + rng.choice((1, 1, 2, 8, 64)))
        match rng.randrange(7):
            case 0:
                data[at:upto] = rng.randbytes(upto - at)
            case 1:
                del data[at:upto]
            case 2:
                data[at:at] = rng.choice(ODD)
            case 3:
                data[at:upto] = rng.choice(ODD)
            case 4:
                data[at:at] = data[at:upto] * rng.randint(1, 9)
            case 5:
                del data[at:]
            case 6:
                other = rng.choice(seeds)
                data[at:] = other[rng.randint(0, len(other)) :]
    return bytes(data)


@contextmanager
def within(seconds: int):
    """Raise `TimeoutError` in what takes longer."""

    def hang(_number: int, _frame: object) -> None:
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", PARSERS)
def test_malformed_input_is_refused(name, is_full, record):
    parser = PARSERS[name]
    assert name == "manifest" or all(parser.accepts(seed) for seed in parser.seeds)
    rng = random.Random(f"{name} 9")
    cases = 10_000 if is_full else 250
    accepted, slowest = 0, 0.0
    for number in range(cases):
        data = mutated(rng, parser.seeds)
        begun = time.perf_counter()
        try:
            with within(HANG_S):
                accepted += parser.accepts(data)
        except BaseException as error:
            error.add_note(f"case {number}: {data[:2000]!r}")
            raise
        slowest = max(slowest, time.perf_counter() - begun)
    record(
        "g9", name, cases=cases, still_good=accepted, crashes=0, hangs=0,
        slowest_ms=round(slowest * 1e3, 1),
    )  # fmt: skip


class GarbageCamera:
    """Frames of every kind that a broken driver could give, and a good one now and then."""

    triggered = True
    is_live = False
    silence_s = None
    fault = None

    def __init__(self, count: int) -> None:
        self._rng = np.random.default_rng(9)
        self._left = count
        self._number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def renewed(self):
        return self

    def part_id(self, number):
        return f"p{number}"

    def source(self, _number):
        return None

    def read(self):
        if not self._left:
            return None
        self._left -= 1
        self._number += 1
        return Frame(
            pixels=self._pixels(),
            number=self._odd(self._number, -1, 2**63, 2**80),
            captured_ns=self._odd(time_ns(), -1, 0, 2**63, 2**90),
        )

    def _odd(self, usual: int, *odd: int) -> int:
        if self._rng.random() < 0.95:
            return usual
        return odd[int(self._rng.integers(len(odd)))]

    def _pixels(self):
        rng = self._rng
        if rng.random() < 0.1:
            return good_part(int(rng.integers(100)))
        dtype = rng.choice(
            np.array(["u1", "u1", "u1", "i1", "u2", "f4", "f8", "?", "c8", "S3", "O"])
        )
        shape = tuple(int(n) for n in rng.integers(0, 40, int(rng.integers(0, 5))))
        if rng.random() < 0.5:
            shape = (*shape[:2], 3)
        if rng.random() < 0.01:
            return np.broadcast_to(np.zeros((), "u1"), (60_000, 60_000, 3))
        pixels = np.zeros(shape, str(dtype))
        if dtype in {"f4", "f8"}:
            pixels[...] = np.nan
        if dtype == "u1":
            pixels[...] = rng.integers(0, 256, shape, dtype=np.uint8)
        return pixels[..., ::-1] if pixels.ndim and rng.random() < 0.3 else pixels


def test_every_malformed_frame_ends_in_a_state(tmp_path, is_full, record):
    cases = 10_000 if is_full else 400
    bundle = tiny_bundle(tmp_path / "bundle")
    config = Config(
        agent=AgentSettings(id="a"),
        bundle=BundleSettings(path=bundle.path),
        cameras=[{"type": "conveyor"}],
        sinks=(MqttSettings(host="127.0.0.1", port=1, drain_s=0),),
        ledger=LedgerSettings(path=tmp_path / "ledger.sqlite"),
    )
    with OnnxRuntimeBackend(bundle) as backend:
        summary = run_station(
            config,
            cameras=[GarbageCamera(cases)],
            inspector=open_method(bundle.manifest.method, backend),
            model=Model(threshold=0.5),
        )
    ends = {state.value: count for state, count in summary.counts.items() if count}
    record("g9", "camera", cases=cases, crashes=0, hangs=0, ends=ends)
    assert sum(summary.counts.values()) == summary.triggers >= cases
    assert summary.counts[State.ERROR] > cases / 2
    assert summary.counts[State.OK] + summary.counts[State.NG] > 0


@pytest.mark.parametrize("name", ["command", "configuration", "frame", "manifest"])
def test_a_fuzzer_guided_by_coverage_finds_nothing(name, tmp_path, is_full, record):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris, which has no wheel for this Python")
    if not is_full and name != "command":
        pytest.skip("takes ten seconds to begin; --faults-full runs it")
    length = "-max_total_time=600" if is_full else "-runs=300"
    fuzzer = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.fuzz", name, tmp_path / "corpus"),
            *(length, "-timeout=10", "-rss_limit_mb=2048", "-max_len=8192"),
            *(f"-artifact_prefix={tmp_path}/", "-seed=9"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert fuzzer.returncode == 0, fuzzer.stderr[-3000:]
    runs = int(re.findall(r"^#(\d+)\s+DONE", fuzzer.stderr, re.MULTILINE)[-1])
    covered = [int(found) for found in re.findall(r"cov: (\d+)", fuzzer.stderr)]
    record(
        "g9", f"fuzzer: {name}", runs=runs, crashes=0, hangs=0,
        covered_first=covered[0], covered_last=covered[-1],
    )  # fmt: skip
    assert runs >= 300
