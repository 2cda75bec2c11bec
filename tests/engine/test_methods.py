"""A method is found by its name in the manifest; one more is one more file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.inference.child import ChildInspector, Setup
from calibration.scores import Picture, score_pictures
from engine.backends.opening import open_inspector
from engine.bundle import MANIFEST, open_bundle, sha256, write_manifest
from engine.errors import BackendError, BundleError
from engine.methods import METHODS, NetworkSpec
from engine.methods.atac import atac_of
from tests.extending import added
from tests.tiny_bundle import defective_part, good_part, tiny_bundle

EXAMPLE = Path(__file__).parents[2] / "examples" / "extending" / "one_pass.py"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that adds the example's method, here and in child processes."""
    with added(EXAMPLE, METHODS, tmp_path / "site", monkeypatch):
        yield


def one_pass_bundle(folder):
    """`tiny_bundle`, whose graph gives the largest patch as its score."""
    bundle = tiny_bundle(folder)
    graph = onnx.load_from_string(bundle.network("fp32"))
    graph.graph.node.append(
        helper.make_node("ReduceMax", ["score_map"], ["most"], axes=[1, 2], keepdims=0)
    )
    graph.graph.node.append(helper.make_node("Unsqueeze", ["most", "channel"], ["score"]))
    del graph.graph.output[0]
    graph.graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1]))
    data = graph.SerializeToString()
    (folder / "network.onnx").write_bytes(data)
    method = METHODS.find("one_pass").settings(
        network=NetworkSpec(side=64, outputs={"score": (1,), "attention": (8, 8)}),
        view=atac_of(bundle).view,
    )
    files = bundle.manifest.files | {"network.onnx": sha256(data)}
    return write_manifest(folder, replace(bundle.manifest, method=method, files=files))


@pytest.mark.usefixtures("installed")
def test_one_file_adds_a_method_from_the_bundle_to_the_threshold(tmp_path):
    bundle = one_pass_bundle(tmp_path / "bundle")
    assert open_bundle(bundle.path) == bundle
    with pytest.raises(BundleError, match="is of another method than atac"):
        atac_of(bundle)
    parts = [good_part(0), defective_part(1), good_part(2, width=300)]
    with open_inspector(bundle) as inspector:
        assert inspector.name == "onnxruntime cpu fp32"
        found = [inspector.inspect(part) for part in parts]
        pictures = [Picture(name=str(n), pixels=part) for n, part in enumerate(parts)]
        scores = score_pictures(
            inspector, pictures, label="good", training=frozenset(), progress=lambda: None
        )
    assert [each.zoomed for each in found] == [False] * 3
    assert found[1].score > 3 * found[0].score
    assert scores.values == tuple(each.score for each in found)
    with ChildInspector(Setup(bundle=bundle.path, bundle_id=bundle.id)) as child:
        for part, one in zip(parts, found, strict=True):
            other = child.inspect(part)
            assert (one.score, one.box) == (other.score, other.box)
            assert np.array_equal(one.attention, other.attention)


def test_a_bundle_of_an_unknown_method_is_refused_in_one_line(tmp_path):
    tiny_bundle(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    manifest["method"]["type"] = "three_stage"
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    expected = (
        r"is of the method 'three_stage', which is not installed \(atac and two_stage are\); update"
    )
    with pytest.raises(BundleError, match=expected):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    ("side", "outputs"),
    [
        (64, {"score_map": (8, 8)}),
        (64, {"score_map": (8, 8), "attention": (4, 4)}),
        (64, {"score_map": (8,), "attention": (8,)}),
        (32, {"score_map": (8, 8), "attention": (8, 8)}),
    ],
)
def test_a_manifest_whose_network_does_not_fit_its_method_is_refused(tmp_path, side, outputs):
    bundle = tiny_bundle(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    manifest["method"]["network"] = {"side": side, "outputs": outputs}
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"is not a valid manifest .*the network should"):
        open_bundle(tmp_path)


def test_a_graph_without_an_output_of_the_method_is_a_backend_error(tmp_path):
    bundle = tiny_bundle(tmp_path)
    graph = onnx.load_from_string(bundle.network("fp32"))
    del graph.graph.output[1]
    data = graph.SerializeToString()
    (tmp_path / "network.onnx").write_bytes(data)
    files = bundle.manifest.files | {"network.onnx": sha256(data)}
    bundle = write_manifest(tmp_path, replace(bundle.manifest, files=files))
    with pytest.raises(BackendError, match=r"onnxruntime cpu fp32 failed .*attention"):
        open_inspector(bundle)
