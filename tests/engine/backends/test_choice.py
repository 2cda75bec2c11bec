"""What `auto` takes where no threshold binds: the fastest that the gate found to decide alike."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.backends.base import Runtime
from engine.backends.choice import fastest, judgement
from engine.backends.openvino import OpenVino
from engine.bundle import PARITY, open_bundle, sha256, write_manifest
from engine.errors import BundleError
from engine.parity import bundle_parity
from tests.tiny_bundle import judged, tiny_bundle

FLIPS = ("part.png",)
BOTH = {"onnxruntime_cpu_int8": (), "openvino_cpu_int8": ()}
ONNX_RUNTIME = {"onnxruntime_cpu_int8": ()}
OPENVINO_FLIPS = {"onnxruntime_cpu_int8": (), "openvino_cpu_int8": FLIPS}
ALL_FLIP = {"onnxruntime_cpu_int8": FLIPS, "openvino_cpu_int8": FLIPS}
DEMO = Path(__file__).parents[3] / "agent" / "demo_bundle"


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "bundle", precisions=("fp32", "int8"))


@pytest.mark.parametrize(
    ("judgements", "with_openvino", "without"),
    [
        ({}, "openvino cpu fp32", "onnxruntime cpu fp32"),
        (BOTH, "openvino cpu int8", "onnxruntime cpu int8"),
        # OpenVINO was not installed where the network was exported.
        (ONNX_RUNTIME, "onnxruntime cpu int8", "onnxruntime cpu int8"),
        (OPENVINO_FLIPS, "onnxruntime cpu int8", "onnxruntime cpu int8"),
        (ALL_FLIP, "openvino cpu fp32", "onnxruntime cpu fp32"),
    ],
)
def test_int8_is_taken_from_a_runtime_that_was_judged_and_keeps_verdicts(
    bundle, monkeypatch, judgements, with_openvino, without
):
    bundle = judged(bundle, **judgements)
    for is_there, expected in ((True, with_openvino), (False, without)):
        monkeypatch.setattr(OpenVino, "is_installed", lambda is_there=is_there: is_there)
        assert fastest(bundle).cpu_name == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"backend": "onnxruntime"}, "onnxruntime cpu int8"),
        ({"backend": "openvino"}, "openvino cpu fp32"),
        ({"backend": "tensorrt"}, "tensorrt cpu fp32"),
        ({"precision": "fp32"}, "openvino cpu fp32"),
        ({"precision": "int8"}, "onnxruntime cpu int8"),
        ({"precision": "fp16"}, "openvino cpu fp16"),
        ({"precision": "bf16"}, "openvino cpu bf16"),
        ({"precision": "int8_symmetric"}, "onnxruntime cpu int8_symmetric"),
        ({"backend": "openvino", "precision": "int8"}, "openvino cpu int8"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "onnxruntime cpu bf16"),
    ],
)
def test_what_is_named_is_taken_as_it_is(bundle, monkeypatch, asked, expected):
    monkeypatch.setattr(OpenVino, "is_installed", lambda: True)
    assert fastest(judged(bundle, **OPENVINO_FLIPS), **asked).cpu_name == expected


def test_a_bundle_without_int8_or_without_a_gate_runs_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr(OpenVino, "is_installed", lambda: False)
    bundle = tiny_bundle(tmp_path / "bundle")
    assert fastest(bundle) == Runtime(backend="onnxruntime", precision="fp32")
    assert bundle_parity(bundle) == {}


def test_older_reports_are_of_onnx_runtime(bundle, monkeypatch):
    monkeypatch.setattr(OpenVino, "is_installed", lambda: True)
    new = judged(bundle, **ONNX_RUNTIME)
    old = json.dumps({"int8": json.loads(new.read(PARITY))["onnxruntime cpu int8"]}).encode()
    (bundle.path / PARITY).write_bytes(old)
    files = bundle.manifest.files | {PARITY: sha256(old)}
    bundle = write_manifest(bundle.path, replace(bundle.manifest, files=files))
    assert list(bundle_parity(bundle)) == ["onnxruntime cpu int8"]
    assert fastest(bundle).cpu_name == "onnxruntime cpu int8"
    (demos,) = bundle_parity(open_bundle(DEMO)).items()
    assert demos[0] == "onnxruntime cpu fp32"
    assert fastest(open_bundle(DEMO)).cpu_name == "openvino cpu fp32"


def test_in_fp32_the_oracle_stands_for_all(bundle):
    bundle = judged(bundle, onnxruntime_cpu_fp32=())
    for backend in ("onnxruntime", "openvino"):
        assert judgement(bundle, Runtime(backend=backend, precision="fp32")).flips == ()
        assert judgement(bundle, Runtime(backend=backend, precision="int8")) is None


def test_a_report_that_is_none_is_an_error_with_its_name(bundle):
    (bundle.path / PARITY).write_bytes(b"[]")
    files = bundle.manifest.files | {PARITY: sha256(b"[]")}
    bundle = write_manifest(bundle.path, replace(bundle.manifest, files=files))
    with pytest.raises(BundleError, match=r"parity\.json: is not a parity report"):
        fastest(bundle)
