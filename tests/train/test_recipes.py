import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from engine.frame import Box
from engine.score import ScoreSpec
from engine.view import view
from tests.training_parts import trained
from train.anomalies import patches
from train.backbones.resnet import ResNet, ResNetBackbone
from train.batches import Sample
from train.datasets import TrainingImages
from train.features import SeenPass
from train.memory_bank import MemoryBank
from train.network import ConvolutionHead, Maps, TorchBackend
from train.recipes import RECIPE_JSON, RECIPES
from train.recipes.line import (
    KnownDefects,
    Line,
    LineLoss,
)
from train.recipes.nearest import Nearest
from train.recipes.paper import Paper, score_loss
from train.schedule import Steps
from train.weights import Weights

REFERENCE = ScoreSpec(top_k=0.1, reference_mean=0.0, reference_std=1.0)
LABELS = KnownDefects(share=0.5, versions=0, masks=False)


class Located:
    """Known defects whose masks are known, or not."""

    def __init__(self, *located):
        self.located = located


def test_a_recipe_survives_its_file():
    assert RECIPES.names() == ("line", "nearest", "paper", "two_stage")
    for settings in (Paper(), Line(), Nearest()):
        text = RECIPE_JSON.dump_json(settings)
        assert json.loads(text)["type"] == settings.type
        assert RECIPE_JSON.validate_json(text) == settings


def test_an_odd_batch_cannot_be_halved():
    text = RECIPE_JSON.dump_json(Paper()).replace(b'"batch":16', b'"batch":15')
    with pytest.raises(ValidationError, match="multiple of 2"):
        RECIPE_JSON.validate_json(text)


def test_a_memory_bank_of_features_that_change_is_refused():
    with pytest.raises(ValidationError, match="needs a frozen backbone"):
        replace(Line(), freeze=False)


def test_weights_settle_form_and_freezing():
    weights = Weights(source="weights.pth", tensors={}, metadata={"stride_in": "conv1"})
    assert Line().settled(None) == replace(Line(), freeze=False, memory_bank=None)
    assert Line().settled(weights).backbone.form == "v1"
    assert Paper().settled(weights).backbone.form == "v1"


def test_a_shorter_training_changes_at_the_same_shares():
    assert Paper().lasting(15).schedule == Steps(every=5, factor=0.1)
    assert (Line().lasting(16).epochs, Line().lasting(16).zoom_from) == (16, 6)


def test_the_loss_of_paper_is_that_of_the_mean_of_both_passes():
    batch = [Sample(pixels=None, mask=None, defective=bad, cache_key=None) for bad in (False, True)]
    scores = torch.tensor([[1.0, 4.0], [3.0, 8.0]])
    assert score_loss(scores, batch, REFERENCE, 10.0).item() == pytest.approx((2 + 4) / 2)


def seen(*scores, box=None, images=None, side=8, frame=64):
    whole = Box.whole(frame, frame)
    boxes = [box or whole] * (images or len(scores))
    maps = torch.stack([torch.full((side, side), score) for score in scores])
    return SeenPass(Maps(maps, torch.zeros_like(maps)), boxes)


def test_a_pass_is_judged_by_what_its_box_shows(line, images):
    pixels = np.zeros((64, 64), np.uint8)
    mask = np.zeros((64, 64), np.bool_)
    mask[:8, :8] = True
    located = Sample(pixels=pixels, mask=mask, defective=True, cache_key=None)
    hidden = replace(located, mask=None)
    beside = Box(left=32, top=32, right=64, bottom=64)
    settings = replace(line, attention_weight=0.0, patch_weight=0.0)
    loss = LineLoss(settings, images, Located(), REFERENCE)

    def of(sample, first, second):
        return loss.of((seen(first), seen(second, box=beside)), [sample]).item()

    assert of(located, 10.0, 0.0) == 0
    assert of(located, 0.0, 10.0) == pytest.approx(10)
    assert of(hidden, 10.0, 0.0) == pytest.approx(5)  # that it is good is not known


def test_each_head_learns_as_if_it_were_alone(line, images):
    pixels, mask = np.zeros((64, 64), np.uint8), np.ones((64, 64), np.bool_)
    batch = [
        Sample(pixels=pixels, mask=mask & bad, defective=bad, cache_key=None)
        for bad in (False, True)
    ]
    loss = LineLoss(line, images, Located(0), REFERENCE)
    scores = [(1.0, 2.0), (3.0, 6.0), (5.0, 14.0)]  # of three heads
    each = seen(*sum(scores, ()), images=2)
    together = loss.of((each, each), batch)
    alone = [loss.of((seen(*pair), seen(*pair)), batch).item() for pair in scores]
    assert len(set(alone)) == 3
    assert together.item() == pytest.approx(np.mean(alone), rel=1e-4)


def test_synthetic_defects_can_teach_attention_alone(line, images):
    pixels, mask = np.zeros((64, 64), np.uint8), np.ones((64, 64), np.bool_)
    real = Sample(pixels=pixels, mask=None, defective=True, cache_key=None)
    synthetic = replace(real, mask=mask, synthetic=True)
    settings = replace(line, known=LABELS)

    def of(scores, batch, **changes):
        loss = LineLoss(replace(settings, **changes), images, Located(), REFERENCE)
        return loss.of((seen(*scores), seen(*scores)), batch).item()

    both, untaught = [real, synthetic], {"attention_weight": 0.0}
    assert of((3.0, 1.0), both, **untaught) == pytest.approx(of((3.0,), [real], **untaught))
    assert of((3.0, 1.0), both) != pytest.approx(of((3.0,), [real]))


@pytest.mark.parametrize(
    ("known", "located", "expected"), [(True, True, 8.0), (True, False, 7.0), (False, False, 8.0)]
)
def test_synthetic_defects_teach_the_score_where_nothing_better_does(
    line, images, split, known, located, expected
):
    settings = replace(line, attention_weight=0.0, patch_weight=0.0)
    if not known:
        images = TrainingImages(images.images, replace(split, train_defective=()))
    mask = np.ones((64, 64), np.bool_)
    real = Sample(pixels=mask, mask=None, defective=True, cache_key=None)
    batch = [real, replace(real, mask=mask, synthetic=True)]
    loss = LineLoss(settings, images, Located(*[0] * located), REFERENCE)
    assert loss.of((seen(3.0, 1.0), seen(3.0, 1.0)), batch).item() == pytest.approx(expected)


def test_patches_are_taught_only_where_masks_of_known_defects_are(line, images):
    mask = np.ones((64, 64), np.bool_)
    batch = [Sample(pixels=mask, mask=mask, defective=True, cache_key=None)]
    for located in (True, False):
        loss = LineLoss(
            replace(line, attention_weight=0.0), images, Located(*[0] * located), REFERENCE
        )
        found = loss.of((seen(10.0), seen(4.0)), batch).item()
        assert found == pytest.approx(6 / 2 + located * 6 / 2)


def test_supervised_attention_learns_where_defects_are(images, split, line, tmp_path):
    settings = replace(line, epochs=4, least_steps=8, zoom_from=2, patch_weight=0.0)
    network = trained(settings, images, tmp_path).network
    inside, outside = [], []
    with TorchBackend(network) as backend:
        for index in images.defective:
            pixels = images.frame(index)
            whole = Box.around(pixels)
            attention = backend.run(view(pixels, whole, settings.view)[None])["attention"][0]
            marked = patches(images.mask(index), whole, *attention.shape) > 0
            inside.append(attention[marked].mean())
            outside.append(attention[~marked].mean())
    assert np.mean(inside) > 2 * np.mean(outside)


def test_training_separates_defects(images, line, tmp_path):
    epochs = []
    settings = replace(line, epochs=3, least_steps=8)
    result = trained(settings, images, tmp_path, on_epoch=epochs.append)
    assert [e.number for e in epochs] == [1, 2, 3]
    assert epochs[-1].loss < 0.6 * epochs[0].loss
    assert epochs[-1].separation >= 0.9
    assert result.history == tuple(epochs)
    assert not result.network.training


def test_windows_of_the_view_teach_too(images, line, tmp_path):
    epochs = []
    settings = replace(line, epochs=4, least_steps=8, zoom_from=1, window=32)
    trained(settings, images, tmp_path, on_epoch=epochs.append)
    assert epochs[-1].loss < 0.8 * epochs[0].loss
    assert epochs[-1].separation >= 0.9
    for wrong in ({"freeze": True}, {"window": 2 * line.view.side}):
        with pytest.raises(ValidationError, match="window"):
            replace(settings, **wrong)


@pytest.mark.parametrize("recipe", ["line", "nearest", "paper"])
def test_the_same_seed_gives_the_same_weights(images, recipe, request, tmp_path):
    settings = request.getfixturevalue(recipe)

    def weights(folder, seed=0):
        return trained(settings, images, tmp_path / folder, seed=seed).network.state_dict()

    one = weights("one")
    torch.manual_seed(99)  # whatever happened before must not matter
    other, third = weights("other"), weights("third", seed=1)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, third[name]) for name, tensor in one.items())


def pretrained(stage):
    backbone = ResNetBackbone(ResNet(architecture="resnet18", stages=(stage,)))
    backbone.initialise()
    return Weights(source="weights.pth", tensors=backbone.state_dict())


def test_folded_weights_train_from_what_they_compute(images, paper, tmp_path):
    weights = pretrained("layer3")  # BatchNorm has mean 0: as if it had been folded
    still = replace(paper, backbone=ResNet(architecture="resnet18", stages=("layer3",)))
    still = replace(still, first_rate=1e-9, zoom_from=1)
    learnt = trained(still, images, tmp_path, weights=weights).network
    frame = images.frame(0)
    shown = torch.tensor(view(frame, Box.around(frame), still.view)[None])
    with torch.inference_mode():
        after = learnt.eval().features(shown)
        learnt.backbone.load_state_dict(weights.tensors)
        before = learnt.features(shown)
    # The statistics have moved a little to those of the batches, a fifth of them defective.
    assert (after - before).norm() < 0.1 * before.norm()


def test_pretrained_and_frozen_stays_as_it_was(images, line, tmp_path):
    weights = pretrained("layer2")
    settings = replace(
        line, freeze=True, memory_bank=MemoryBank(prototypes=8, channels=8), least_steps=2
    )
    backbone = trained(settings, images, tmp_path, weights=weights).network.backbone
    assert all(
        torch.equal(tensor, weights.tensors[name]) for name, tensor in backbone.state_dict().items()
    )


def test_heads_are_of_the_settings(images, line, tmp_path):
    settings = replace(line, head=ConvolutionHead(heads=2, channels=8), least_steps=1)
    assert trained(settings, images, tmp_path).network.head.score.weight.shape == (2, 8, 1, 1)
