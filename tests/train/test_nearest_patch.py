import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)

from train.nearest_patch import Bank, NearestPatch, k_centre

SETTINGS = Bank(patches=40, directions=32)


@pytest.fixture
def patches():
    """Patches of 20 good images: few kinds, with a little noise, and of which image each is."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((12, 128))
    found = kinds[rng.integers(12, size=720)] + 0.05 * rng.standard_normal((720, 128))
    return torch.from_numpy(found).float(), torch.arange(20).repeat_interleave(36)


def filled(patches, *, settings=SETTINGS, seed=0):
    bank = NearestPatch(128, settings)
    found, origin = patches
    bank.fit(found)
    bank.hold(bank.compared(as_map(found)).direction[0, :, 0].T, origin, seed=seed)
    return bank


def as_map(patches):
    """Patches `(n, C)` as the features of one view: `(1, C, 1, n)`."""
    return patches.T[None, :, None]


def test_a_distance_is_that_of_directions_to_the_nearest_patch(patches):
    bank = filled(patches)
    x = torch.randn(3, 128)
    found = bank.near(bank.compared(as_map(x))).good[0, 0]
    unit = F.normalize((x - bank.mean.flatten()) / bank.std.flatten(), dim=1)
    cosine = (unit @ bank.convolve.weight[:, :, 0, 0].T) @ bank.score.weight[:, :, 0, 0].T
    torch.testing.assert_close(found, torch.sqrt(2 - 2 * cosine.amax(dim=1)))


def test_good_patches_are_near_and_others_far(patches):
    bank = filled((patches[0][:540], patches[1][:540]))
    unseen, odd = (
        bank.near(bank.compared(as_map(some))).good
        for some in (patches[0][540:], torch.randn(30, 128))
    )
    assert unseen.max() < 0.5 * odd.min()


def test_the_same_seed_keeps_the_same(patches):
    one, other, third = (dict(filled(patches, seed=seed).named_buffers()) for seed in (3, 3, 4))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not torch.equal(one["origin"], third["origin"])


def test_an_image_is_left_out_with_all_its_patches(patches):
    bank = filled(patches)
    compared = bank.compared(as_map(patches[0][:36]))
    assert 0 in bank.origin
    without = bank.near(compared, without=0).good[0]
    cosine = torch.einsum("dn,md->mn", compared.direction[0, :, 0], bank.score.weight[:, :, 0, 0])
    others = cosine[bank.origin != 0].amax(dim=0)
    torch.testing.assert_close(without[0], torch.sqrt(2 - 2 * others))
    assert (without >= bank.near(compared).good[0] - 1e-3).all()


def test_few_patches_are_repeated(patches):
    few = patches[0][:30], patches[1][:30]
    bank = filled(few, settings=Bank(patches=100, directions=16))
    assert len(torch.unique(bank.score.weight, dim=0)) == 30
    assert bank.origin.min() >= 0


def test_patches_of_a_bank_lie_apart(patches):
    found, _ = patches
    chosen = found[k_centre(found, 12, seed=0)]
    # Twelve kinds: one of each, where a random draw would miss some.
    assert torch.cdist(chosen, chosen).fill_diagonal_(9).min() > 5
    everything = k_centre(found[:7], 12, seed=0)
    assert everything.tolist() == list(range(7))


def test_patches_that_are_all_alike_fill_a_bank():
    same = torch.ones(100, 8)
    assert len(k_centre(same, 20, seed=0)) == 20
