"""`backend: cuda`: the network in ONNX Runtime, with stand-ins at the driver seam that compute.

That a GPU computes the same is not proven here; `docs/gpu.md` says what has run.
"""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engine.backends import cuda
from engine.backends.base import BACKENDS, backend_of
from engine.backends.cuda import Cuda
from engine.backends.cuda import backend as cuda_backend
from engine.backends.cuda.backend import load_runtime
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.opening import open_backend, open_inspector
from engine.errors import BackendError, InspectionError
from engine.gpu import driver
from engine.gpu.device import MAX_BATCH
from engine.gpu.verdicts import cache_folder
from engine.methods import open_method
from engine.view import ViewSpec
from tests.engine.gpu.gpu_machine import gpu_machine
from tests.engine.gpu.scripted_gpu import GPU
from tests.tiny_bundle import defective_part, good_part, parity, tiny_bundle

LINE = ViewSpec(side=64, equalise="never", crop_from="frame")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path, kernels):
    """A machine with a GPU, pycuda and onnxruntime-gpu, and no TensorRT."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # What is patched within the machine must be put back before it.
    with gpu_machine(kernels) as machine, pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "tensorrt", None)
        yield machine


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "bundle", view=LINE, precisions=("fp32", "fp16"))


def views(count):
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, MAX_BATCH + 1])
def test_any_number_of_views_goes_through(bundle, machine, count):
    with open_backend(bundle, backend="cuda") as backend, OnnxRuntimeBackend(bundle) as oracle:
        found, expected = backend.run(views(count)), oracle.run(views(count))
        assert backend.name == f"cuda {GPU.name} fp32"
        assert backend_of(backend.name) == "cuda"
    np.testing.assert_allclose(found["score_map"], expected["score_map"], atol=1e-6)
    assert (machine.cuda.retained, machine.cuda.current, machine.cuda.alive) == (0, 0, 0)


def test_the_whole_inspection_is_one_graph(bundle, machine):
    parts = [defective_part(1), good_part(2), defective_part(3)]
    with open_inspector(bundle, backend="cuda", precision="fp16") as device:
        captures = machine.driver.captures
        found = [device.inspect(each) for each in parts]
        assert machine.driver.captures == captures + 1
        runs = machine.onnxruntime.sessions[0].runs
        device.inspect(parts[0])
        assert machine.onnxruntime.sessions[0].runs == runs
        assert device.name == f"cuda {GPU.name} fp16, all on the device"
    with OnnxRuntimeBackend(bundle) as oracle:
        host = open_method(bundle.manifest.method, oracle)
        for one, other in zip(found, map(host.inspect, parts), strict=True):
            assert (one.box, one.zoomed) == (other.box, other.zoomed)
            assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("obstacle", ["cuStreamEndCapture", "host"])
def test_where_there_can_be_no_graph_it_runs_without(bundle, machine, caplog, obstacle):
    if obstacle == "host":
        machine.driver.calls_host = True
    else:
        machine.driver._failing = obstacle
    with (
        open_inspector(bundle, backend="cuda") as device,
        open_inspector(bundle) as host,
    ):
        for seed in range(3):
            part = defective_part(seed)
            assert device.inspect(part).score == pytest.approx(host.inspect(part).score, abs=1e-4)
    assert "is not captured in a CUDA graph" in caplog.text
    assert (machine.cuda.retained, machine.cuda.current, machine.cuda.alive) == (0, 0, 0)


def test_what_fails_on_the_device_is_an_error_of_the_backend(bundle, machine):
    with open_backend(bundle, backend="cuda") as backend:
        machine.onnxruntime.failing = "CUDA failure 700: an illegal memory access"
        with pytest.raises(BackendError, match=r"failed on 1 views: CUDA failure 700.*nvidia-smi"):
            backend.run(views(1))
        machine.onnxruntime.failing = ""
        assert backend.run(views(1))["score_map"].shape == (1, 8, 8)


def test_a_size_that_the_network_has_no_room_for_costs_that_part_alone(bundle, machine):
    with open_inspector(bundle, backend="cuda") as device:
        device.inspect(good_part(0))
        machine.onnxruntime.failing = "Failed to allocate memory for requested buffer of size 4"
        with pytest.raises(InspectionError, match="no memory for frames of 120×90"):
            device.inspect(good_part(0, width=120, height=90))
        machine.onnxruntime.failing = ""
        assert device.inspect(good_part(0)).score > 0


def test_a_cuda_library_that_is_missing_is_no_silent_cpu(bundle, machine):
    machine.onnxruntime.lacks = True
    with pytest.raises(BackendError, match=r"cannot load its CUDA libraries .*\.\[cuda\]"):
        open_inspector(bundle, backend="cuda")
    assert (machine.cuda.retained, machine.cuda.alive) == (0, 0)


def test_the_fallback_is_taken_only_where_it_is_named(bundle, machine, caplog):
    machine.onnxruntime.lacks = True
    with (
        caplog.at_level(logging.WARNING),
        open_inspector(bundle, backend="cuda", fallback="onnxruntime") as device,
    ):
        assert device.name == "onnxruntime cpu fp32"
    assert "as bundle.fallback allows" in caplog.text


def test_verdicts_that_change_are_refused_unless_accepted(bundle, caplog):
    built = BACKENDS.find("cuda").settings.build(
        bundle, precision="fp32", cache=None, progress=lambda *_: None
    )
    open_backend(bundle, backend="cuda").__exit__(None, None, None)
    assert f"the verdicts of cuda {GPU.name} fp32 were never compared" in caplog.text
    assert "agent build --bundle" in caplog.text
    assert "--backend cuda" in caplog.text
    caplog.clear()
    built.verdicts.write(parity(flips=("part.png",)), accepted=False)
    for opened in (open_backend, open_inspector):
        with pytest.raises(BackendError, match=r"1 of 3 verdicts differ .* --accept-flips"):
            opened(bundle, backend="cuda")
    built.verdicts.write(parity(flips=("part.png",)), accepted=True)
    open_backend(bundle, backend="cuda").__exit__(None, None, None)
    assert not caplog.records
    assert built.verdicts.path.parent == cache_folder()


def test_a_comparison_belongs_to_one_version_of_the_runtime(bundle, machine, caplog):
    built = BACKENDS.find("cuda").settings.build(
        bundle, precision="fp32", cache=None, progress=lambda *_: None
    )
    built.verdicts.write(parity(), accepted=False)
    machine.onnxruntime.__version__ = "1.32.0"
    open_backend(bundle, backend="cuda").__exit__(None, None, None)
    assert "were never compared" in caplog.text


def test_int8_is_not_for_it(bundle):
    with pytest.raises(BackendError, match="does not compute in int8, but in fp32, fp16"):
        open_backend(bundle, backend="cuda", precision="int8")


def test_without_a_driver_onnx_runtime_is_not_asked(bundle):
    def no_driver():
        raise BackendError("no NVIDIA driver here")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(driver, "load_driver", no_driver)
        patched.setattr(cuda_backend, "load_runtime", None)
        with pytest.raises(BackendError, match="no NVIDIA driver here"):
            open_inspector(bundle, backend="cuda")


@pytest.fixture
def installed(monkeypatch):
    """Put an onnxruntime of this kind in place of the one that is installed."""

    def call(**changed):
        module = SimpleNamespace(
            __version__="1.31.1",
            cuda_version="13.0",
            set_default_logger_severity=lambda level: None,
            get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
            preload_dlls=lambda: sys.stdout.write("libcufft.so.12 is not there"),
        )
        vars(module).update(changed)
        monkeypatch.setitem(sys.modules, "onnxruntime", module)

    return call


def test_the_runtime_that_is_installed_is_taken_and_prints_nothing(installed, capsys):
    installed()
    assert load_runtime("13.0").__version__ == "1.31.1"
    assert capsys.readouterr().out == ""


def test_an_onnx_runtime_without_cuda_is_one_sentence(installed):
    installed(get_available_providers=lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"built without CUDA; .*\.\[cuda\]"):
        load_runtime("13.0")


def test_an_onnx_runtime_for_a_later_cuda_than_the_drivers_is_one_sentence(installed):
    installed()
    with pytest.raises(BackendError, match=r"built for CUDA 13.0, .*driver here for CUDA 12.4"):
        load_runtime("12.4")


def test_it_is_installed_where_its_library_is(monkeypatch, tmp_path):
    spec = SimpleNamespace(origin=str(tmp_path / "onnxruntime" / "__init__.py"))
    monkeypatch.setattr(cuda, "find_spec", lambda _name: spec)
    assert not Cuda.is_installed()
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so").touch()
    assert Cuda.is_installed()
