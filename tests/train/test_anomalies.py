import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.frame import Box
from train.anomalies import SYNTHESES, alike, cutmix, moved, patches, synthesised, transplanted


@given(
    st.integers(2, 70),
    st.integers(2, 70),
    st.integers(2, 70),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_cutmix_changes_only_what_it_marks(height, width, other, colour, blank, seed):
    rng = np.random.default_rng(seed)
    tail = (3,) if colour else ()
    high = 1 if blank else 256
    pixels = rng.integers(0, high, (height, width, *tail), dtype=np.uint8)
    donor = rng.integers(0, high, (other, height, *tail), dtype=np.uint8)
    before, donor_before = pixels.copy(), donor.copy()

    changed, mask = cutmix(pixels, donor, rng)

    assert changed.shape == pixels.shape
    assert changed.dtype == np.uint8
    assert mask.shape == (height, width)
    assert mask.dtype == np.bool_
    assert mask.any()
    assert np.array_equal(changed[~mask], before[~mask])
    assert (changed[mask] != before[mask]).any()
    assert np.array_equal(pixels, before)
    assert np.array_equal(donor, donor_before)
    rows, columns = mask.any(axis=1).sum(), mask.any(axis=0).sum()
    assert mask.sum() == rows * columns  # one rectangle


def test_patches_have_the_sizes_of_the_spec():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 200), dtype=np.uint8)
    shares, ratios = [], []
    for _ in range(300):
        _, mask = cutmix(pixels, pixels, rng)
        shares.append(mask.mean())
        ratios.append(mask.any(axis=0).sum() / mask.any(axis=1).sum())
    assert 0.018 < min(shares) < 0.03
    assert 0.13 < max(shares) < 0.155
    assert 0.28 < min(ratios) < 0.4
    assert 2.8 < max(ratios) < 3.5


def test_the_same_generator_paints_the_same_defect():
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    one, other = (cutmix(pixels, pixels[::-1], np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


def test_a_donor_takes_the_kind_of_its_picture():
    mono, colour = np.full((4, 5), 90, np.uint8), np.full((6, 7, 3), 90, np.uint8)
    assert alike(mono, colour).shape == (4, 5, 3)
    assert alike(colour, mono).shape == (6, 7)
    assert (alike(colour, mono) == 90).all()
    assert alike(mono, mono) is mono


@given(
    st.sampled_from(sorted(SYNTHESES)),
    st.integers(16, 70),
    st.integers(16, 70),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_kind_marks_what_can_be_seen_of_it(kind, height, width, colour, seed):
    rng = np.random.default_rng(seed)
    tail = (3,) if colour else ()
    pixels = rng.integers(40, 200, (height, width, *tail), dtype=np.uint8)
    donor = rng.integers(0, 256, (width, height, *tail), dtype=np.uint8)
    before, donor_before = pixels.copy(), donor.copy()

    changed, mask = SYNTHESES[kind](pixels, donor, rng)

    assert (changed.shape, changed.dtype) == (pixels.shape, np.uint8)
    assert (mask.shape, mask.dtype) == ((height, width), np.bool_)
    assert np.array_equal(pixels, before)
    assert np.array_equal(donor, donor_before)
    change = np.abs(changed.astype(int) - before).reshape(height, width, -1).max(axis=2)
    assert change[~mask].max(initial=0) <= 12
    if kind != "cutmix":
        assert change[mask].min(initial=255) > 12


@given(st.integers(4, 60), st.integers(4, 60), st.sampled_from([0, 128, 255]), st.integers(0, 99))
def test_paint_never_comes_back_without_a_defect(height, width, level, seed):
    pixels = np.full((height, width), level, dtype=np.uint8)
    kinds = tuple(SYNTHESES)
    changed, mask = synthesised(kinds, pixels, pixels, np.random.default_rng(seed))
    assert mask.any()
    assert not np.array_equal(changed, pixels)
    again, _ = synthesised(kinds, pixels, pixels, np.random.default_rng(seed))
    assert np.array_equal(changed, again)


@given(st.integers(0, 2**32))
def test_a_mask_moves_with_its_defect(seed):
    pixels = np.full((60, 80, 3), 50, dtype=np.uint8)
    mask = np.zeros((60, 80), dtype=np.bool_)
    mask[25:40, 30:50] = True
    pixels[mask] = 200
    shown, where = moved(pixels, mask, np.random.default_rng(seed))
    bright = shown[..., 0] > 125
    overlap = (bright & where).sum() / (bright | where).sum()
    assert overlap > 0.85
    assert moved(pixels, None, np.random.default_rng(seed))[1] is None
    assert np.array_equal(moved(pixels, None, np.random.default_rng(seed))[0], shown)


def test_a_cell_is_defective_when_any_of_its_pixels_is():
    mask = np.zeros((40, 80), dtype=np.bool_)
    mask[39, 79] = True
    whole = patches(mask, Box.around(mask), 4, 8)
    assert whole[3, 7] == 1
    assert whole.sum() == 1
    assert not patches(mask, Box(left=0, top=0, right=40, bottom=40), 4, 4).any()
    assert patches(mask, Box(left=70, top=30, right=80, bottom=40), 14, 14)[-1, -1] == 1


@given(st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_a_transplanted_defect_is_where_its_mask_says(colour, smaller, seed):
    rng = np.random.default_rng(seed)
    tail = (3,) if colour else ()
    pixels = np.full((60, 90, *tail), 90, np.uint8)
    donor = np.full((30, 45, *tail) if smaller else pixels.shape, 160, np.uint8)
    mask = np.zeros(donor.shape[:2], np.bool_)
    mask[10:20, 15:30] = True
    donor[mask] = 250
    before, donor_before = pixels.copy(), donor.copy()

    changed, new = transplanted(pixels, donor, mask, rng)

    assert changed.shape == pixels.shape
    assert changed.dtype == np.uint8
    assert new.shape == pixels.shape[:2]
    assert new.any()
    grey = changed if changed.ndim == 2 else changed[:, :, 0]
    assert grey[new].mean() > 130  # brighter than the part it is on
    assert np.array_equal(pixels, before)
    assert np.array_equal(donor, donor_before)
    assert (grey == 90).mean() > 0.3
