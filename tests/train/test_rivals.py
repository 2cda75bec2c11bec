from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.attention import attention_box
from engine.methods.atac import TwoPassInspector
from engine.score import top_k_mean
from train.datasets import TrainingImages, read_listed
from train.evaluate import auroc
from train.fit import Defects, Eyes, TrainedOptics, fit
from train.loss import drawn_reference
from train.network import AtacNet, TorchBackend
from train.rivals import ablations, devnet, dra, memory_bank

METHODS = {
    "cutmix_ce": (ablations.CUTMIX_CE, ablations.ONE_PASS),
    "weighted_ce": (ablations.WEIGHTED_CE, ablations.ONE_PASS),
    "deviation": (ablations.DEVIATION_LOSS, ablations.ONE_PASS),
    "grad_cam": (ablations.GRAD_CAM, ablations.PAPER),
    "devnet": (devnet.DEVNET, devnet.PROFILE),
    "dra": (dra.DRA, dra.PROFILE),
}


def tiny(profile):
    return replace(
        profile,
        view=replace(profile.view, side=64),
        architecture="resnet18",
        stages=("layer3",),
        epochs=1,
        batch=12,
        least_steps=3,
        **({"zoom_from": 1} if profile.zoom_from else {}),
    )


def inspected(trained, profile, source, items):
    optics = TrainedOptics(view=profile.view, crop=profile.crop, score=trained.reference)
    with TorchBackend(trained.network) as backend:
        inspector = TwoPassInspector(backend, optics)
        return [inspector.inspect(read_listed(source, item)) for item in items]


@pytest.mark.parametrize("name", METHODS)
def test_every_rival_learns_and_scores(name, source, split, tmp_path):
    method, profile = METHODS[name][0], tiny(METHODS[name][1])
    trained = fit(source, split, profile, weights=None, seed=0, run_folder=tmp_path, method=method)
    again = fit(
        source, split, profile, weights=None, seed=0, run_folder=tmp_path / "2", method=method
    )
    found = inspected(trained, profile, source, split.test[:4])
    assert len({one.score for one in found}) == 4
    assert [one.score for one in inspected(again, profile, source, split.test[:4])] == [
        one.score for one in found
    ]
    assert name == "grad_cam" or not any(one.zoomed for one in found)


@pytest.mark.parametrize("bias", [0.0, -200.0])
def test_weighted_cross_entropy_teaches_however_wrong_the_network_is(bias, source, split):
    profile, images = tiny(ablations.ONE_PASS), TrainingImages(source, split)
    torch.manual_seed(0)
    network = ablations.WEIGHTED_CE.network(profile).eval()
    network.head.classify[-1].bias.data.fill_(bias)
    batch = next(
        ablations.natural_batches(
            images, Defects(images, profile, seed=0), profile, np.random.default_rng(0)
        )
    )
    with ThreadPoolExecutor(1) as pool:
        eyes = Eyes(network, profile, pool)
        loss = ablations.WEIGHTED_CE.loss(eyes, batch, profile, None, 0)
        logits = network.head.logits(eyes.features(batch)).flatten().double()
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


def test_natural_batches_have_defects_as_rarely_as_there_are(source, split):
    images = TrainingImages(source, split)
    profile = tiny(ablations.ONE_PASS)
    batches = ablations.natural_batches(
        images, Defects(images, profile, seed=0), profile, np.random.default_rng(0)
    )
    epoch = len(images.good) + 2 * len(images.defective)
    shown = [sample for _ in range(epoch) for sample in next(batches)]  # `batch` whole epochs
    assert sum(not s.defective for s in shown) == profile.batch * len(images.good)
    known = [s.index for s in shown if s.index in images.defective]
    assert len(known) == profile.batch * len(images.defective)


def test_grad_cam_in_closed_form_is_that_of_autograd():
    torch.manual_seed(0)
    profile = tiny(ablations.PAPER)
    head = ablations.GradCam(32, profile)
    head.score.bias.data.fill_(-0.3)
    features = torch.randn(5, 32, 8, 8, requires_grad=True)
    maps = head(features)
    k = int(0.1 * 64)
    score = maps.score_map.flatten(1).abs().topk(k, dim=1).values.mean(dim=1)
    (gradient,) = torch.autograd.grad(score.sum(), features)
    alpha = gradient.mean(dim=(2, 3), keepdim=True)  # Eq 1
    cam = torch.relu((alpha * features).sum(dim=1)).detach()  # Eq 2
    for one, other in zip(maps.attention, cam, strict=True):
        box = attention_box(one.numpy(), profile.view.box, profile.crop)
        assert box == attention_box(other.numpy(), profile.view.box, profile.crop)
        torch.testing.assert_close(one / one.max(), other / other.max())


def test_devnet_scores_both_scales_with_one_convolution():
    torch.manual_seed(0)
    profile = tiny(devnet.PROFILE)
    network = devnet.DevNet(profile).eval()
    views = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        features = network.features(views)
        maps = network(views)
        whole = network.head.score(AtacNet.features(network, views))
    assert features.shape == (2, 512, 4, 4)
    assert maps.score_map.shape == (2, 1, 1)
    of_whole = top_k_mean(whole[0].numpy(), profile.top_k)
    of_half = top_k_mean(network.head.score(features[:, 256:])[0].detach().numpy(), profile.top_k)
    assert float(maps.score_map[0]) == pytest.approx((of_whole + of_half) / 2, rel=1e-4)


def test_dra_judges_each_head_on_its_own_images(source, split):
    profile = tiny(dra.PROFILE)
    torch.manual_seed(0)
    network = dra.DRA.network(profile)
    images = TrainingImages(source, split)
    batch = next(
        dra.thirds(images, Defects(images, profile, seed=0), profile, np.random.default_rng(0))
    )
    assert [s.defective for s in batch] == [False] * 9 + [True] * 8
    assert [s.mask is not None for s in batch] == [True] * 9 + [False] * 4 + [True] * 4
    with ThreadPoolExecutor(1) as pool:
        eyes = Eyes(network, profile, pool)
        reference = drawn_reference(profile, seed=0)
        assert not network.head.reference.any()
        loss = dra.four_losses(eyes, batch, profile, reference, 0)
        assert network.head.reference.any()
        loss.backward()
        with torch.no_grad():
            features = eyes.features(batch)
            found = network.head.heads(features[5:], network.head.refer(features[:5]))
    assert all(p.grad is not None for p in network.head.parameters())
    good, known, painted = range(4), range(4, 8), range(8, 12)

    def pulled(scores, near, far):
        """Eq 12, spelt out: the ones to 0, the others beyond the margin."""
        z = (scores.double() - reference.reference_mean) / reference.reference_std
        errors = [abs(float(z[i])) for i in near]
        errors += [max(0.0, profile.margin - float(z[i])) for i in far]
        return np.mean(errors)

    expected = (
        pulled(found.holistic, [*known, *painted], good)
        + pulled(found.seen, good, known)
        + pulled(found.pseudo, good, painted)
        + pulled(found.composite, good, [*known, *painted])
    )
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_dra_ranks_by_the_sum_of_its_heads():
    torch.manual_seed(0)
    head = dra.DraHead(16, tiny(dra.PROFILE)).eval()
    features = torch.randn(20, 16, 4, 4)
    with torch.no_grad():
        found = head.heads(features, head.reference)
        scores = head(features).score_map.flatten()
    total = found.seen + found.pseudo + found.composite - found.holistic
    assert torch.equal(scores.argsort(), total.argsort())
    assert (scores > 0).all()


@pytest.mark.parametrize("unit_cells", [True, False])
def test_a_memory_of_all_good_cells_measures_the_nearest(source, split, line, unit_cells):
    line = replace(line, unit_cells=unit_cells)
    trained = memory_bank.remembered(source, split, line, weights=None, seed=0)
    bank = trained.network.head.good
    assert bank.shape == (18 * 36, 128)  # fewer cells than it would keep
    known, *_ = split.train_good
    (seen,) = inspected(trained, line, source, [known])
    assert seen.score == pytest.approx(0, abs=1e-2)
    x = torch.randn(1, 128, 2, 3)
    cells = x / x.norm(dim=1, keepdim=True) if unit_cells else x
    expected = (
        torch.cdist(cells.flatten(2).transpose(1, 2), bank[None]).amin(dim=2).reshape(1, 2, 3)
    )
    torch.testing.assert_close(trained.network.head(x).score_map, expected)


def test_a_memory_tells_defects_it_never_saw(source, split, line):
    trained = memory_bank.remembered(source, split, line, weights=None, seed=0)
    scores = [one.score for one in inspected(trained, line, source, split.test)]
    assert auroc(np.array(scores), np.array([item.defective for item in split.test])) > 0.8
