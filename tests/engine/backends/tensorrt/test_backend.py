"""The TensorRT backend's control flow, with stand-ins at the driver seam only.

That a GPU computes the same is not proven here; `docs/gpu.md` says what has run.
"""

import logging
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.opening import open_backend
from engine.backends.tensorrt.backend import open_plan_backend
from engine.backends.tensorrt.plans import ensure_plan, find_tensorrt
from engine.errors import BackendError
from engine.frame import Box
from engine.gpu import driver
from engine.gpu.device import MAX_BATCH
from engine.gpu.verdicts import cache_folder
from engine.methods import open_method
from tests.engine.gpu.scripted_gpu import (
    GPU,
    Driver,
    Engine,
    ExecutionContext,
    Pycuda,
    RtxEngine,
    RuntimeConfig,
    scripted_tensorrt,
)
from tests.tiny_bundle import defective_part, parity, tiny_bundle


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "bundle")


@pytest.fixture
def tensorrt():
    return scripted_tensorrt()


@pytest.fixture
def cuda():
    return Pycuda()


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path, tensorrt, cuda):
    """A machine with a GPU, TensorRT and pycuda; tests take away what they are about."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(driver, "load_driver", Driver)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt.module)
    monkeypatch.setitem(sys.modules, "pycuda.driver", cuda)


@pytest.fixture
def plan(bundle, tensorrt):
    return ensure_plan(cache_folder(), bundle, "fp32", gpu=GPU, tensorrt=tensorrt)


def views(count):
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("count", [1, 2, MAX_BATCH, MAX_BATCH + 1, 3 * MAX_BATCH])
def test_any_number_of_views_goes_through(bundle, count):
    with open_plan_backend(bundle) as backend, OnnxRuntimeBackend(bundle) as oracle:
        found, expected = backend.run(views(count)), oracle.run(views(count))
    np.testing.assert_allclose(found["score_map"], expected["score_map"], atol=1e-6)
    np.testing.assert_allclose(found["attention"], expected["attention"], atol=1e-6)


@pytest.mark.usefixtures("plan")
def test_an_answer_is_not_overwritten_by_the_next(bundle):
    with open_plan_backend(bundle) as backend:
        first = backend.run(views(1))
        kept = first["score_map"].copy()
        backend.run(255 - views(1))
    assert np.array_equal(first["score_map"], kept)


@pytest.mark.usefixtures("plan")
def test_the_two_passes_run_on_it(bundle):
    part = defective_part(0)
    with open_plan_backend(bundle) as backend, OnnxRuntimeBackend(bundle) as oracle:
        found = open_method(bundle.manifest.method, backend).inspect(part)
        expected = open_method(bundle.manifest.method, oracle).inspect(part)
    assert found.zoomed
    assert found.box == expected.box != Box.around(part)
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    assert backend.name == f"tensorrt {GPU.name} fp32"


@pytest.mark.usefixtures("plan")
def test_everything_is_given_back(bundle, cuda):
    with open_plan_backend(bundle) as backend:
        assert (cuda.retained, cuda.current, cuda.alive) == (1, 0, 7)
        backend.run(views(2))
        assert (cuda.retained, cuda.current, cuda.alive) == (1, 0, 7)
    assert (cuda.retained, cuda.current, cuda.alive) == (0, 0, 0)
    assert not backend._host


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("call", ["init", "pagelocked_empty", "mem_alloc"])
def test_a_gpu_without_room_is_one_sentence_and_leaves_nothing_behind(bundle, cuda, call):
    cuda.failing = call
    with pytest.raises(BackendError, match=f"cannot start: {call} failed.*nvidia-smi"):
        open_plan_backend(bundle)
    assert (cuda.retained, cuda.current, cuda.alive) == (0, 0, 0)


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("call", ["memcpy_htod_async", "memcpy_dtoh_async"])
def test_a_device_lost_in_flight_is_an_error_and_closing_still_works(bundle, cuda, call):
    with open_plan_backend(bundle) as backend:
        cuda.failing = call
        for _ in range(2):
            with pytest.raises(BackendError, match=r"failed on \(1, 64, 64, 3\): .* device lost"):
                backend.run(views(1))
        assert cuda.current == 0
        cuda.failing = "free"
    assert (cuda.retained, cuda.current) == (0, 0)


@pytest.mark.usefixtures("plan")
def test_one_failed_copy_does_not_spoil_the_next_part(bundle, cuda):
    with open_plan_backend(bundle) as backend, OnnxRuntimeBackend(bundle) as oracle:
        cuda.failing = "memcpy_htod_async"
        with pytest.raises(BackendError):
            backend.run(views(1))
        cuda.failing = ""
        found, expected = backend.run(views(3)), oracle.run(views(3))
    np.testing.assert_allclose(found["score_map"], expected["score_map"], atol=1e-6)


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 32, 32, 3), np.uint8),
        np.zeros((1, 64, 64), np.uint8),
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((0, 64, 64, 3), np.uint8),
    ],
)
def test_views_of_a_wrong_kind_never_reach_the_gpu(bundle, cuda, wrong):
    with open_plan_backend(bundle) as backend:
        cuda.failing = "memcpy_htod_async"
        with pytest.raises(BackendError, match=r"takes uint8 \(N, 64, 64, 3\)"):
            backend.run(wrong)


def test_without_a_plan_the_command_that_makes_one_is_named(bundle):
    with pytest.raises(BackendError, match=r"there is no plan for fp32 .*agent build --bundle"):
        open_plan_backend(bundle)


def test_a_plan_that_was_changed_never_reaches_tensorrt(bundle, plan, tensorrt):
    plan.path.write_bytes(plan.data + b"!")
    with pytest.raises(BackendError, match=r"does not have the hash.*agent build"):
        open_plan_backend(bundle)
    assert not hasattr(tensorrt.module, "deserialised")


@pytest.mark.usefixtures("plan")
def test_a_plan_that_tensorrt_cannot_load_leaves_nothing_behind(bundle, tensorrt, cuda):
    tensorrt.module.Runtime.deserialize_cuda_engine = lambda *_: None
    with pytest.raises(BackendError, match="cannot be loaded"):
        open_plan_backend(bundle)
    assert (cuda.retained, cuda.current, cuda.alive) == (0, 0, 0)


def test_a_plan_with_other_tensors_is_refused(bundle, tensorrt, tmp_path, monkeypatch):
    other = tiny_bundle(tmp_path / "other", side=32)
    monkeypatch.setattr(
        type(bundle), "network", lambda *_: (other.path / "network.onnx").read_bytes()
    )
    ensure_plan(cache_folder(), bundle, "fp32", gpu=GPU, tensorrt=tensorrt)
    with pytest.raises(BackendError, match=r"has the tensors .* the bundle names"):
        open_plan_backend(bundle)


def test_tensorrt_rtx_leaves_its_memory_to_us_and_compiles_before_a_graph_is_captured(
    bundle, monkeypatch
):
    rtx = scripted_tensorrt("1.7.1", name="tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx.module)
    ensure_plan(cache_folder(), bundle, "fp32", gpu=GPU, tensorrt=rtx)
    assert rtx.module.flagged == [rtx.module.BuilderFlag.REQUIRE_USER_ALLOCATION]
    with open_plan_backend(bundle) as backend, OnnxRuntimeBackend(bundle) as oracle:
        assert backend.name == f"tensorrt_rtx {GPU.name} fp32"
        found, expected = backend.run(views(2)), oracle.run(views(2))
    np.testing.assert_allclose(found["score_map"], expected["score_map"], atol=1e-6)


def without_driver(monkeypatch):
    def fail():
        raise BackendError("no NVIDIA driver here")

    monkeypatch.setattr(driver, "load_driver", fail)


def without_tensorrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)


def without_pycuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)


MISSING = {
    without_driver: "no NVIDIA driver",
    without_tensorrt: "tensorrt_rtx is not installed",
    without_pycuda: "pycuda cannot be imported",
}


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("take_away", MISSING, ids=lambda each: each.__name__)
def test_what_is_missing_is_named_unless_a_fallback_is(bundle, monkeypatch, caplog, take_away):
    take_away(monkeypatch)
    with pytest.raises(BackendError, match=MISSING[take_away]):
        open_backend(bundle, backend="tensorrt")
    with (
        caplog.at_level(logging.WARNING),
        open_backend(bundle, backend="tensorrt", fallback="onnxruntime") as backend,
    ):
        assert backend.name == "onnxruntime cpu fp32"
    assert MISSING[take_away] in caplog.text
    assert "as bundle.fallback allows" in caplog.text


def test_a_plan_that_nobody_compared_is_warned_of(bundle, plan, caplog):
    open_plan_backend(bundle).__exit__(None, None, None)
    assert f"the verdicts of {plan.path} were never compared" in caplog.text
    caplog.clear()
    plan.verdicts.write(parity(), accepted=False)
    open_plan_backend(bundle).__exit__(None, None, None)
    assert not caplog.records


def test_a_plan_that_changes_verdicts_is_refused_unless_accepted(bundle, plan, tensorrt):
    plan.verdicts.write(parity(flips=("part.png",)), accepted=False)
    with pytest.raises(BackendError, match=r"1 of 3 verdicts differ .* --accept-flips"):
        open_plan_backend(bundle)
    assert not hasattr(tensorrt.module, "deserialised")
    plan.verdicts.write(parity(flips=("part.png",)), accepted=True)
    open_plan_backend(bundle).__exit__(None, None, None)


def test_a_comparison_belongs_to_one_plan(bundle, plan, caplog):
    plan.verdicts.write(parity(), accepted=False)
    file = plan.path.with_suffix(".parity")
    file.write_text(file.read_text().replace(plan.record.plan_sha256, "0" * 64))
    open_plan_backend(bundle).__exit__(None, None, None)
    assert "were never compared" in caplog.text


def test_where_the_gpu_works_the_fallback_stays_out(bundle, plan, caplog):
    plan.verdicts.write(parity(), accepted=False)
    with open_backend(bundle, backend="tensorrt", fallback="onnxruntime") as backend:
        assert backend.name.startswith("tensorrt ")
    assert not caplog.records


@pytest.mark.rtx
@pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT-RTX: make builders",
)
def test_the_stand_ins_have_the_names_of_the_real_runtime(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    trt = find_tensorrt().module
    for stand_in, real in (
        (Engine, trt.ICudaEngine),
        (RtxEngine, trt.ICudaEngine),
        (RuntimeConfig, trt.IRuntimeConfig),
        (ExecutionContext, trt.IExecutionContext),
        (scripted_tensorrt().module.Runtime, trt.Runtime),
        (scripted_tensorrt().module.Builder, trt.Builder),
        (scripted_tensorrt().module.OnnxParser, trt.OnnxParser),
    ):
        names = {name for name in vars(stand_in) if not name.startswith("_")}
        assert names
        assert names <= set(dir(real))
    assert (trt.nptype(trt.uint8), trt.nptype(trt.float32)) == (np.uint8, np.float32)
    scripted = scripted_tensorrt().module
    for kind in (
        "BuilderFlag",
        "DynamicShapesKernelSpecializationStrategy",
        "ExecutionContextAllocationStrategy",
        "NetworkDefinitionCreationFlag",
    ):
        assert set(vars(getattr(scripted, kind))) <= set(dir(getattr(trt, kind)))
