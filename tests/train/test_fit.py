from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from engine.attention import CropSpec
from engine.errors import ConfigurationError, TrainingError
from engine.frame import Box
from engine.methods.atac import TwoPassInspector
from engine.score import ScoreSpec
from engine.view import view
from train import fit as training
from train.anomalies import cells
from train.backbone import PretrainedWeights, Trunk, initialise
from train.datasets import TrainingImages, draw_split, find_source, read_listed, read_mask
from train.fit import (
    ATAC_NET,
    CHECKPOINT,
    Pass,
    Sample,
    TrainedOptics,
    fit,
    learning_rate,
    settled,
    train_bundle,
    two_pass_loss,
)
from train.network import AtacNet, Maps, TorchBackend
from train.profile import LINE


def weights_of(result):
    return {name: t.clone() for name, t in result.network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def trained(source, split, profile, folder, **options):
    return fit(
        source, split, profile, **{"weights": None, "seed": 0, "run_folder": folder} | options
    )


def drawn_batches(images, profile, *, steps):
    defects = training.Defects(images, profile, seed=0)
    batches = training.balanced_batches(images, defects, profile, np.random.default_rng(0))
    return islice(batches, steps)


@pytest.fixture
def samples(source, split, paper):
    images = TrainingImages(source, split)
    return images, next(drawn_batches(images, paper, steps=1))


def scores(pair, batch):
    """γ of every sample."""
    return training._pass_scores(pair.look(batch), pair._profile).mean(dim=0)


@contextmanager
def eyes(profile):
    """A network and the two passes over it, as training runs them."""
    torch.manual_seed(0)
    network = AtacNet(profile)
    with ThreadPoolExecutor(1) as pool:
        yield network, training.Eyes(network, profile, pool)


def test_batches_are_half_good_half_defective(source, split, paper):
    images = TrainingImages(source, split)
    batches = list(drawn_batches(images, paper, steps=40))
    assert all([s.defective for s in batch] == [False] * 8 + [True] * 8 for batch in batches)

    good = [s.index for batch in batches for s in batch[:8]]
    counts = np.bincount(good, minlength=18)
    assert counts.max() - counts.min() <= 1  # every image has its turn before one has two

    slots = [s for batch in batches for s in batch[8:]]
    real = [s for s in slots if s.index is not None]
    assert 0.4 < len(real) / len(slots) < 0.6
    assert {s.index for s in real} == set(images.defective)
    assert all(s.mask.any() for s in slots if s.index is None)
    assert all(s.mask is None for s in real)  # image labels alone, unless the profile says so
    assert not any(s.mask.any() for batch in batches for s in batch[:8])


def test_without_known_defects_every_defect_is_painted(source, split, paper):
    images = TrainingImages(source, replace(split, train_defective=()))
    (batch,) = drawn_batches(images, paper, steps=1)
    assert all(s.index is None for s in batch[8:])


def test_known_defects_move_and_their_masks_teach_where_the_profile_says_so(source, split, paper):
    images = TrainingImages(source, split)
    profile = replace(paper, real_share=1.0, moved_each=4, known_masks=True)
    shown = [s for batch in drawn_batches(images, profile, steps=20) for s in batch[8:]]
    assert all(s.mask.any() for s in shown)
    pictures = {s.pixels.tobytes(): s.index for s in shown}
    assert len(pictures) == 16  # four versions of four known defects
    assert len(set(pictures.values())) == 16  # each with an index of its own
    assert min(pictures.values()) >= images.defective.stop


def test_pseudo_defects_come_again_and_are_the_same_after_an_interruption(source, split, paper):
    images = TrainingImages(source, split)
    profile = replace(paper, real_share=0.0, pseudo_each=2)
    shown = [s for batch in drawn_batches(images, profile, steps=40) for s in batch[8:]]
    assert len({s.index for s in shown}) == 2 * len(images.good)
    again = {s.index: s for s in next(drawn_batches(images, profile, steps=1))[8:]}
    for sample in shown:
        if sample.index in again:
            assert np.array_equal(sample.pixels, again[sample.index].pixels)
    fresh = [s for batch in drawn_batches(images, paper, steps=5) for s in batch[8:]]
    assert all(s.index is None for s in fresh if s.mask is not None)


def test_known_defects_are_set_onto_good_parts_where_their_masks_are_known(source, split, paper):
    images = TrainingImages(source, split)
    profile = replace(paper, real_share=0.0, known_masks=True, transplanted=1.0)
    good = [images.frame(index) for index in images.good]
    (batch,) = drawn_batches(images, profile, steps=1)
    for sample in batch[8:]:
        changed = [
            (sample.pixels != frame).reshape(*frame.shape[:2], -1).any(axis=2) for frame in good
        ]
        least = min(changed, key=np.sum)
        assert 0 < least.sum() < 0.4 * least.size  # a good part but for one place
        assert (least & sample.mask).sum() > 0.5 * sample.mask.sum() > 0
    blind = replace(profile, known_masks=False)
    (unseen,) = drawn_batches(images, replace(blind, transplanted=0.0), steps=1)
    (alike,) = drawn_batches(images, blind, steps=1)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(unseen, alike, strict=True))


def test_masks_follow_each_pass_into_its_box(samples, paper):
    _, batch = samples
    with eyes(replace(paper, crop=CropSpec(omega=0.9))) as (_, pair):
        passes = pair.look(batch)
    painted = [i for i, s in enumerate(batch) if s.mask is not None and s.defective]
    for seen in passes:
        masks = training._map_masks(seen, batch)
        assert masks.shape == seen.maps.attention.shape
        assert not masks[:8].any()
    whole = training._map_masks(passes[0], batch)
    assert all(whole[i].any() for i in painted)
    for i in painted:
        box, mask = passes[1].boxes[i], batch[i].mask
        inside = mask[box.top : box.bottom, box.left : box.right]
        assert training._map_masks(passes[1], batch)[i].any() == inside.any()


def test_a_pass_is_judged_by_what_its_box_shows(line):
    profile = replace(line, margin=10.0, mask_weight=0.0, cell_weight=0.0)
    pixels = np.zeros((64, 64), np.uint8)
    mask = np.zeros((64, 64), np.bool_)
    mask[:8, :8] = True
    painted = Sample(pixels=pixels, mask=mask, defective=True, index=None)
    hidden = replace(painted, mask=None)
    box = Box(left=32, top=32, right=64, bottom=64)  # beside the defect
    reference = ScoreSpec(top_k=profile.top_k, reference_mean=0.0, reference_std=1.0)

    def loss(batch, first, second):
        class Seen:
            def look(self, batch, *, zoom):
                assert zoom
                maps = [Maps(torch.full((1, 8, 8), s), torch.zeros(1, 8, 8)) for s in scores]
                return Pass(maps[0], [Box.around(pixels)]), Pass(maps[1], [box])

        scores = first, second
        return two_pass_loss(Seen(), batch, profile, reference, profile.zoom_from).item()

    assert loss([painted], 10.0, 0.0) == 0
    assert loss([painted], 0.0, 10.0) == pytest.approx(10)
    assert loss([hidden], 10.0, 0.0) == pytest.approx(5)  # nobody knows that it is good


@pytest.mark.parametrize("loss_of", ["each", "mean"])
def test_each_head_learns_as_if_it_were_alone(samples, line, loss_of):
    _, batch = samples
    profile = replace(line, heads=3, loss_of=loss_of)
    reference = ScoreSpec(top_k=profile.top_k, reference_mean=0.0, reference_std=1.0)
    with eyes(profile) as (network, pair):
        network.eval()
        together = two_pass_loss(pair, batch, profile, reference, profile.zoom_from).item()
        first, second = pair.look(batch)

    def alone(head):
        rows = slice(head * len(batch), (head + 1) * len(batch))

        class Seen:
            def look(self, _, *, zoom):
                assert zoom
                return tuple(
                    Pass(Maps(*(maps[rows] for maps in one.maps)), one.boxes)
                    for one in (first, second)
                )

        return two_pass_loss(Seen(), batch, profile, reference, profile.zoom_from).item()

    losses = [alone(head) for head in range(3)]
    assert len(set(losses)) == 3
    assert together == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("loss_of", ["each", "mean"])
def test_pseudo_defects_can_teach_attention_alone(source, split, line, loss_of):
    images = TrainingImages(source, split)
    profile = replace(
        line, pseudo_scored="beside_masks", known_masks=False, cell_weight=0.0, loss_of=loss_of
    )
    batches = drawn_batches(images, profile, steps=20)
    batch = next(b for b in batches if any(s.defective and not s.pseudo for s in b))
    real = [s for s in batch if not s.pseudo]
    assert len(real) < len(batch)
    reference = ScoreSpec(top_k=profile.top_k, reference_mean=0.0, reference_std=1.0)
    with eyes(profile) as (network, pair):
        network.eval()

        def loss(samples, **changes):
            return two_pass_loss(pair, samples, replace(profile, **changes), reference, 0).item()

        assert loss(batch, mask_weight=0.0) == pytest.approx(loss(real, mask_weight=0.0))
        assert loss(batch) != pytest.approx(loss(real))
        assert loss(batch, mask_weight=0.0, pseudo_scored="always") != pytest.approx(
            loss(real, mask_weight=0.0)
        )


@pytest.mark.parametrize(
    ("defects", "known_masks", "scored"),
    [(4, True, "always"), (4, False, "beside_masks"), (0, False, "always")],
)
def test_pseudo_defects_teach_the_score_where_nothing_better_does(
    source, line, tmp_path, defects, known_masks, scored
):
    seen = set()

    def loss(eyes, batch, profile, reference, epoch):
        seen.add(profile.pseudo_scored)
        return two_pass_loss(eyes, batch, profile, reference, epoch)

    split = draw_split(source, defects=defects, hold_out=0.25, seed=0)
    profile = replace(
        line, epochs=1, least_steps=1, pseudo_scored="beside_masks", known_masks=known_masks
    )
    trained(source, split, profile, tmp_path, method=replace(ATAC_NET, loss=loss))
    assert seen == {scored}


def test_without_zoom_the_second_pass_is_the_first(samples, paper):
    _, batch = samples
    with eyes(replace(paper, crop=CropSpec(omega=0.9))) as (_, pair):
        first, second = pair.look(batch, zoom=False)
    assert second is first


def test_supervised_attention_learns_where_defects_are(source, split, line, tmp_path):
    profile = replace(line, epochs=4, least_steps=8, zoom_from=2, cell_weight=0.0)
    network = trained(source, split, profile, tmp_path).network
    inside, outside = [], []
    with TorchBackend(network) as backend:
        for item in split.train_defective:
            pixels = read_listed(source, item)
            whole = Box.around(pixels)
            attention = backend.run(view(pixels, whole, profile.view)[None])["attention"][0]
            marked = cells(read_mask(source, item, pixels), whole, *attention.shape) > 0
            inside.append(attention[marked].mean())
            outside.append(attention[~marked].mean())
    assert np.mean(inside) > 2 * np.mean(outside)


def test_gradient_reaches_the_trunk_through_both_passes(samples, paper):
    _, batch = samples
    with eyes(replace(paper, crop=CropSpec(omega=0.9))) as (network, pair):
        fed = []
        network.head.convolve.register_forward_hook(lambda _, inputs, __: fed.append(inputs[0][0]))
        scores(pair, batch)
    first, second = fed
    assert not torch.equal(first, second)
    for features in (first, second):
        (gradient,) = torch.autograd.grad(features.sum(), network.trunk.conv1.weight)
        assert gradient.abs().sum() > 0


def test_training_and_inspection_score_alike(samples, split, source, paper, monkeypatch):
    images, batch = samples
    # Inspection is in fp32 everywhere; training is compared with it in the same precision.
    monkeypatch.setattr(training, "has_bf16", lambda _: False)
    profile = replace(paper, crop=CropSpec(omega=0.8))
    with eyes(profile) as (network, pair), torch.no_grad():
        network.eval()
        gamma = scores(pair, batch)
    reference = training.drawn_reference(profile, seed=0)
    optics = TrainedOptics(view=profile.view, crop=profile.crop, score=reference)
    with TorchBackend(network) as backend:
        inspector = TwoPassInspector(backend, optics)
        found = [inspector.inspect(sample.pixels) for sample in batch]
    assert any(one.zoomed for one in found)
    np.testing.assert_allclose(gamma.numpy(), [one.score for one in found], rtol=1e-4, atol=1e-5)
    assert np.array_equal(read_listed(source, split.train_good[0]), images.frame(0))


def test_in_bf16_features_change_and_little(samples, paper, monkeypatch):
    _, batch = samples
    found, seen = {}, []
    for bf16 in (False, True):
        monkeypatch.setattr(training, "has_bf16", lambda _, answer=bf16: answer)
        with eyes(paper) as (network, pair):
            network.eval()
            network.trunk.register_forward_hook(
                lambda _, __, out, expected=torch.bfloat16 if bf16 else torch.float32: seen.append(
                    out[0].dtype == expected
                )
            )
            features = pair.features(batch)
            assert features.dtype == torch.float32
            features.sum().backward()
            assert network.trunk.conv1.weight.grad.dtype == torch.float32
            found[bf16] = features.detach()
    assert seen == [True, True]
    assert not torch.equal(*found.values())
    # Eight bits of mantissa through all the layers of a trunk.
    difference = (found[True] - found[False]).norm() / found[False].norm()
    assert difference < 0.05


def test_bf16_is_for_processors_that_have_it(monkeypatch):
    cpu = torch.device("cpu")
    for able in ({}, {"avx512_f": True, "avx512_bf16": False}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert not training.has_bf16(cpu)
    for name in ("avx512_bf16", "amx_bf16", "bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert training.has_bf16(cpu)


def test_a_frozen_trunk_is_asked_once_about_an_image(samples, paper):
    _, batch = samples
    with (
        eyes(replace(paper, freeze=True, crop=CropSpec(omega=0.8))) as (network, pair),
        torch.no_grad(),
    ):
        network.eval()
        seen = []
        network.trunk.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        first = scores(pair, batch)
        asked_first, seen[:] = sum(seen), []
        second = scores(pair, batch)
        originals = {sample.index for sample in batch if sample.index is not None}
        assert asked_first - sum(seen) == len(originals)
        assert torch.equal(first, second)
        network.frozen = False
        every = scores(pair, batch)
    # Half-precision features in memory move a score by thousandths of its size at most.
    torch.testing.assert_close(first, every, rtol=5e-3, atol=5e-3)


def test_training_separates_defects(source, split, line, tmp_path):
    epochs = []
    profile = replace(line, epochs=3, least_steps=8)
    result = trained(source, split, profile, tmp_path, on_epoch=epochs.append)
    assert [e.number for e in epochs] == [1, 2, 3]
    assert epochs[-1].loss < 0.6 * epochs[0].loss
    assert epochs[-1].separation >= 0.9
    assert result.final_loss == epochs[-1].loss
    assert not result.network.training


def test_the_same_seed_gives_the_same_weights(source, split, line, tmp_path):
    one = trained(source, split, line, tmp_path / "one")
    torch.manual_seed(99)  # whatever happened before must not matter
    other = trained(source, split, line, tmp_path / "other")
    assert same(weights_of(one), weights_of(other))
    third = trained(source, split, line, tmp_path / "third", seed=1)
    assert not same(weights_of(one), weights_of(third))


def test_the_learning_rate_falls_in_steps_or_along_half_a_cosine(line):
    steps = replace(line, schedule="steps", learning_rate=1.0, decay_every=2, decay=0.1, epochs=4)
    rates = [learning_rate(steps, epochs) for epochs in (0, 1.9, 2, 3.9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1])
    cosine = replace(steps, schedule="cosine")
    rates = [learning_rate(cosine, epochs) for epochs in (0, 1, 2, 3, 4)]
    assert rates == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_interrupted_training_ends_in_the_same_weights(source, split, line, tmp_path, frozen):
    profile = replace(line, epochs=3, least_steps=2, freeze=frozen, prototypes=8 * frozen)
    told = []
    straight = trained(source, split, profile, tmp_path / "straight", on_epoch=told.append)

    def stop(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(source, split, profile, tmp_path / "broken", on_epoch=stop)
    epochs = []
    resumed = trained(
        source, split, profile, tmp_path / "broken", resume=True, on_epoch=epochs.append
    )
    assert [e.number for e in epochs] == [1, 2, 3]  # those before the interruption too
    assert [e.loss for e in epochs] == [e.loss for e in told]
    assert epochs[0].seconds < epochs[1].seconds < epochs[2].seconds
    assert same(weights_of(straight), weights_of(resumed))
    assert resumed.final_loss == straight.final_loss


def test_a_checkpoint_serves_its_own_training_only(source, split, line, tmp_path):
    profile = replace(line, least_steps=1)
    trained(source, split, profile, tmp_path)
    with pytest.raises(ConfigurationError, match="another seed"):
        trained(source, split, profile, tmp_path, seed=1, resume=True)
    other = PretrainedWeights(
        source="weights.pth",
        tensors=Trunk("resnet18", ("layer2",), "v1.5").state_dict(),
        form=profile.form,
        fused=False,
    )
    with pytest.raises(ConfigurationError, match="other weights"):
        trained(source, split, profile, tmp_path, weights=other, resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="start again without --resume"):
        trained(source, split, profile, tmp_path, resume=True)


def test_resuming_what_never_began_begins(source, split, line, tmp_path):
    epochs = []
    profile = replace(line, least_steps=1)
    trained(source, split, profile, tmp_path, resume=True, on_epoch=epochs.append)
    assert [e.number for e in epochs] == [1]


def test_a_loss_that_is_no_number_says_what_to_do(source, split, line, tmp_path):
    with pytest.raises(TrainingError, match=r"loss became \w+ in epoch 1, step \d.*--seed"):
        trained(source, split, replace(line, learning_rate=1e30), tmp_path)


def test_weights_settle_form_and_freezing():
    trunk = Trunk("resnet18", ("layer3",), "v1.5")
    initialise(trunk)
    weights = PretrainedWeights(
        source="weights.pth", tensors=trunk.state_dict(), form="v1", fused=True
    )
    assert settled(LINE, None) == replace(LINE, freeze=False, prototypes=0)
    assert settled(LINE, weights).form == "v1"


def test_folded_weights_train_from_what_they_compute(source, split, paper, tmp_path):
    trunk = Trunk("resnet18", ("layer3",), "v1.5")
    initialise(trunk)
    weights = PretrainedWeights(
        source="weights.pth", tensors=trunk.state_dict(), form="v1.5", fused=True
    )
    still = replace(paper, stages=("layer3",), learning_rate=1e-9, zoom_from=1)
    learnt = trained(source, split, still, tmp_path, weights=weights).network
    frame = read_listed(source, split.test[0])
    seen = torch.tensor(view(frame, Box.around(frame), still.view)[None])
    with torch.inference_mode():
        after = learnt.eval().features(seen)
        learnt.trunk.load_state_dict(weights.tensors)
        before = learnt.features(seen)
    # The statistics have moved a little to those of the batches, a fifth of them defective.
    assert (after - before).norm() < 0.1 * before.norm()


def test_pretrained_and_frozen_stays_as_it_was(source, split, line, tmp_path):
    trunk = Trunk("resnet18", ("layer2",), "v1.5")
    initialise(trunk)
    weights = PretrainedWeights(
        source="weights.pth", tensors=trunk.state_dict(), form="v1.5", fused=False
    )
    profile = replace(line, freeze=True, prototypes=8, least_steps=2)
    result = trained(source, split, profile, tmp_path, weights=weights)
    assert same(result.network.trunk.state_dict(), trunk.state_dict())


def test_a_bundle_is_never_overwritten(source, line, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"--out.*is a bundle already"):
        train_bundle(source, tmp_path, line, weights=None)


def test_a_place_that_cannot_hold_the_bundle_is_told_before_anything_is_read(line, tmp_path):
    nothing = find_source(None, tmp_path, None)  # a folder without images
    (tmp_path / "file").touch()
    for out, said in (
        (tmp_path / "file", "cannot be made .Not a directory"),
        (tmp_path / "file/below", "cannot be made .Not a directory"),
        (tmp_path, "is not empty"),
        (tmp_path / "..", "is not empty"),
    ):
        with pytest.raises(ConfigurationError, match=rf"--out: .*{said}"):
            train_bundle(nothing, out, line, weights=None)
    with pytest.raises(TrainingError):
        train_bundle(nothing, tmp_path / "out", line, weights=None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_its_own_unfinished_work_is_removed(source, line, tmp_path):
    mine = tmp_path / "bundle.training" / "mine.png"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(ConfigurationError, match=r"bundle\.training holds mine\.png"):
        train_bundle(source, tmp_path / "bundle", line, weights=None)
    mine.rename(mine.with_name(CHECKPOINT))  # left by an interrupted training
    profile = replace(line, least_steps=1)
    train_bundle(source, tmp_path / "bundle", profile, weights=None, accept_flips=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_epoch_that_cannot_be_saved_says_what_to_do(source, split, line, tmp_path):
    (tmp_path / f"{CHECKPOINT}.partial").mkdir()  # in its way, as a full disk would be
    with pytest.raises(TrainingError, match=r"epoch 1 cannot be saved .*--resume"):
        trained(source, split, replace(line, least_steps=1), tmp_path)


def test_a_memory_is_made_of_some_of_many_good_images(source, split, line, monkeypatch):
    monkeypatch.setattr(training, "_REMEMBERED", 5)
    images = TrainingImages(source, split)

    def looked_at(seed):
        with eyes(replace(line, freeze=True)) as (_, pair):
            return [*pair.good_views(images, np.random.default_rng(seed))]

    views = looked_at(0)
    assert len(views) == 2 * 5
    assert all(torch.equal(*pair) for pair in zip(views, looked_at(0), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(views, looked_at(1), strict=True))
