from dataclasses import replace

import pytest
import torch

from train.two_stage.hard_augmentation import (
    HardAugmentation,
    anomalies,
    cut,
    hard,
    jittered,
    noised,
    noised_in_regions,
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


def test_what_replaces_a_region_may_shine_through():
    images, augmented = torch.full((400, 3, 8, 8), 1.0), torch.full((400, 3, 8, 8), 0.5)
    region = torch.zeros(400, 1, 8, 8)
    region[:, :, 2:4, 2:6] = 1
    region[:100] = 1
    found = cut(images, augmented, region, 0.2)
    assert (found[:100] == 0.5).all()
    filled = found[100:, 0, 2, 2]
    assert 0 <= filled.min() < 0.1
    assert 0.8 < filled.max() <= 0.9
    assert (found[100:, :, 0] == 1).all()


def test_an_image_may_have_several_regions():
    settings = HardAugmentation(whole=0.0, area=(0.01, 0.01), region="rectangle")

    def shares(regions):
        made = anomalies(pictures(200), replace(settings, regions=regions))
        return 1 - made[1].mean(dim=(1, 2, 3))

    one, several = shares(1), shares(5)
    assert several.min() < 0.02
    assert several.mean() > 2 * one.mean()


def test_what_cannot_be_seen_is_no_anomaly_but_in_whole_ones():
    black = torch.zeros(4, 3, 32, 32)
    where = anomalies(black, HardAugmentation(whole=0.25))[1]
    assert not where[0].any()
    assert (where[1:] == 1).all()


def test_attention_is_taught_1_outside_and_0_inside_and_nowhere_for_whole_ones():
    images = pictures(8)
    settings = HardAugmentation(whole=0.25, area=(0.05, 0.1), region="rectangle", regions=1)
    made, where = anomalies(images, settings)
    assert not where[:2].any()
    assert where[2:].mean(dim=(1, 2, 3)).min() > 0.85
    outside = where.expand_as(images) == 1
    assert (made[outside] - images[outside]).abs().max() < 12 / 255
    assert made[:2].mean() > 0.1  # a whole one is augmented, not zero
    none_whole = anomalies(images, replace(settings, whole=0.0))[1]
    assert none_whole.mean(dim=(1, 2, 3)).min() > 0.85


def test_noise_has_so_many_deviations_of_each_channel():
    features = torch.randn(20, 2, 16, 16) * torch.tensor([1.0, 10.0]).view(1, 2, 1, 1)
    added = (noised(features, 0.5) - features).std(dim=(0, 2, 3))
    assert added.tolist() == pytest.approx([0.5, 5.0], rel=0.1)
    assert torch.equal(noised(features, 0.0), features)


def test_attention_is_taught_0_where_features_have_noise_and_only_there():
    features, where = torch.randn(12, 8, 8, 8), torch.ones(12, 1, 64, 64)
    where[:, :, :8, :8] = 0  # an anomaly that the images have already
    found, clean = noised_in_regions(features, where, HardAugmentation())
    changed = (found != features).any(dim=1, keepdim=True)
    assert changed.flatten(1).any(dim=1).all()
    assert changed.float().mean() < 0.5
    there = changed.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(clean == 0, there | (where == 0))
