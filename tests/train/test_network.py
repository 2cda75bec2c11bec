from dataclasses import replace

import numpy as np
import pytest
import torch

from train.apart import stacked
from train.backbones.resnet import ResNet
from train.memory_bank import MemoryBank
from train.network import (
    AttentionHead,
    ConvolutionHead,
    PatchResidual,
    SelfAttention,
    SelfAttentionHead,
    TorchBackend,
    local_mean,
)
from train.recipes import open_recipe


def built(settings):
    return open_recipe(settings).network()


@pytest.fixture
def views():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_the_head_has_the_size_of_the_papers():
    head = AttentionHead(2048, SelfAttentionHead(), supervised=False)
    assert sum(p.numel() for p in head.parameters()) == 1_184_977 + 65  # σ and τ


def test_heads_share_nothing_but_what_they_see_and_answer_by_their_mean():
    torch.manual_seed(0)
    head = AttentionHead(32, ConvolutionHead(heads=3), supervised=True).eval()
    seen = torch.randn(2, 32, 4, 5)
    each = head.each(seen)
    assert each.score_map.min() < 0  # magnitudes would hide that signs cancel
    for name, of_one in (("score_map", each.score_map.abs()), ("attention", each.attention)):
        expected = of_one.reshape(3, 2, 4, 5).mean(dim=0)
        torch.testing.assert_close(getattr(head(seen), name), expected)

    with torch.no_grad():
        head.convolve.weight[:64] *= 2  # the first head's
    for before, after in zip(each, head.each(seen), strict=True):
        moved = (before != after).flatten(1).any(dim=1)
        assert moved.tolist() == [True, True, False, False, False, False]


def test_one_head_keeps_its_sign():
    torch.manual_seed(0)
    head = AttentionHead(32, SelfAttentionHead(), supervised=False).eval()
    seen = torch.randn(2, 32, 4, 5)
    assert torch.equal(head(seen).score_map, head.each(seen).score_map)
    assert head(seen).score_map.min() < 0


def test_self_attention_starts_as_the_identity_and_then_mixes_all_patches():
    torch.manual_seed(0)
    block = SelfAttention(64, 8)
    x = torch.randn(2, 64, 5, 7)
    assert torch.equal(block(x), x)
    block.scale.data.fill_(1.0)
    moved = x.clone()
    moved[:, :, 0, 0] += 1
    assert (block(moved) - block(x))[:, :, 4, 6].abs().max() > 1e-6


def test_self_attention_is_the_formula_of_sagan():
    torch.manual_seed(0)
    block = SelfAttention(4, 2)
    block.scale.data.fill_(0.7)
    x = torch.randn(1, 4, 2, 3)
    q, k, v = (conv(x)[0].flatten(1) for conv in (block.query, block.key, block.value))
    expected = torch.empty(4, 6)
    for j in range(6):
        logits = torch.stack([q[:, j] @ k[:, i] for i in range(6)])
        beta = logits.exp() / logits.exp().sum()
        expected[:, j] = sum(beta[i] * v[:, i] for i in range(6))
    torch.testing.assert_close(block(x)[0].flatten(1), x[0].flatten(1) + 0.7 * expected)


def test_a_patches_residual_looks_at_that_patch_alone():
    torch.manual_seed(0)
    block = PatchResidual(64)
    x = torch.randn(2, 64, 5, 7)
    moved = x.clone()
    moved[:, :, 1, 2] += 1
    changed = (block(moved) - block(x)).abs().amax(dim=1) > 1e-6
    assert changed.nonzero().tolist() == [[0, 1, 2], [1, 1, 2]]
    added = block(x) - x
    assert added.min() == 0
    assert added.max() > 0


@pytest.mark.parametrize("mode", ["clip", "imagenet"])
def test_views_are_standardised_inside(paper, mode):
    network = built(replace(paper, standardise=mode))
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    network.eval()(grey)
    mean, std = {
        "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }[mode]
    expected = [(128 / 255 - m) / s for m, s in zip(mean, std, strict=True)]
    assert seen[0].shape == (1, 3, 64, 64)
    assert seen[0][0, :, 3, 5].tolist() == pytest.approx(expected, abs=1e-5)


def test_maps_have_the_grid_of_the_finest_stage(paper, views):
    network = built(
        replace(paper, backbone=ResNet(architecture="resnet18", stages=("layer2", "layer3")))
    ).eval()
    maps = network(torch.from_numpy(views))
    assert maps.score_map.shape == maps.attention.shape == (5, 8, 8)
    assert maps.attention.min() >= 0


def test_supervised_attention_is_a_probability(line):
    views = torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)
    network = built(line).eval()
    attention = network(views).attention
    assert attention.shape == (3, 6, 6)
    assert 0 < attention.min() <= attention.max() < 1
    network.head.locate.bias.data.fill_(50.0)
    assert network(views).attention.min() > 0.999


def test_a_local_mean_takes_the_eight_neighbours():
    lone = torch.zeros(1, 1, 5, 5)
    lone[0, 0, 0, 0] = 36.0
    # A corner has four patches in reach, an edge six, the inside nine.
    found = local_mean(lone)[0, 0, :3, :3].tolist()
    assert found == [[9.0, 6.0, 0.0], [6.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_recipe_decides_on_the_local_mean(line, views):
    torch.manual_seed(0)
    smooth = built(replace(line, local_mean=True)).eval()
    torch.manual_seed(0)
    sharp = built(replace(line, local_mean=False)).eval()
    seen = torch.from_numpy(views)
    assert smooth.features(seen).std() < sharp.features(seen).std()


def test_stacking_keeps_the_finest_stage_as_it_is():
    fine, coarse = torch.randn(1, 2, 8, 8), torch.randn(1, 3, 4, 4)
    both = stacked([fine, coarse])
    assert both.shape == (1, 5, 8, 8)
    assert torch.equal(both[:, :2], fine)


def test_a_batch_answers_as_its_single_views_do(paper, views):
    torch.manual_seed(0)
    with TorchBackend(built(paper)) as backend:
        together = backend.run(views)
        singly = [backend.run(view[None]) for view in views]
    for name in ("score_map", "attention"):
        alone = np.concatenate([out[name] for out in singly])
        np.testing.assert_allclose(together[name], alone, atol=1e-4)
    assert together["score_map"].dtype == np.float32


def test_a_backend_leaves_training_as_it_found_it(paper, views):
    network = built(paper).train()
    with TorchBackend(network) as backend:
        assert not network.training
        assert backend.name == "torch cpu fp32"
    assert network.training


def test_a_frozen_backbone_learns_nothing_not_even_statistics(paper, views):
    network = built(replace(paper, freeze=True)).train()
    before = {name: t.clone() for name, t in network.backbone.state_dict().items()}
    maps = network(torch.from_numpy(views))
    maps.score_map.sum().backward()
    assert all(torch.equal(t, before[n]) for n, t in network.backbone.state_dict().items())
    assert all(p.grad is None for p in network.backbone.parameters())
    assert network.head.convolve.weight.grad.abs().sum() > 0
    assert network.head.normalise.num_batches_tracked == 1


def test_scores_begin_near_zero_by_fan_in_and_near_the_margin_by_he(line, paper, views):
    def first_scores(initialisation):
        torch.manual_seed(0)
        small = replace(paper, view=line.view, initialisation=initialisation)
        network = built(small).eval()
        with torch.inference_mode():
            return network(torch.from_numpy(views)).score_map.abs().mean()

    assert first_scores("fan_in") < 1 < first_scores("he")


@pytest.mark.parametrize("half", [False, True])
def test_maps_apart_say_what_stacked_ones_do(line, half):
    torch.manual_seed(0)
    settings = replace(
        line,
        freeze=True,
        backbone=ResNet(architecture="resnet18", stages=("layer2", "layer3")),
        memory_bank=MemoryBank(prototypes=16, channels=8),
    )
    network = built(settings).eval().requires_grad_(requires_grad=False)
    bank = network.memory_bank
    channels = sum(network.backbone.channels)
    bank.hold(torch.randn(8, channels) / channels**0.5, torch.randn(16, 8) * 0.3, scale=1.0)
    views = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    before = network(views)
    network.prepare_export(half=half)
    after = network(views)
    near = {"rtol": 0.02, "atol": 0.02} if half else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(after.score_map, before.score_map, **near)
    torch.testing.assert_close(after.attention, before.attention, **near)
    assert after.score_map.dtype == after.attention.dtype == torch.float32
