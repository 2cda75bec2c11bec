from dataclasses import replace

import pytest
import torch

from train.two_stage.hard_augmentation import (
    HardAugmentation,
    anomalies,
    cut,
    hard,
    jittered,
    permuted,
    regions,
    rotated,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pictures(n=6, side=32):
    return torch.rand(n, 3, side, side)


def test_rotation_turns_each_image_and_leaves_none_as_it_was():
    images = pictures()
    for before, after in zip(images, rotated(images), strict=True):
        turned = [before.rot90(k, (1, 2)) for k in (1, 2, 3)]
        assert sum(torch.equal(after, one) for one in turned) == 1


def test_permutation_keeps_the_tiles_and_moves_them():
    images = pictures()
    found = permuted(images)
    assert not torch.equal(found, images)
    for before, after in zip(images, found, strict=True):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)


def test_jitter_changes_colours_and_stays_in_range():
    images = pictures()
    found = jittered(images)
    assert (found - images).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert found.min() >= 0
    assert found.max() <= 1


def test_without_kinds_nothing_changes():
    images = pictures()
    assert hard(images, ()) is images


@pytest.mark.parametrize("region", ["rectangle", "blot"])
def test_a_region_has_about_its_share_of_the_area(region):
    settings = HardAugmentation(region=region, area=(0.05, 0.1))
    found = regions(torch.zeros(200, 3, 64, 64), settings)
    assert found.shape == (200, 1, 64, 64)
    assert set(found.unique().tolist()) == {0, 1}
    shares = found.mean(dim=(1, 2, 3))
    assert shares.min() > 0
    assert shares.max() < 0.11
    assert shares.mean() > (0.05 if region == "rectangle" else 0.02)


def test_what_replaces_a_region_is_zero_or_the_augmented_image():
    images, augmented = torch.full((400, 3, 8, 8), 0.25), torch.full((400, 3, 8, 8), 0.75)
    region = torch.zeros(400, 1, 8, 8)
    region[:, :, 2:4, 2:6] = 1
    found = cut(images, augmented, region)
    assert (found[:, :, region[0, 0] == 0] == 0.25).all()
    filled = found[:, 0, 2, 2]
    assert set(filled.tolist()) == {0, 0.75}
    assert 0.4 < (filled == 0).float().mean() < 0.6


def test_attention_is_taught_1_outside_and_0_inside_and_nowhere_for_whole_ones():
    images = pictures(8)
    settings = HardAugmentation(whole=0.25, area=(0.05, 0.1), region="rectangle")
    made, where = anomalies(images, settings)
    assert not where[:2].any()
    assert where[2:].mean(dim=(1, 2, 3)).min() > 0.85
    outside = where.expand_as(images) == 1
    assert torch.equal(made[outside], images[outside])
    assert made[:2].mean() > 0.1  # a whole one is augmented, not zero
    none_whole = anomalies(images, replace(settings, whole=0.0))[1]
    assert none_whole.mean(dim=(1, 2, 3)).min() > 0.85
