"""The recipe `nearest`: what it remembers, where it looks closer, and scores without the part."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.bundle import open_bundle
from engine.cross_fitted import cross_fitted_of
from engine.errors import ConfigurationError
from engine.frame import Box
from engine.methods import open_method
from engine.methods.atac import atac_of
from engine.parity import bundle_parity
from engine.view import view
from tests.training_parts import trained
from train.backbones.resnet import ResNet
from train.datasets import Images, TrainingImages, draw_split, read_listed
from train.evaluate import auroc
from train.export.gate import add_precision
from train.fold_heads import FOLDS
from train.nearest_patch import Near, attention
from train.network import TorchBackend
from train.recipes import open_recipe
from train.recipes.nearest import (
    LEAST_TAUGHT,
    LeftOut,
    LeftOutPart,
    Nearest,
    weight_by_evidence,
)
from train.run import train_bundle


@pytest.fixture(scope="module")
def bundle(source, nearest, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "nearest"
    settings = replace(nearest, hold_out=0.25)
    return train_bundle(source, out, settings, weights=None, defects=4, seed=0).written.bundle


def inspected(bundle, source, items):
    with open_method(bundle.manifest.method, OnnxRuntimeBackend(bundle)) as inspector:
        return [inspector.inspect(read_listed(source, item)) for item in items]


def test_it_tells_defects_that_it_never_saw(bundle, source, split):
    assert bundle_parity(bundle)["onnxruntime cpu fp32"].flips == ()
    found = inspected(bundle, source, split.test)
    scores = np.array([one.score for one in found])
    assert auroc(scores, np.array([item.defective for item in split.test])) > 0.9
    assert any(one.zoomed for one in found)


def test_scores_of_its_own_parts_are_of_banks_without_them(bundle, source, split):
    found = cross_fitted_of(bundle)
    assert (found.way, found.folds) == ("leave_one_out", len(split.train_good))
    assert len(found.good) == len(split.train_good) + len(split.held_out_good)
    without = {part.path: part.score for part in found.good}
    boxes = {part.path: part.box for part in found.good}
    frame = Box.around(read_listed(source, split.train_good[0]))
    for item in split.train_good:
        assert boxes[item.path].width == pytest.approx(frame.width / 2, abs=2)
    deployed = [one.score for one in inspected(bundle, source, split.train_good)]
    assert np.mean(deployed) < np.mean([without[item.path] for item in split.train_good])
    assert {part.path for part in found.defective} == {i.path for i in split.train_defective}


def left_out(good, defect):
    """A part of whose one patch this is said."""
    near = Near(*(torch.tensor([[[each]]]) for each in (good, defect)))
    return LeftOutPart((LeftOut(0, near, 0.0, Box.whole(1, 1)),))


def test_known_defects_count_as_far_as_those_left_out_stand_out():
    good = [left_out(0.5 + 0.01 * i, 0.1) for i in range(20)]
    told = [left_out(0.6, 0.3), left_out(0.65, 0.4)]
    misled = [left_out(0.68, 0.0), left_out(0.69, 0.0)]
    assert weight_by_evidence(good, told, 1.0) > 0
    assert weight_by_evidence(good, misled, 1.0) == 0
    assert weight_by_evidence(good, [], 1.0) == 0


def test_a_known_defect_teaches_what_it_shows(images, nearest, tmp_path):
    run = trained(nearest, images, tmp_path)
    bank = run.network.bank
    origin = set(bank.known_origin.tolist())
    assert origin == set(images.defective)
    index = images.defective[0]
    frame = images.frame(index)
    views = torch.tensor(view(frame, Box.around(frame), nearest.view))
    with torch.inference_mode():
        compared = bank.compared(run.network.features(views[None]))
        near, without = bank.near(compared), bank.near(compared, without=index)
    assert near.defect.sum() > without.defect.sum() > 0


def test_heads_learn_from_enough_known_defects(source, nearest, tmp_path):
    split = draw_split(source, defects=LEAST_TAUGHT, hold_out=0, seed=0)
    images = TrainingImages(Images(source), split)
    run = trained(replace(nearest, head_steps=40, closer=0), images, tmp_path)
    bank = run.network.bank
    assert bank.taught > 0
    views = [
        torch.tensor(view(frame, Box.around(frame), nearest.view))
        for frame in map(images.frame, (images.good[0], images.defective[0]))
    ]
    with torch.inference_mode():
        seen = bank.compared(run.network.features(torch.stack(views))).standardised
        good, defective = bank.heads(seen).amax(dim=(1, 2))
        of_folds = torch.stack([bank.heads(seen, fold=fold) for fold in range(FOLDS)])
    assert defective > 2 * good
    torch.testing.assert_close(of_folds.mean(dim=0), bank.heads(seen))
    assert not torch.allclose(of_folds[0], of_folds[1])


def test_about_half_of_good_parts_is_looked_at_closer(bundle, source, nearest, split):
    method = atac_of(bundle)
    assert 0 < method.crop.gate < 2
    good = inspected(bundle, source, split.held_out_good)
    defective = inspected(bundle, source, split.train_defective)
    assert np.mean([one.zoomed for one in good]) < 1 == np.mean([o.zoomed for o in defective])
    for one in defective:
        frame = one.passes[0].box
        assert one.box.width == pytest.approx(frame.width / 2, abs=2)
        assert one.box.height == pytest.approx(frame.height / 2, abs=2)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_part_is_looked_at_closer_or_all_are(images, nearest, tmp_path, share):
    run = trained(replace(nearest, closer=share), images, tmp_path)
    with open_method(run.method, TorchBackend(run.network)) as inspector:
        zoomed = [inspector.inspect(images.frame(index)).zoomed for index in images.good]
    assert zoomed == [share == 1.0] * len(zoomed)


def test_attention_points_at_one_place():
    distances = torch.full((1, 8, 8), 0.4)
    distances[0, 2:5, 5:8] = 0.9
    found = attention(distances)[0]
    above = found >= 0.4 * found.max()
    assert above.nonzero().tolist() == [[3, 6]] or above.sum() <= 4
    assert above[2:5, 5:8].any()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("weight", "taught"), [(0.0, 1.0), (2.0, 0.0), (2.0, 0.5)])
def test_an_export_says_what_the_network_does(nearest, half, weight, taught):
    torch.manual_seed(0)
    two = ResNet(architecture="resnet18", stages=("layer2", "layer3"))
    network = open_recipe(replace(nearest, backbone=two)).network().eval()
    patches = torch.randn(200, sum(network.backbone.channels))
    network.bank.fit(patches)
    compared = network.bank.compared(patches.T[None, :, None]).direction[0, :, 0].T
    network.bank.hold(compared[:150], torch.zeros(150), seed=0)
    network.bank.learn(compared[150:], torch.ones(50), seed=0)
    network.bank.weight.fill_(weight)
    network.bank.taught.fill_(taught)
    views = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    before = network(views)
    network.prepare_export(half=half)
    assert (network.bank.known is None) == (weight == 0)
    assert (network.bank.heads is None) == (weight == 0 or not taught)
    near = {"rtol": 0.02, "atol": 0.02} if half else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(network(views).score_map, before.score_map, **near)


def test_fp16_joins_the_bundle(bundle, source, tmp_path):
    copy = open_bundle(shutil.copytree(bundle.path, tmp_path / "copy"))
    _, judged = add_precision(copy, "fp16", source)
    assert judged["onnxruntime cpu fp16"].flips == ()


def test_it_has_no_epochs_to_choose():
    assert Nearest().lasting(1) == Nearest()
    with pytest.raises(ConfigurationError, match="--epochs: '5': is not for the recipe nearest"):
        Nearest().lasting(5)


def test_a_resumed_training_ends_in_the_same_scores(images, nearest, tmp_path):
    one = trained(nearest, images, tmp_path)
    again = trained(nearest, images, tmp_path, resume=True)
    assert again.method == one.method
    assert again.cross_fitted == one.cross_fitted
