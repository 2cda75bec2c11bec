import base64
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from engine.backends.base import Runtime
from engine.backends.choice import fastest
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.backends.openvino import OpenVino, OpenVinoBackend
from engine.backends.tensorrt.plans import build_plan, find_tensorrt
from engine.bundle import PARITY, WEIGHTS, open_bundle, sha256, write_manifest
from engine.cross_fitted import (
    CROSS_FITTED,
    PICTURES,
    CrossFitted,
    CrossFittedPart,
    cross_fitted_of,
    pictures_in,
)
from engine.errors import BackendError, BundleError
from engine.methods import open_method
from engine.methods.atac import atac_of
from engine.parity import bundle_parity
from tests.training_parts import trained
from train.datasets import SPLIT, read_listed, unseen_images
from train.evaluate import evaluation, scored
from train.export.gate import add_precision, load_network, write_bundle
from train.memory_bank import MemoryBank
from train.network import TorchBackend
from train.recipes import RECIPE, open_recipe
from train.run import train_bundle


@pytest.fixture(scope="module")
def bundle(source, line, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "trained"
    settings = replace(line, epochs=3, least_steps=8, hold_out=0.25)
    return train_bundle(source, out, settings, weights=None, defects=4, seed=0).written.bundle


@pytest.fixture
def copy(bundle, tmp_path):
    return open_bundle(shutil.copytree(bundle.path, tmp_path / "copy"))


def scores(backend, bundle, source, items):
    inspector = open_method(bundle.manifest.method, backend)
    return np.array([inspector.inspect(read_listed(source, item)).score for item in items])


def test_training_ends_in_a_bundle(bundle, split, line):
    manifest = bundle.manifest
    assert set(manifest.files) == {"network.onnx", WEIGHTS, SPLIT, RECIPE, PARITY}
    assert {path.name for path in bundle.path.iterdir()} == {*manifest.files, "manifest.json"}
    assert [path.name for path in bundle.path.parent.iterdir()] == ["trained"]
    assert manifest.method.network.outputs == {"score_map": (6, 6), "attention": (6, 6)}
    record = manifest.training
    assert record.training_sha256 == tuple(item.sha256 for item in split.training)
    assert len(record.held_out_scores) == len(split.held_out_good)
    assert (record.good, record.defective, record.pretrained) == (18, 4, "none")
    assert atac_of(bundle).score.reference_std != 1.0
    assert atac_of(bundle).view == line.view


def test_cross_fitted_scores_go_into_the_bundle_with_pictures_of_the_doubtful(
    bundle, line, images, split, tmp_path
):
    def part(item, score):
        return CrossFittedPart(path=item.path, sha256=item.sha256, kind=item.kind, score=score)

    run = trained(replace(line, epochs=1), images, tmp_path / "run")
    given = CrossFitted(
        way="leave_one_out",
        folds=len(split.train_good),
        good=tuple(part(item, i / 100) for i, item in enumerate(split.train_good)),
        defective=tuple(part(item, 9.0 - i) for i, item in enumerate(split.train_defective)),
    )
    written = write_bundle(
        tmp_path / "out",
        replace(run, cross_fitted=given),
        line,
        bundle.manifest.training,
        images.images,
        split,
        accept_flips=True,
    ).bundle
    found = cross_fitted_of(written)
    assert CROSS_FITTED in written.manifest.files
    assert {one.path for one in found.good} == {
        one.path for one in (*split.train_good, *split.held_out_good)
    }
    held_out = {one.path for one in split.held_out_good}
    assert sorted(one.score for one in found.good if one.path in held_out) == sorted(
        written.manifest.training.held_out_scores
    )
    scores_of = [one.score for one in found.good]
    assert scores_of == sorted(scores_of, reverse=True)
    shown = pictures_in(written, found)
    assert [one.path in shown for one in found.good] == [True] * 12 + [False] * 12
    assert base64.b64decode(shown[found.good[0].path]).startswith(b"\xff\xd8")
    assert [one.score for one in found.defective] == [6.0, 7.0, 8.0, 9.0]
    assert cross_fitted_of(bundle) is None

    # Whoever gives the bundle away can take the pictures out of it, but put no others into it.
    pictures = written.path / PICTURES
    other = pictures.read_bytes().replace(b"train/good", b"train/evil", 1)
    pictures.unlink()
    assert pictures_in(open_bundle(written.path), found) == {}
    pictures.write_bytes(other)
    with pytest.raises(BundleError, match="is not the file that training wrote"):
        pictures_in(open_bundle(written.path), found)


def test_a_recipe_that_is_no_more_is_refused_by_one_line(copy):
    recipe = (copy.path / RECIPE).read_bytes().replace(b'"top_k"', b'"loss_of": "each", "top_k"')
    (copy.path / RECIPE).write_bytes(recipe)
    files = {**copy.manifest.files, RECIPE: sha256(recipe)}
    old = write_manifest(copy.path, replace(copy.manifest, files=files))
    with pytest.raises(BundleError, match=r"recipe\.json.* is of a recipe that this version"):
        load_network(old)


def test_weights_of_another_version_are_refused_by_one_line(copy):
    tensors = safetensors.torch.load((copy.path / WEIGHTS).read_bytes())
    # Not any one: a count of batches may be missing, and the file's order differs by run.
    del tensors[next(name for name in tensors if name.endswith(".weight"))]
    weights = safetensors.torch.save(tensors)
    (copy.path / WEIGHTS).write_bytes(weights)
    files = {**copy.manifest.files, WEIGHTS: sha256(weights)}
    old = write_manifest(copy.path, replace(copy.manifest, files=files))
    with pytest.raises(BundleError, match=r"weights\.safetensors.* is of a recipe that this ver"):
        load_network(old)


def test_onnx_and_torch_decide_alike(bundle, source):
    items = unseen_images(source, bundle)
    with TorchBackend(load_network(bundle)) as torch_backend:
        expected = scores(torch_backend, bundle, source, items)
    with OnnxRuntimeBackend(bundle) as onnx_backend:
        found = scores(onnx_backend, bundle, source, items)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    parity = bundle_parity(bundle)["onnxruntime cpu fp32"]
    assert (parity.flips, parity.images) == ((), 10)
    assert parity.max_score_difference < 1e-3


def test_the_graph_has_one_input_two_outputs_and_any_batch(bundle):
    graph = onnx.load_model_from_string(bundle.network("fp32")).graph
    (views,) = graph.input
    assert views.name == "views"
    assert views.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in views.type.tensor_type.shape.dim][1:] == [48, 48, 3]
    assert views.type.tensor_type.shape.dim[0].dim_param
    assert [o.name for o in graph.output] == ["score_map", "attention"]
    assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
    batch = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    with OnnxRuntimeBackend(bundle) as backend:
        together = backend.run(batch)
        alone = np.concatenate([backend.run(view[None])["score_map"] for view in batch])
    np.testing.assert_allclose(together["score_map"], alone, atol=1e-4)


def test_int8_and_fp16_join_the_bundle(bundle, copy, source):
    extended, of_int8 = add_precision(copy, "int8", source)
    extended, of_fp16 = add_precision(extended, "fp16", source)
    int8, fp16 = of_int8["onnxruntime cpu int8"], of_fp16["onnxruntime cpu fp16"]
    assert set(extended.manifest.networks) == {"fp32", "fp16", "int8"}
    assert extended.id != copy.id
    assert extended.manifest.training == copy.manifest.training
    assert bundle_parity(extended) == bundle_parity(bundle) | of_int8 | of_fp16
    assert (int8.flips, fp16.flips) == ((), ())
    assert int8.threshold_from == "held-out images"
    assert fp16.max_score_difference < 0.05
    assert len(extended.network("int8")) < 0.5 * len(extended.network("fp32"))
    assert len(extended.network("fp16")) < 0.7 * len(extended.network("fp32"))

    items = unseen_images(source, extended)
    aurocs = []
    for precision in ("fp32", "fp16", "int8"):
        with OnnxRuntimeBackend(extended, precision=precision) as backend:
            images, _ = scored(open_method(extended.manifest.method, backend), source, items)
        aurocs.append(evaluation(images, backend=backend.name).overall.auroc)
    assert min(aurocs) > 0.9


def test_a_verdict_that_flips_stops_the_export_unless_accepted(copy, source, split):
    with OnnxRuntimeBackend(copy) as backend:
        before = scores(backend, copy, source, split.held_out_good)
    _, judged = add_precision(copy, "int8", source)
    free = judged["onnxruntime cpu int8"]
    with OnnxRuntimeBackend(open_bundle(copy.path), precision="int8") as backend:
        after = scores(backend, copy, source, split.held_out_good)
    widest = int(np.argmax(abs(after - before)))
    between = float(before[widest] + after[widest]) / 2
    assert free.flips == ()

    with pytest.raises(BundleError, match=r"\d+ of 10 verdicts change.*with --accept-flips"):
        add_precision(open_bundle(copy.path), "int8", source, threshold=between)
    _, judged = add_precision(
        open_bundle(copy.path), "int8", source, threshold=between, accept_flips=True
    )
    accepted = judged["onnxruntime cpu int8"]
    assert split.held_out_good[widest].path in accepted.flips
    assert accepted.threshold_from == "calibration"
    # Accepted it may be run by name; `auto` does not take it.
    assert fastest(open_bundle(copy.path), backend="onnxruntime").precision == "fp32"


@pytest.mark.skipif(not OpenVino.is_installed(), reason="needs OpenVINO: pip install '.[cpu]'")
def test_openvino_is_judged_too_and_objections_to_it_stop_only_auto(copy, source, monkeypatch):
    extended, judged = add_precision(copy, "int8", source)
    assert list(judged) == ["onnxruntime cpu int8", "openvino cpu int8"]
    assert all(each.compared_with == "onnxruntime cpu fp32" for each in judged.values())
    assert judged["openvino cpu int8"].objections == ()
    assert fastest(extended) == Runtime(backend="openvino", precision="int8")

    right = OpenVinoBackend.run

    def blind(backend, views):
        found = right(backend, views)
        return {**found, "score_map": np.zeros_like(found["score_map"])}

    monkeypatch.setattr(OpenVinoBackend, "run", blind)
    extended, judged = add_precision(extended, "int8", source)
    assert "verdicts change" in judged["openvino cpu int8"].objections[0]
    assert fastest(extended) == Runtime(backend="onnxruntime", precision="int8")
    assert fastest(extended, backend="openvino") == Runtime(backend="openvino", precision="fp32")


def test_without_openvino_the_report_says_that_nobody_judged_it(copy, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    extended, judged = add_precision(copy, "int8", source)
    assert list(judged) == ["onnxruntime cpu int8"]
    monkeypatch.undo()
    assert fastest(extended) == Runtime(backend="onnxruntime", precision="int8")
    # Exported again where it is installed, it is judged; again without it, that is void.
    if OpenVino.is_installed():
        extended, _ = add_precision(extended, "int8", source)
        assert "openvino cpu int8" in bundle_parity(extended)
    monkeypatch.setitem(sys.modules, "openvino", None)
    extended, _ = add_precision(extended, "int8", source)
    assert "openvino cpu int8" not in bundle_parity(extended)


def test_the_image_that_set_the_threshold_cannot_flip(copy, source, split):
    with OnnxRuntimeBackend(copy) as backend:
        highest = scores(backend, copy, source, split.held_out_good).max()
    _, judged = add_precision(copy, "int8", source, threshold=float(highest))
    assert judged["onnxruntime cpu int8"].flips == ()


def test_fp32_can_be_made_again(copy, source):
    again, judged = add_precision(copy, "fp32", source)
    (parity,) = judged.values()
    assert parity.compared_with == "torch fp32"
    assert again.network("fp32") == copy.network("fp32")


def test_a_bundle_of_another_make_says_so(copy, source):
    manifest = copy.manifest
    foreign = replace(
        copy,
        manifest=replace(manifest, files={"network.onnx": manifest.files["network.onnx"]}),
    )
    with pytest.raises(BundleError, match=r"has no split\.json"):
        add_precision(foreign, "int8", source)


def test_folding_changes_nothing_but_the_graph(paper):
    torch.manual_seed(0)
    network = open_recipe(paper).network()
    views = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    network.train()(views)  # gives the BatchNorms statistics of their own
    network.eval().requires_grad_(requires_grad=False)
    before = network(views)
    network.prepare_export(half=False)
    assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    torch.testing.assert_close(network(views).score_map, before.score_map, rtol=1e-4, atol=1e-4)


def test_symmetric_int8_is_what_tensorrt_takes(copy, source):
    extended, judged = add_precision(copy, "int8_symmetric", source)
    (parity,) = judged.values()  # it is not for OpenVINO
    assert parity.flips == ()
    graph = onnx.load_model_from_string(extended.network("int8_symmetric")).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    pairs = [node for node in graph.node if node.op_type.endswith("uantizeLinear")]
    assert pairs
    for node in pairs:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantised = [node for node in convolutions if made_by[node.input[0]] == "DequantizeLinear"]
    exact = [node for node in convolutions if node not in quantised]
    assert len(quantised) > len(exact) > 0
    # Weights are int8 too, and what decides box and score is left as it was.
    assert all(made_by.get(node.input[1]) == "DequantizeLinear" for node in quantised)
    assert all(node.input[1].startswith("head.") for node in exact)


@pytest.fixture(scope="module")
def remembering(source, line, tmp_path_factory):
    """A bundle whose score map has a memory bank in it."""
    out = tmp_path_factory.mktemp("bundles") / "remembering"
    settings = replace(line, freeze=True, memory_bank=MemoryBank(prototypes=8, channels=4))
    return train_bundle(
        source, out, settings, weights=None, defects=4, seed=0, accept_flips=True
    ).written.bundle


@pytest.mark.rtx
@pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT-RTX: make builders",
)
@pytest.mark.parametrize("kind", ["bundle", "remembering"])
def test_tensorrt_rtx_builds_every_precision_but_int8_without_a_gpu(
    kind, request, source, tmp_path
):
    trained = request.getfixturevalue(kind)
    extended = open_bundle(shutil.copytree(trained.path, tmp_path / "copy"))
    # What these small networks decide is another test's matter.
    for precision in ("fp16", "int8_symmetric", "int8"):
        extended, _ = add_precision(extended, precision, source, accept_flips=True)
    for precision in ("fp32", "fp16", "int8_symmetric"):
        network = extended.network(precision)
        assert len(build_plan(network, find_tensorrt(), what=precision)) > 0.2 * len(network)
    # int8 has unsigned activations with a zero point, which CPUs like.
    with pytest.raises(BackendError, match=r"cannot parse int8: .*int8_symmetric is for TensorRT"):
        build_plan(extended.network("int8"), find_tensorrt(), what="int8")
