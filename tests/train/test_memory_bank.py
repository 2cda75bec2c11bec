from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.frame import Box
from engine.score import top_k_mean
from engine.view import view
from tests.training_parts import trained
from train.losses import drawn_reference
from train.memory_bank import MemoryBank, PrototypeDistance, closer_view, fill
from train.network import TorchBackend

SETTINGS = MemoryBank(prototypes=40, channels=32)
TOP_K = 0.1


@pytest.fixture
def features():
    """Two views of each of 20 good images: few kinds of patches, with a little noise."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((12, 128))
    patches = kinds[rng.integers(12, size=(40, 36))] + 0.05 * rng.standard_normal((40, 36, 128))
    return [torch.from_numpy(p.T.reshape(128, 6, 6)).half() for p in patches]


def filled(features, *, seed=0, **changes):
    bank = PrototypeDistance(128, replace(SETTINGS, **changes))
    return bank, fill(bank, lambda: iter(features), top_k=TOP_K, seed=seed)


def test_a_bank_measures_the_distance_to_the_nearest_prototype(features):
    bank, _ = filled(features)
    x = torch.randn(2, 128, 4, 5)
    prototypes = bank.compare.weight[:, :, 0, 0] / -2
    patches = x / x.square().sum(dim=1, keepdim=True).sqrt()
    projected = bank.project(patches).flatten(2).transpose(1, 2)
    expected = torch.cdist(projected, prototypes.expand(2, -1, -1)).amin(dim=2)
    torch.testing.assert_close(
        bank(x), bank.scale * expected.reshape(2, 4, 5), rtol=1e-3, atol=1e-3
    )


def test_good_views_are_near_and_others_far(features):
    bank, norm = filled(features[:32])

    def score(feature):
        return top_k_mean(bank(feature[None].float())[0].numpy(), TOP_K)

    unseen = [score(f) for f in features[32:]]
    assert np.mean(unseen) == pytest.approx(norm.mean, abs=2 * norm.std)
    odd = features[0].clone()
    odd[:, 2:4, 2:4] = 1.5
    assert score(odd) > norm.mean + 10 * norm.std


def test_patches_are_as_far_whatever_their_contrast(features):
    bank, _ = filled(features)
    x = torch.randn(1, 128, 6, 6)
    assert torch.allclose(bank(x), bank(3 * x), rtol=1e-4)


def test_the_same_seed_remembers_the_same(features):
    (one, norm), (other, again), (third, _) = (filled(features, seed=seed) for seed in (3, 3, 4))
    assert norm == again
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert not torch.equal(one.project.weight, third.project.weight)


def test_few_patches_are_repeated(features):
    bank, _ = filled(features[:8], prototypes=400)
    assert len(torch.unique(bank.compare.weight, dim=0)) == 8 * 36


def test_a_closer_view_shows_a_part_of_the_frame(line):
    frame = np.arange(200, dtype=np.uint8).repeat(160).reshape(200, 160)
    whole = view(frame, Box.around(frame), line.view)
    for seed in range(20):
        seen = closer_view(frame, whole, line.view, line.crop, np.random.default_rng(seed))
        assert (seen.shape, seen.dtype) == (whole.shape, np.uint8)
    assert not np.array_equal(seen, whole)


def test_training_ends_with_a_memory_bank_in_the_scores(images, line, tmp_path):
    settings = replace(line, freeze=True, memory_bank=SETTINGS, epochs=1, least_steps=2)
    one = trained(settings, images, tmp_path)
    reference = one.method.score
    assert reference.reference_mean > 1
    half = replace(settings, memory_bank=replace(SETTINGS, weight=SETTINGS.weight / 2))
    lighter = trained(half, images, tmp_path)
    assert lighter.network.memory_bank.scale == pytest.approx(one.network.memory_bank.scale / 2)
    drawn = drawn_reference(5000, top_k=TOP_K, seed=0).reference_mean
    assert lighter.method.score.reference_mean - drawn == pytest.approx(
        (reference.reference_mean - drawn) / 2
    )
    with TorchBackend(one.network) as backend, torch.no_grad():
        noise = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 3), dtype=np.uint8)
        with_bank = backend.run(noise)["score_map"]
        features = one.network.features(torch.from_numpy(noise))
        distances = one.network.memory_bank(features)
        learnt = one.network.head(features).score_map
    np.testing.assert_allclose(with_bank, (learnt.abs() + distances).numpy(), rtol=1e-5)
    assert distances.min() > 0
