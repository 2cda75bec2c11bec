from dataclasses import replace
from itertools import islice

import numpy as np

from train.anomalies import Kind
from train.batches import Defects, balanced_batches
from train.datasets import TrainingImages

KINDS: tuple[Kind, ...] = ("cutmix",)


def drawn(images, *, steps, known_share=0.5, **options):
    defects = Defects(images, **{"seed": 0, "kinds": KINDS} | options)
    rng = np.random.default_rng(0)
    batches = balanced_batches(images, defects, size=16, known_share=known_share, rng=rng)
    return list(islice(batches, steps))


def test_batches_are_half_good_half_defective(images):
    batches = drawn(images, steps=40)
    assert all([s.defective for s in batch] == [False] * 8 + [True] * 8 for batch in batches)

    good = [s.cache_key for batch in batches for s in batch[:8]]
    counts = np.bincount(good, minlength=18)
    assert counts.max() - counts.min() <= 1  # every image has its turn before one has two

    slots = [s for batch in batches for s in batch[8:]]
    real = [s for s in slots if not s.synthetic]
    assert 0.4 < len(real) / len(slots) < 0.6
    assert {s.cache_key for s in real} == set(images.defective)
    assert all(s.mask.any() and s.cache_key is None for s in slots if s.synthetic)
    assert all(s.mask is None for s in real)  # image labels alone, unless masks are wanted
    assert not any(s.mask.any() for batch in batches for s in batch[:8])


def test_without_known_defects_every_defect_is_synthetic(images, split):
    none = TrainingImages(images.images, replace(split, train_defective=()))
    (batch,) = drawn(none, steps=1)
    assert all(s.synthetic for s in batch[8:])


def test_known_defects_move_and_their_masks_teach_where_wanted(images):
    batches = drawn(images, steps=20, known_share=1.0, versions=4, masks=True)
    shown = [s for batch in batches for s in batch[8:]]
    assert all(s.mask.any() for s in shown)
    pictures = {s.pixels.tobytes(): s.cache_key for s in shown}
    assert len(pictures) == 16  # four versions of four known defects
    assert len(set(pictures.values())) == 16  # each with a key of its own
    assert min(pictures.values()) >= images.defective.stop


def test_synthetic_defects_come_again_and_are_the_same_after_an_interruption(images):
    options = {"known_share": 0.0, "synthetic_each": 2}
    shown = [s for batch in drawn(images, steps=40, **options) for s in batch[8:]]
    assert len({s.cache_key for s in shown}) == 2 * len(images.good)
    again = {s.cache_key: s for s in drawn(images, steps=1, **options)[0][8:]}
    for sample in shown:
        if sample.cache_key in again:
            assert np.array_equal(sample.pixels, again[sample.cache_key].pixels)


def test_known_defects_are_put_onto_good_parts_where_their_masks_are_known(images):
    good = [images.frame(index) for index in images.good]
    (batch,) = drawn(images, steps=1, known_share=0.0, masks=True, transplanted=1.0)
    for sample in batch[8:]:
        changed = [
            (sample.pixels != frame).reshape(*frame.shape[:2], -1).any(axis=2) for frame in good
        ]
        least = min(changed, key=np.sum)
        assert 0 < least.sum() < 0.4 * least.size  # a good part but for one place
        assert (least & sample.mask).sum() > 0.5 * sample.mask.sum() > 0
    (unseen,) = drawn(images, steps=1, known_share=0.0, transplanted=0.0)
    (alike,) = drawn(images, steps=1, known_share=0.0, transplanted=1.0)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(unseen, alike, strict=True))
