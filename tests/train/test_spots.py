"""Spots of known sizes: what is drawn, and which size counts as found."""

import numpy as np
import pytest

from engine.frame import Box, Pixels
from tests.inspections import inspection
from train.spots import CONTRAST, Spots, spots_found, with_spot


class SeesFrom:
    """Scores a frame by how many pixels differ from the plain one."""

    def __init__(self, plain: Pixels, pixels: int) -> None:
        self.plain, self.pixels = plain, pixels

    def inspect(self, pixels: Pixels):
        changed = int((pixels != self.plain).sum())
        return inspection(float(changed >= self.pixels), Box.around(pixels))


@pytest.mark.parametrize("tone", [40, 200])
@pytest.mark.parametrize("colours", [(), (3,)])
def test_a_spot_has_its_size_and_its_contrast(tone, colours):
    plain = np.full((200, 300, *colours), tone, np.uint8)
    for size in (4, 16, 48):
        spotted = with_spot(plain, [Box.around(plain)], size, np.random.default_rng(0))
        change = spotted.astype(int) - tone
        change = change.reshape(200, 300, -1)[..., 0]
        assert abs(change).max() == CONTRAST
        area = abs(change).sum() / CONTRAST
        assert area == pytest.approx(np.pi * size**2 / 4, rel=0.1)
        rows, columns = np.nonzero(change)
        assert rows.min() > 30
        assert columns.max() < 270


def test_the_smallest_size_is_where_all_larger_ones_are_found_too():
    plain = np.full((128, 160), 90, np.uint8)
    found = spots_found(SeesFrom(plain, 100), [(plain, [Box.around(plain)])] * 3, threshold=0.5)
    assert list(found.found) == [4, 6, 8, 12, 16, 24, 32]
    assert (found.width, found.height, found.smallest) == (160, 128, 12)
    assert Spots(width=9, height=9, found={4: 1.0, 6: 0.5, 8: 0.95}).smallest == 8
    assert Spots(width=9, height=9, found={4: 1.0, 6: 0.5}).smallest is None
