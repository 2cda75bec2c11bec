from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.frame import Box
from engine.score import top_k_mean
from engine.view import view
from train.fit import fit
from train.loss import drawn_reference
from train.memory import closer_view, remember
from train.network import AtacNet, TorchBackend


@pytest.fixture
def remembering(line):
    return replace(line, freeze=True, prototypes=40, prototype_channels=32)


@pytest.fixture
def features():
    """Two views of each of 20 good images: few kinds of cells, with a little noise."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((12, 128))
    cells = kinds[rng.integers(12, size=(40, 36))] + 0.05 * rng.standard_normal((40, 36, 128))
    return [torch.from_numpy(c.T.reshape(128, 6, 6)).half() for c in cells]


@pytest.mark.parametrize("unit_cells", [True, False])
def test_a_memory_measures_the_distance_to_the_nearest_prototype(remembering, features, unit_cells):
    torch.manual_seed(0)
    profile = replace(remembering, unit_cells=unit_cells)
    network = AtacNet(profile)
    remember(network, profile, lambda: features, seed=0)
    memory = network.memory
    x = torch.randn(2, 128, 4, 5)
    prototypes = memory.compare.weight[:, :, 0, 0] / -2
    cells = x / x.square().sum(dim=1, keepdim=True).sqrt() if unit_cells else x
    projected = memory.project(cells).flatten(2).transpose(1, 2)
    expected = torch.cdist(projected, prototypes.expand(2, -1, -1)).amin(dim=2)
    torch.testing.assert_close(
        memory(x), memory.scale * expected.reshape(2, 4, 5), rtol=1e-3, atol=1e-3
    )


def test_good_views_are_near_and_others_far(remembering, features):
    network = AtacNet(remembering)
    norm = remember(network, remembering, lambda: features[:32], seed=0)

    def score(feature):
        return top_k_mean(network.memory(feature[None].float())[0].numpy(), remembering.top_k)

    unseen = [score(f) for f in features[32:]]
    assert np.mean(unseen) == pytest.approx(norm.mean, abs=2 * norm.std)
    odd = features[0].clone()
    odd[:, 2:4, 2:4] = 1.5
    assert score(odd) > norm.mean + 10 * norm.std


def test_cells_of_one_length_are_as_far_whatever_their_contrast(remembering, features):
    for unit_cells in (True, False):
        profile = replace(remembering, unit_cells=unit_cells)
        network = AtacNet(profile)
        remember(network, profile, lambda: features, seed=0)
        x = torch.randn(1, 128, 6, 6)
        same = torch.allclose(network.memory(x), network.memory(3 * x), rtol=1e-4)
        assert same == unit_cells


def test_the_same_seed_remembers_the_same(remembering, features):
    one, other, third = (AtacNet(remembering) for _ in range(3))
    assert remember(one, remembering, lambda: features, seed=3) == remember(
        other, remembering, lambda: iter(features), seed=3
    )
    remember(third, remembering, lambda: features, seed=4)
    for name, tensor in one.memory.state_dict().items():
        assert torch.equal(tensor, other.memory.state_dict()[name])
    assert not torch.equal(one.memory.project.weight, third.memory.project.weight)


def test_few_cells_are_repeated(remembering, features):
    profile = replace(remembering, prototypes=400)
    network = AtacNet(profile)
    remember(network, profile, lambda: features[:8], seed=0)
    assert len(torch.unique(network.memory.compare.weight, dim=0)) == 8 * 36


def test_a_closer_view_shows_a_part_of_the_frame(remembering):
    frame = np.arange(200, dtype=np.uint8).repeat(160).reshape(200, 160)
    whole = view(frame, Box.around(frame), remembering.view)
    for seed in range(20):
        seen = closer_view(frame, whole, remembering, np.random.default_rng(seed))
        assert (seen.shape, seen.dtype) == (whole.shape, np.uint8)
    assert not np.array_equal(seen, whole)


def test_training_ends_with_a_memory_in_the_scores(source, split, remembering, tmp_path):
    profile = replace(remembering, epochs=1, least_steps=2)
    trained = fit(source, split, profile, weights=None, seed=0, run_folder=tmp_path)
    assert trained.reference.reference_mean > 1
    half = replace(profile, memory_weight=profile.memory_weight / 2)
    lighter = fit(source, split, half, weights=None, seed=0, run_folder=tmp_path)
    assert lighter.network.memory.scale == pytest.approx(trained.network.memory.scale / 2)
    drawn = drawn_reference(profile, seed=0).reference_mean
    assert lighter.reference.reference_mean - drawn == pytest.approx(
        (trained.reference.reference_mean - drawn) / 2
    )
    with TorchBackend(trained.network) as backend, torch.no_grad():
        side = profile.view.side
        noise = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        with_memory = backend.run(noise)["score_map"]
        distances = trained.network.memory(trained.network.features(torch.from_numpy(noise)))
        learnt = trained.network.head(trained.network.features(torch.from_numpy(noise))).score_map
    np.testing.assert_allclose(with_memory, (learnt.abs() + distances).numpy(), rtol=1e-5)
    assert distances.min() > 0
