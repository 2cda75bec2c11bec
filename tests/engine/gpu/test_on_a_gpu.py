"""What the stand-in tests compare, on a real GPU: `pytest -m gpu`, where there is a driver.

The network is ONNX Runtime's on that GPU, where onnxruntime-gpu is installed, and in any case
ONNX Runtime's on the CPU between two copies, so that the kernels are compared alone.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from engine.attention import CropSpec, attention_box
from engine.backends.cuda import Cuda
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.opening import open_backend, open_inspector
from engine.bundle import open_bundle
from engine.errors import BackendError, InspectionError
from engine.frame import Box
from engine.gpu.device import MAX_BATCH, geometry_of
from engine.gpu.driver import probe_gpu
from engine.gpu.graph import Again
from engine.gpu.inspector import DeviceInspector
from engine.methods.atac import atac_of
from engine.view import view, zoomed
from tests.engine.gpu.frames import BAYER, LINE, PAPER, PLAIN, expected, grey
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

pytestmark = pytest.mark.gpu

DEMO = Path(__file__).parents[3] / "agent/demo_bundle"
SIZES = [(96, 80), (400, 300), (300, 431), (40, 30), (1280, 1024)]


@pytest.fixture(scope="module", autouse=True)
def _gpu():
    try:
        probe_gpu()
    except BackendError as error:
        pytest.skip(str(error))
    pytest.importorskip("pycuda.driver", exc_type=ImportError)


class HostNetwork:
    """A `DeviceNetwork` that is not on the device: down, through ONNX Runtime's CPU, and up."""

    name = "host"

    def __init__(self, bundle, stream):
        self._spec = bundle.manifest.method.network
        self._session = onnxruntime.InferenceSession(
            bundle.network("fp32"), providers=["CPUExecutionProvider"]
        )
        self._stream = stream

    def bound(self, **tensors):
        import pycuda.driver as cuda

        names = list(self._spec.outputs)

        def enqueue(count, stream):
            views = np.empty((count, self._spec.side, self._spec.side, 3), np.uint8)
            stream.synchronize()
            cuda.memcpy_dtoh(views, tensors["views"])
            for name, found in zip(names, self._session.run(names, {"views": views}), strict=True):
                cuda.memcpy_htod(tensors[name], np.ascontiguousarray(found))

        return enqueue

    def capture(self, _stream, record):
        return Again(record)


@pytest.fixture(params=["host", "cuda"])
def opened(request, tmp_path):
    """`opened(view)`: a bundle, and its inspection opened on the GPU."""
    if request.param == "cuda" and not Cuda.is_installed():
        pytest.skip("needs onnxruntime-gpu: the extra cuda")
    inspectors = []

    def call(seen=LINE, **changed):
        bundle = tiny_bundle(tmp_path / "bundle", view=seen, **changed)
        method = atac_of(bundle)
        inspector = (
            open_inspector(bundle, backend="cuda")
            if request.param == "cuda"
            else DeviceInspector(
                lambda _memory, stream: HostNetwork(bundle, stream), method, method.network
            )
        )
        inspectors.append(inspector)
        return bundle, inspector

    yield call
    for each in inspectors:
        each.__exit__(None, None, None)


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert (one.zoomed, one.box) == (other.zoomed, other.box)
        assert one.score == pytest.approx(other.score, abs=1e-3)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-4)
        np.testing.assert_allclose(one.score_map, other.score_map, atol=1e-3)


@pytest.mark.parametrize("seen", [LINE, PAPER, PLAIN], ids=["line", "paper", "plain"])
@pytest.mark.parametrize("size", SIZES)
def test_mono_frames_are_inspected_as_on_the_host(opened, seen, size):
    width, height = size
    parts = [grey(make(3, width=width, height=height)) for make in (good_part, defective_part)]
    bundle, inspector = opened(seen)
    assert_same([inspector.inspect(part) for part in parts], expected(bundle, parts))


@pytest.mark.parametrize("seen", [replace(PAPER, equalise="never"), PLAIN], ids=["view", "frame"])
def test_rgb_frames_are_inspected_as_on_the_host(opened, seen):
    parts = [defective_part(seed, width=100, height=130) for seed in range(3)]
    bundle, inspector = opened(seen)
    assert_same([inspector.inspect(part) for part in parts], expected(bundle, parts))


@pytest.mark.parametrize("seen", [LINE, PAPER], ids=["line", "paper"])
@pytest.mark.parametrize("colours", [False, True], ids=["mono", "rgb"])
def test_the_views_are_the_engines(opened, seen, colours):
    part = defective_part(1, width=640, height=480)
    part = part if colours else grey(part)
    bundle, inspector = opened(seen)
    first, second = inspector.views(part)
    said = inspector.inspect(part)
    whole = view(part, Box.around(part), seen)
    box = attention_box(said.attention, seen.box, atac_of(bundle).crop)
    closer, _ = zoomed(part, whole, box, seen)
    for ours, theirs in ((first, whole), (second, closer)):
        apart = np.abs(ours.astype(int) - theirs.astype(int))
        # L of LAB is within one grey level on 99.9 % of the values; grey is equal in every bit.
        assert (apart > (1 if colours else 0)).mean() < (1e-3 if colours else 1e-9)


@pytest.mark.parametrize(("form", "code"), BAYER)
def test_raw_bayer_frames_go_up_as_they_are(opened, form, code):
    raw = grey(defective_part(1, width=150, height=120))
    bundle, inspector = opened(PLAIN)
    found = inspector.inspect_all([raw], [form])
    assert_same(found, expected(bundle, [cv2.cvtColor(raw, code)]))


def test_frames_of_several_cameras_go_through_together(opened):
    parts = [grey(defective_part(seed, width=90 + seed)) for seed in range(MAX_BATCH + 3)]
    bundle, inspector = opened()
    assert_same(inspector.inspect_all(parts), expected(bundle, parts))


def test_a_replay_equals_the_first_run_and_other_frames_between_change_nothing(opened):
    _, inspector = opened()
    parts = [grey(defective_part(seed)) for seed in range(20)]
    first = [inspector.inspect(part).score for part in parts]
    inspector.inspect(grey(good_part(1, width=333, height=222)))
    assert [inspector.inspect(part).score for part in parts] == first


def test_a_box_that_covers_the_frame_scores_the_same_bits_twice(opened):
    _, inspector = opened(crop=CropSpec(gate=100.0))
    found = inspector.inspect(defective_part(0))
    assert not found.zoomed
    assert found.score == found.passes[0].score


def test_a_frame_that_is_too_large_costs_that_part_alone(opened):
    _, inspector = opened()
    with pytest.raises(InspectionError, match="megapixels"):
        inspector.inspect(np.zeros((5000, 5000), np.uint8))
    assert inspector.inspect(good_part(0)).score > 0


def test_every_stage_can_be_timed_alone(opened):
    _, inspector = opened()
    stages = inspector.stages([geometry_of(grey(good_part(0)))], repeats=3)
    assert all(each.seconds > 0 for each in stages.values())


@pytest.mark.parametrize("backend", ["cuda"])
def test_the_demos_network_says_what_it_says_on_the_cpu(backend):
    if not Cuda.is_installed():
        pytest.skip("needs onnxruntime-gpu: the extra cuda")
    bundle = open_bundle(DEMO)
    side = bundle.manifest.method.network.side
    views = np.random.default_rng(0).integers(0, 256, (17, side, side, 3), dtype=np.uint8)
    with open_backend(bundle, backend=backend) as device, OnnxRuntimeBackend(bundle) as oracle:
        found, wanted = device.run(views), oracle.run(views)
    for name, each in wanted.items():
        np.testing.assert_allclose(found[name], each, atol=1e-3 * np.abs(each).max())
