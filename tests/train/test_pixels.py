import numpy as np
import pytest
from scipy import ndimage

from train.evaluate import auroc
from train.pixels import pixel_ranking


def test_pixels_rank_as_images_do_and_each_region_counts_once():
    rng = np.random.default_rng(0)
    mask = np.zeros((20, 30), dtype=np.bool_)
    mask[2:4, 2:4] = True  # 4 pixels
    mask[10:16, 10:20] = True  # 60 pixels
    score_map = np.round(rng.normal(0, 1, mask.shape) + mask, 1).astype(np.float32)
    good = rng.normal(0, 1, (20, 30)).round(1).astype(np.float32)
    found = pixel_ranking([score_map, good], [mask, np.zeros_like(mask)])
    values = np.concatenate([score_map.ravel(), good.ravel()]).astype(np.float64)
    labels = np.concatenate([mask.ravel(), np.zeros(good.size, dtype=np.bool_)])
    assert found.auroc == pytest.approx(auroc(values, labels))

    curve = [(0.0, 0.0)]
    for threshold in sorted(set(values), reverse=True):
        overlap = np.mean(
            [
                (score_map[place] >= threshold).mean()
                for place in (np.s_[2:4, 2:4], np.s_[10:16, 10:20])
            ]
        )
        curve.append(((values[~labels] >= threshold).mean(), overlap))
    x = np.linspace(0, 0.3, 30_001)
    assert found.aupro == pytest.approx(np.interp(x, *zip(*curve, strict=True)).mean(), abs=1e-3)


def test_regions_are_those_of_eight_neighbours():
    """AUPRO spelt out, with SciPy's regions: some of them hang together by corners alone."""
    rng = np.random.default_rng(3)
    masks = [rng.random((12, 14)) < share for share in (0.1, 0.2, 0)]
    maps = [(rng.normal(0, 1, mask.shape) + mask).round(1).astype(np.float32) for mask in masks]
    regions = []
    for score_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [score_map[labels == region + 1] for region in range(count)]
    assert len(regions) < sum(ndimage.label(mask)[1] for mask in masks)
    good = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    curve = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        found = np.mean([(region >= threshold).mean() for region in regions])
        curve.append(((good >= threshold).mean(), found))
    x = np.linspace(0, 0.3, 30_001)
    expected = np.interp(x, *zip(*curve, strict=True)).mean()
    assert pixel_ranking(maps, masks).aupro == pytest.approx(expected, abs=1e-3)


def test_a_map_that_shows_all_and_only_the_defects_is_perfect():
    mask = np.zeros((8, 8), dtype=np.bool_)
    mask[1:3, 1:3] = mask[5:8, 5:7] = True
    found = pixel_ranking([mask.astype(np.float32)], [mask])
    assert (found.auroc, found.aupro) == (1.0, 1.0)
    with pytest.raises(ValueError, match="one kind"):
        pixel_ranking([mask.astype(np.float32)], [np.zeros_like(mask)])
