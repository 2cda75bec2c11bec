"""`bundle.backend: tensorrt` in the agent: a real child process over a scripted GPU.

The child's driver, pycuda and TensorRT are stand-ins that compute (`scripted_gpu`).
What fails in them is written into a file while the child runs.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.inference.child import ChildInspector, Setup
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.tensorrt.plans import ensure_plan
from engine.errors import BackendError, InspectionError, NoAnswerError
from engine.gpu.verdicts import cache_folder
from engine.image import demosaiced
from engine.methods import open_method
from engine.view import ViewSpec
from tests.agent.inference.gpu_child import SITE
from tests.agent.test_run import calibrated
from tests.engine.gpu.scripted_gpu import GPU, scripted_tensorrt
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

ROOT = Path(__file__).parents[3]
LINE = ViewSpec(side=64, equalise="after_resize", crop_from="frame", reducing_gap=3.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), view=LINE)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The file that names what fails in the child."""
    file = tmp_path_factory.mktemp("told") / "failing"
    file.write_text("")
    return file


@pytest.fixture(scope="module", autouse=True)
def _machine(tmp_path_factory, bundle, told, kernels_folder, kernels):
    """Children find a GPU and a plan for it."""
    folder = tmp_path_factory.mktemp("site")
    site = SITE.format(kernels=str(kernels_folder), told=str(told))
    (folder / "sitecustomize.py").write_text(site)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patched.setattr("agent.inference.child._RESTART_S", 300.0)
        ensure_plan(cache_folder(), bundle, "fp32", gpu=GPU, tensorrt=scripted_tensorrt())
        yield


@pytest.fixture(scope="module")
def child(bundle, _machine):
    setup = Setup(bundle=bundle.path, bundle_id=bundle.id, backend="tensorrt", max_megapixels=0.05)
    with ChildInspector(setup) as inspector:
        yield inspector


@pytest.fixture
def tell(told):
    yield told.write_text
    told.write_text("")


def grey(pixels):
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def eventually_inspected(child, frame):
    until = time.monotonic() + 300
    while True:
        try:
            return child.inspect(frame)
        except (BackendError, NoAnswerError):
            assert time.monotonic() < until


def test_the_gpu_of_the_child_inspects_frames_of_any_size(bundle, child):
    assert child.backend == f"tensorrt {GPU.name} fp32, all on the device"
    assert child.workers == 1
    frames = [grey(defective_part(1)), grey(good_part(2, width=140)), grey(defective_part(3))]
    frames += [grey(defective_part(4, width=200, height=90))[:, ::2]]  # not contiguous
    with OnnxRuntimeBackend(bundle) as backend:
        host = open_method(bundle.manifest.method, backend)
        for frame in frames:
            one, other = host.inspect(frame), child.inspect(frame)
            assert (one.box, one.zoomed) == (other.box, other.zoomed)
            assert other.score == pytest.approx(one.score, abs=1e-4)
            np.testing.assert_allclose(other.attention, one.attention, atol=1e-4)
        colour = defective_part(5)
        assert child.inspect(colour).box == host.inspect(colour).box


def test_raw_colour_goes_up_as_it_is(bundle, child):
    assert child.takes_bayer
    raw = grey(defective_part(1, width=150, height=120))
    for pattern in ("bayer_rggb", "bayer_bggr"):
        converted = demosaiced(raw, pattern)
        assert child.inspect(raw, pattern).score == child.inspect(converted).score
    assert (child.restarts, child.fault) == (0, None)


def test_a_frame_that_cannot_be_inspected_costs_that_part_alone(child, tell):
    pid = child.pid
    with pytest.raises(InspectionError, match=r"300×200 .*0.05 megapixels.*max_megapixels"):
        child.inspect(grey(good_part(1, width=300, height=200)))
    tell("mem_alloc")
    with pytest.raises(InspectionError, match="no memory for frames of 111×80 mono"):
        child.inspect(grey(good_part(1, width=111)))
    tell("")
    assert child.inspect(grey(good_part(1, width=111))).score > 0
    assert (child.pid, child.restarts, child.fault) == (pid, 0, None)


def test_a_device_lost_in_flight_costs_the_part_in_hand_and_the_child(child, tell):
    part = grey(good_part(1))
    child.inspect(part)
    pid, restarts = child.pid, child.restarts
    tell("cuGraphLaunch init")
    with pytest.raises(BackendError, match="cuGraphLaunch answered 999"):
        child.inspect(part)
    assert "cuGraphLaunch answered 999" in child.fault
    # The device stays away: parts end as ERROR, health says why, children are tried again.
    with pytest.raises(BackendError, match="cannot start: init failed: device lost"):
        child.inspect(part)
    assert "cannot start: init failed: device lost" in child.fault
    tell("")
    assert eventually_inspected(child, part).score > 0
    assert child.fault is None
    assert child.pid != pid
    assert child.restarts == restarts + 1


def test_a_device_that_hangs_costs_the_part_in_hand_and_the_child(child, tell, monkeypatch):
    part = grey(good_part(1))
    child.inspect(part)
    pid = child.pid
    tell("hang")
    monkeypatch.setattr("agent.inference.child._TIMEOUT_S", 0.5)
    with pytest.raises(NoAnswerError, match=r"did not answer within"):
        child.inspect(part)
    tell("")
    monkeypatch.undo()
    assert eventually_inspected(child, part).score > 0
    assert child.pid != pid


def test_agent_run_inspects_on_the_configured_gpu(tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle", view=LINE)
    ensure_plan(cache_folder(), bundle, "fp32", gpu=GPU, tensorrt=scripted_tensorrt())
    calibrated(bundle, 1000.0)
    (tmp_path / "agent.yaml").write_text(
        "agent: {id: test}\n"
        "bundle: {path: bundle, backend: tensorrt, max_megapixels: 1}\n"
        "camera: {type: conveyor, parts: 3}\n"
        "mqtt: {host: 127.0.0.1, port: 1}\n"
    )
    command = [sys.executable, "-c", "from agent.cli import main; main()", "run", "--json"]
    done = subprocess.run(
        [*command, "--config", tmp_path / "agent.yaml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["OK"] == 3
    assert "were never compared with ONNX Runtime" in done.stderr
    assert "the threshold was set with onnxruntime cpu fp32, but tensorrt" in done.stderr
