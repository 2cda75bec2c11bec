import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.anomalies import alike, cutmix


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
