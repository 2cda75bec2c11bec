"""Networks whose weights lie in other files are refused, wherever a tensor can be."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engine.backends.opening import open_backend
from engine.bundle import sha256, write_manifest
from engine.errors import BundleError
from engine.onnx_file import names_other_files
from tests.tiny_bundle import tiny_bundle


def external(name="w"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    return tensor


def graph(*, nodes=(), weights=()):
    return helper.make_graph(list(nodes), "g", [], [], list(weights))


def changed_network(bundle, data):
    (bundle.path / "network.onnx").write_bytes(data)
    files = bundle.manifest.files | {"network.onnx": sha256(data)}
    return write_manifest(bundle.path, replace(bundle.manifest, files=files))


def constant(**attributes):
    return helper.make_node("Constant", [], ["y"], **attributes)


HIDDEN = {
    "a weight": lambda: graph(weights=[external()]),
    "a constant": lambda: graph(nodes=[constant(value=external())]),
    "a list of tensors": lambda: graph(nodes=[constant(values=[external()])]),
    "a branch": lambda: graph(
        nodes=[helper.make_node("If", ["c"], ["y"], then_branch=graph(weights=[external()]))]
    ),
    "a list of branches": lambda: graph(
        nodes=[constant(branches=[graph(nodes=[constant(value=external())])])]
    ),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_a_tensor_elsewhere_is_found_wherever_it_hides(place):
    model = helper.make_model(HIDDEN[place]())
    assert names_other_files(model.SerializeToString())


def test_sparse_tensors_functions_and_training_are_looked_into():
    sparse = helper.make_model(graph())
    sparse.graph.sparse_initializer.add().values.CopyFrom(external())
    function = helper.make_model(graph())
    function.functions.add(name="f").node.append(constant(value=external()))
    training = helper.make_model(graph())
    training.training_info.add().initialization.CopyFrom(graph(weights=[external()]))
    for model in (sparse, function, training):
        assert names_other_files(model.SerializeToString())


def test_whole_models_are_whole(tmp_path):
    bundle = tiny_bundle(tmp_path)
    assert not names_other_files(bundle.network("fp32"))
    inside = graph(weights=[numpy_helper.from_array(np.zeros(3), "w")])
    assert not names_other_files(helper.make_model(inside).SerializeToString())


@given(st.binary(max_size=300))
def test_rubbish_is_judged_or_refused(data):
    with suppress(ValueError):
        names_other_files(data)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_with_such_a_network_is_refused(tmp_path, backend):
    bundle = tiny_bundle(tmp_path)
    model = onnx.load_model_from_string(bundle.network("fp32"))
    model.graph.initializer[0].CopyFrom(external(model.graph.initializer[0].name))
    changed = changed_network(bundle, model.SerializeToString())
    with pytest.raises(BundleError, match=r"network\.onnx: names another file .* no hash covers"):
        open_backend(changed, backend=backend)
    with pytest.raises(BundleError, match=r"network\.onnx: is not an ONNX model \("):
        open_backend(changed_network(bundle, b"<xml>"), backend=backend)
