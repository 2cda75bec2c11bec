"""A runtime is found by its name; one more is one more file."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from agent import cli
from agent.runtime import bundle_runtime
from calibration.record import calibrated_runtime, read_calibration
from engine.backends.base import BACKENDS, BackendChoice, backend_of, cpu_backends
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.opening import open_backend, open_inspector
from engine.errors import BackendError
from tests.extending import added
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

EXAMPLE = Path(__file__).parents[3] / "examples" / "extending" / "reference.py"


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """A package that adds the example's runtime, here and in child processes."""
    with added(EXAMPLE, BACKENDS, tmp_path / "site", monkeypatch):
        yield


@pytest.mark.usefixtures("reference")
def test_one_file_adds_a_runtime_from_the_configuration_to_the_threshold(
    tmp_path, monkeypatch, capsys
):
    bundle = tiny_bundle(tmp_path / "bundle")
    assert TypeAdapter(BackendChoice).validate_python("reference") == "reference"
    with open_backend(bundle, backend="reference") as backend, OnnxRuntimeBackend(bundle) as oracle:
        views = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
        for name, found in backend.run(views).items():
            np.testing.assert_allclose(found, oracle.run(views)[name], atol=1e-4)
    with open_inspector(bundle, backend="reference") as inspector:
        assert inspector.inspect(defective_part(1)).zoomed
    with pytest.raises(BackendError, match="onnx does not compute in int8, but in fp32"):
        open_backend(bundle, backend="reference", precision="int8")
    for seed in range(14):
        Image.fromarray(good_part(seed)).save(tmp_path / f"{seed}.png")
    command = ["agent", "calibrate", "--bundle", str(bundle.path), "--good", str(tmp_path)]
    options = ["--backend", "reference", "--max-false-reject", "20%", "--json"]
    monkeypatch.setattr(sys, "argv", command + options)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["backend"] == "reference cpu fp32"
    assert calibrated_runtime(bundle, read_calibration(bundle)).backend == "reference"
    assert bundle_runtime(bundle).backend == "reference"


def test_what_there_is_is_what_can_be_asked_for(tmp_path):
    assert BACKENDS.names() == ("cuda", "onnxruntime", "openvino", "tensorrt")
    for name in BACKENDS.names():
        assert BACKENDS.find(name).settings.title
    with pytest.raises(ValidationError, match="'auto', 'cuda', 'onnxruntime', 'openvino'"):
        TypeAdapter(BackendChoice).validate_python("coreml")
    with pytest.raises(BackendError, match="there is no backend 'coreml': write cuda or"):
        open_backend(tiny_bundle(tmp_path), backend="coreml")


def test_the_names_in_records_are_of_the_runtimes_that_there_are():
    assert backend_of("openvino cpu int8") == "openvino"
    assert backend_of("tensorrt_rtx NVIDIA H100 fp16, all on the device") == "tensorrt"
    assert backend_of("cuda NVIDIA H100 fp16, all on the device") == "cuda"
    assert backend_of("openvinos cpu") is backend_of("") is None


def test_finding_the_runtimes_imports_none_of_them():
    import subprocess

    code = (
        "import sys; from engine.backends.base import BACKENDS; BACKENDS.names();"
        "print({'onnxruntime', 'openvino', 'tensorrt', 'pycuda', 'cv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_only_one_runtime_on_the_cpu_has_each_of_these():
    assert cpu_backends("bf16") == ("openvino",)
    assert cpu_backends("int8_symmetric") == ("onnxruntime",)
