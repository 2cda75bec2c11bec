from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.baselines import ablations, devnet, dra, memory_bank
from engine.attention import attention_box
from engine.methods import open_method
from engine.score import top_k_mean
from train.backbones.resnet import ResNet
from train.batches import Defects
from train.evaluate import auroc
from train.features import TwoPassForward
from train.losses import drawn_reference
from train.network import AtacNet, TorchBackend
from train.recipes import Run
from train.recipes.paper import Paper

BASELINES = {
    "cutmix_ce": (ablations.CUTMIX_CE, ablations.ONE_PASS),
    "weighted_ce": (ablations.WEIGHTED_CE, ablations.ONE_PASS),
    "deviation": (ablations.DEVIATION_LOSS, ablations.ONE_PASS),
    "grad_cam": (ablations.GRAD_CAM, Paper()),
    "devnet": (devnet.DEVNET, devnet.SETTINGS),
    "dra": (dra.DRA, dra.SETTINGS),
}


def tiny(settings):
    return replace(
        settings,
        view=replace(settings.view, side=64),
        backbone=ResNet(architecture="resnet18", stages=("layer3",)),
        epochs=1,
        batch=12,
        least_steps=3,
        zoom_from=min(settings.zoom_from, 1),
    )


def trained(train, settings, images, folder):
    return train(settings, images, Run(settings=settings, weights=None, seed=0, folder=folder))


def inspected(found, images, items):
    with TorchBackend(found.network) as backend:
        inspector = open_method(found.method, backend)
        return [inspector.inspect(images.images.pixels(item)) for item in items]


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_learns_and_scores(name, images, split, tmp_path):
    baseline, settings = BASELINES[name][0], tiny(BASELINES[name][1])
    one, other = (
        inspected(
            trained(baseline.train, settings, images, tmp_path / folder), images, split.test[:4]
        )
        for folder in "12"
    )
    assert len({each.score for each in one}) == 4
    assert [each.score for each in one] == [each.score for each in other]
    assert name == "grad_cam" or not any(each.zoomed for each in one)


@pytest.mark.parametrize("bias", [0.0, -200.0])
def test_weighted_cross_entropy_teaches_however_wrong_the_network_is(bias, images):
    settings = tiny(ablations.ONE_PASS)
    torch.manual_seed(0)
    network = ablations.WEIGHTED_CE.built(settings).eval()
    network.head.classify[-1].bias.data.fill_(bias)
    batch = next(
        ablations.natural_batches(
            images, Defects(images, seed=0), settings, np.random.default_rng(0)
        )
    )
    with ThreadPoolExecutor(1) as pool:
        forward = TwoPassForward(network, settings.view, settings.crop, pool)
        loss = ablations.WEIGHTED_CE.loss(forward, batch, settings, None, 0)
        logits = network.head.logits(forward.features(batch)).flatten().double()
    defective = torch.tensor([sample.defective for sample in batch])
    assert defective.any()
    missed, rejected = torch.log1p(torch.exp(-logits)), torch.log1p(torch.exp(logits))
    expected = torch.where(defective, 20.0 * missed, 0.5 * rejected).mean()
    torch.testing.assert_close(loss.double(), expected)
    loss.backward()
    # d(−log P)/d logit = P − 1
    probability = torch.sigmoid(logits)
    slope = torch.where(defective, 20.0 * (probability - 1), 0.5 * probability).mean()
    torch.testing.assert_close(network.head.classify[-1].bias.grad.double().sum(), slope)


def test_natural_batches_have_defects_as_rarely_as_there_are(images):
    settings = tiny(ablations.ONE_PASS)
    batches = ablations.natural_batches(
        images, Defects(images, seed=0), settings, np.random.default_rng(0)
    )
    epoch = len(images.good) + 2 * len(images.defective)
    shown = [sample for _ in range(epoch) for sample in next(batches)]  # `batch` whole epochs
    assert sum(not s.defective for s in shown) == settings.batch * len(images.good)
    known = [s.cache_key for s in shown if s.cache_key in images.defective]
    assert len(known) == settings.batch * len(images.defective)


def test_grad_cam_in_closed_form_is_that_of_autograd():
    torch.manual_seed(0)
    settings = tiny(Paper())
    head = ablations.GradCam(32, settings)
    head.score.bias.data.fill_(-0.3)
    features = torch.randn(5, 32, 8, 8, requires_grad=True)
    maps = head(features)
    k = int(0.1 * 64)
    score = maps.score_map.flatten(1).abs().topk(k, dim=1).values.mean(dim=1)
    (gradient,) = torch.autograd.grad(score.sum(), features)
    alpha = gradient.mean(dim=(2, 3), keepdim=True)  # Eq 1
    cam = torch.relu((alpha * features).sum(dim=1)).detach()  # Eq 2
    for one, other in zip(maps.attention, cam, strict=True):
        box = attention_box(one.numpy(), settings.view.box, settings.crop)
        assert box == attention_box(other.numpy(), settings.view.box, settings.crop)
        torch.testing.assert_close(one / one.max(), other / other.max())


def test_devnet_scores_both_scales_with_one_convolution():
    torch.manual_seed(0)
    settings = tiny(devnet.SETTINGS)
    network = devnet.DEVNET.built(settings).eval()
    views = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        features = network.features(views)
        maps = network(views)
        whole = network.head.score(AtacNet.features(network, views))
    assert features.shape == (2, 512, 4, 4)
    assert maps.score_map.shape == (2, 1, 1)
    of_whole = top_k_mean(whole[0].numpy(), settings.top_k)
    of_half = top_k_mean(network.head.score(features[:, 256:])[0].detach().numpy(), settings.top_k)
    assert float(maps.score_map[0]) == pytest.approx((of_whole + of_half) / 2, rel=1e-4)


def test_dra_judges_each_head_on_its_own_images(images):
    settings = tiny(dra.SETTINGS)
    torch.manual_seed(0)
    network = dra.DRA.built(settings)
    batch = next(dra.thirds(images, Defects(images, seed=0), settings, np.random.default_rng(0)))
    assert [s.defective for s in batch] == [False] * 9 + [True] * 8
    assert [s.mask is not None for s in batch] == [True] * 9 + [False] * 4 + [True] * 4
    with ThreadPoolExecutor(1) as pool:
        forward = TwoPassForward(network, settings.view, settings.crop, pool)
        reference = drawn_reference(5000, top_k=0.1, seed=0)
        assert not network.head.reference.any()
        loss = dra.four_losses(forward, batch, settings, reference, 0)
        assert network.head.reference.any()
        loss.backward()
        with torch.no_grad():
            features = forward.features(batch)
            found = network.head.heads(features[5:], network.head.refer(features[:5]))
    assert all(p.grad is not None for p in network.head.parameters())
    good, known, synthetic = range(4), range(4, 8), range(8, 12)

    def pulled(scores, near, far):
        """Eq 12, spelt out: the ones to 0, the others beyond the margin."""
        z = (scores.double() - reference.reference_mean) / reference.reference_std
        errors = [abs(float(z[i])) for i in near]
        errors += [max(0.0, settings.margin - float(z[i])) for i in far]
        return np.mean(errors)

    expected = (
        pulled(found.holistic, [*known, *synthetic], good)
        + pulled(found.seen, good, known)
        + pulled(found.synthetic, good, synthetic)
        + pulled(found.composite, good, [*known, *synthetic])
    )
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_dra_ranks_by_the_sum_of_its_heads():
    torch.manual_seed(0)
    head = dra.DraHead(16, tiny(dra.SETTINGS)).eval()
    features = torch.randn(20, 16, 4, 4)
    with torch.no_grad():
        found = head.heads(features, head.reference)
        scores = head(features).score_map.flatten()
    total = found.seen + found.synthetic + found.composite - found.holistic
    assert torch.equal(scores.argsort(), total.argsort())
    assert (scores > 0).all()


def test_a_memory_bank_of_all_good_patches_measures_the_nearest(images, split, line, tmp_path):
    found = trained(memory_bank.train, line, images, tmp_path)
    bank = found.network.head.good
    assert bank.shape == (18 * 36, 128)  # fewer patches than it would keep
    (seen,) = inspected(found, images, split.train_good[:1])
    assert seen.score == pytest.approx(0, abs=1e-2)
    x = torch.randn(1, 128, 2, 3)
    patches = (x / x.norm(dim=1, keepdim=True)).flatten(2).transpose(1, 2)
    expected = torch.cdist(patches, bank[None]).amin(dim=2).reshape(1, 2, 3)
    torch.testing.assert_close(found.network.head(x).score_map, expected)


def test_a_memory_bank_tells_defects_it_never_saw(images, split, line, tmp_path):
    found = trained(memory_bank.train, line, images, tmp_path)
    scores = [one.score for one in inspected(found, images, split.test)]
    assert auroc(np.array(scores), np.array([item.defective for item in split.test])) > 0.8
