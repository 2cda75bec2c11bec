from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.methods import open_method
from train import features as room
from train.batches import Defects, balanced_batches
from train.features import TwoPassForward, pass_scores
from train.losses import drawn_reference
from train.network import TorchBackend, atac_method
from train.recipes.paper import network


@pytest.fixture
def batch(images):
    defects = Defects(images, seed=0)
    rng = np.random.default_rng(0)
    return next(balanced_batches(images, defects, size=16, known_share=0.5, rng=rng))


@contextmanager
def two_passes(settings, **crop):
    """A network and the two passes over it, as training runs them."""
    settings = replace(settings, crop=replace(settings.crop, **crop))
    torch.manual_seed(0)
    net = network(settings)
    with ThreadPoolExecutor(1) as pool:
        yield net, TwoPassForward(net, settings.view, settings.crop, pool)


def scores(forward, batch):
    """γ of every sample."""
    return pass_scores(forward.forward(batch), 0.1).mean(dim=0)


def test_masks_follow_each_pass_into_its_box(batch, paper):
    with two_passes(paper, omega=0.9) as (_, forward):
        first, second = forward.forward(batch)
    synthetic = [i for i, sample in enumerate(batch) if sample.synthetic]
    for seen in (first, second):
        assert seen.masks(batch).shape == seen.maps.attention.shape
        assert not seen.masks(batch)[:8].any()
    assert all(first.masks(batch)[i].any() for i in synthetic)
    for i in synthetic:
        box, mask = second.boxes[i], batch[i].mask
        inside = mask[box.top : box.bottom, box.left : box.right]
        assert second.masks(batch)[i].any() == inside.any()


def test_without_zoom_the_second_pass_is_the_first(batch, paper):
    with two_passes(paper, omega=0.9) as (_, forward):
        first, second = forward.forward(batch, zoom=False)
    assert second is first


def test_a_window_is_a_part_of_the_view_with_some_of_the_defect(batch, paper):
    side = paper.view.side // 2
    with two_passes(paper) as (_, forward):
        seen, again = forward.windows(batch, side, np.random.default_rng(0), closer=False)
    assert again is seen
    assert len({(box.left, box.top) for box in seen.boxes}) > 1
    for sample, box in zip(batch, seen.boxes, strict=True):
        half = sample.pixels.shape[0] / 2
        assert 0 <= box.width - half <= 1
        assert box.right <= sample.pixels.shape[1]
        if sample.mask is not None and sample.mask.any():
            assert sample.mask[box.top : box.bottom, box.left : box.right].any()


def test_a_quarter_of_either_half_is_a_window_of_a_closer_view(batch, paper):
    many = [good for good in batch if not good.defective][:1] * 4
    many += [bad for bad in batch if bad.defective and bad.mask is not None][:1] * 4
    side = paper.view.side // 2
    for seed in range(5):
        with two_passes(paper, min_side=paper.view.side // 4) as (_, forward):
            seen, _ = forward.windows(many, side, np.random.default_rng(seed), closer=True)
        size = many[0].pixels.shape[0]
        widths = [box.width / size for box in seen.boxes]
        assert [width < 0.35 for width in widths] == 2 * [False, False, False, True]
        assert min(widths) > 0.12
        for sample, box in zip(many[4:], seen.boxes[4:], strict=True):
            assert sample.mask[box.top : box.bottom, box.left : box.right].any()


def test_gradient_reaches_the_backbone_through_both_passes(batch, paper):
    with two_passes(paper, omega=0.9) as (net, forward):
        fed = []
        net.head.convolve.register_forward_hook(lambda _, inputs, __: fed.append(inputs[0][0]))
        scores(forward, batch)
    first, second = fed
    assert not torch.equal(first, second)
    for features in (first, second):
        (gradient,) = torch.autograd.grad(features.sum(), net.backbone.conv1.weight)
        assert gradient.abs().sum() > 0


def test_training_and_inspection_score_alike(batch, paper, monkeypatch):
    # Inspection is in fp32 everywhere; training is compared with it in the same precision.
    monkeypatch.setattr(room, "has_bf16", lambda _: False)
    with two_passes(paper, omega=0.8) as (net, forward), torch.no_grad():
        net.eval()
        gamma = scores(forward, batch)
    crop = replace(paper.crop, omega=0.8)
    method = atac_method(net, paper.view, crop, drawn_reference(5000, top_k=0.1, seed=0))
    with TorchBackend(net) as backend:
        inspector = open_method(method, backend)
        found = [inspector.inspect(sample.pixels) for sample in batch]
    assert any(one.zoomed for one in found)
    np.testing.assert_allclose(gamma.numpy(), [one.score for one in found], rtol=1e-4, atol=1e-5)


def test_in_bf16_features_change_and_little(batch, paper, monkeypatch):
    found, seen = {}, []
    for bf16 in (False, True):
        monkeypatch.setattr(room, "has_bf16", lambda _, answer=bf16: answer)
        with two_passes(paper) as (net, forward):
            net.eval()
            net.backbone.layer2.register_forward_hook(
                lambda _, __, out, expected=torch.bfloat16 if bf16 else torch.float32: seen.append(
                    out.dtype == expected
                )
            )
            features = forward.features(batch)
            assert features.dtype == torch.float32
            features.sum().backward()
            assert net.backbone.conv1.weight.grad.dtype == torch.float32
            found[bf16] = features.detach()
    assert seen == [True, True]
    assert not torch.equal(*found.values())
    # Eight bits of mantissa through all the layers of a backbone.
    difference = (found[True] - found[False]).norm() / found[False].norm()
    assert difference < 0.05


def test_bf16_is_for_processors_that_have_it(monkeypatch):
    cpu = torch.device("cpu")
    for able in ({}, {"avx512_f": True, "avx512_bf16": False}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert not room.has_bf16(cpu)
    for name in ("avx512_bf16", "amx_bf16", "bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert room.has_bf16(cpu)


def test_a_frozen_backbone_computes_an_image_once(batch, paper):
    with (
        two_passes(replace(paper, freeze=True), omega=0.8) as (net, forward),
        torch.no_grad(),
    ):
        net.eval()
        seen = []
        net.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        first = scores(forward, batch)
        computed_first, seen[:] = sum(seen), []
        second = scores(forward, batch)
        keys = {sample.cache_key for sample in batch if sample.cache_key is not None}
        assert computed_first - sum(seen) == len(keys)
        assert torch.equal(first, second)
        net.frozen = False
        every = scores(forward, batch)
    # Half-precision features in memory move a score by thousandths of its size at most.
    torch.testing.assert_close(first, every, rtol=5e-3, atol=5e-3)


def test_a_memory_bank_is_made_of_some_of_many_good_images(images, paper, monkeypatch):
    monkeypatch.setattr(room, "_MOST_GOOD", 5)

    def shown(seed):
        with two_passes(replace(paper, freeze=True), min_side=16) as (_, forward):
            return [*forward.good_views(images, np.random.default_rng(seed))]

    views = shown(0)
    assert len(views) == 2 * 5
    assert all(torch.equal(*pair) for pair in zip(views, shown(0), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(views, shown(1), strict=True))
