import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from train.evaluate import (
    Scored,
    auroc,
    average_precision,
    evaluation,
    fpr_at_tpr,
    pixel_ranking,
)

ROWS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def arrays(rows):
    return (
        np.array([score for score, _ in rows], dtype=np.float64),
        np.array([label for _, label in rows]),
    )


@given(ROWS)
def test_auroc_counts_pairs_and_half_the_ties(rows):
    scores, labels = arrays(rows)
    pairs = [(d, g) for d in scores[labels] for g in scores[~labels]]
    expected = sum(1.0 if d > g else 0.5 if d == g else 0.0 for d, g in pairs) / len(pairs)
    assert auroc(scores, labels) == pytest.approx(expected, abs=1e-12)


@given(ROWS)
def test_precision_and_false_positives_follow_every_threshold(rows):
    scores, labels = arrays(rows)
    precision, recall, before = 0.0, 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        flagged = scores >= threshold
        recall = (flagged & labels).sum() / labels.sum()
        precision += (recall - before) * (flagged & labels).sum() / flagged.sum()
        before = recall
    assert average_precision(scores, labels) == pytest.approx(precision, abs=1e-12)
    enough = [
        (scores[~labels] >= t).mean() for t in set(scores) if (scores[labels] >= t).mean() >= 0.95
    ]
    assert fpr_at_tpr(scores, labels) == pytest.approx(min(enough))


@given(ROWS)
def test_scikit_learn_says_the_same(rows):
    scores, labels = arrays(rows)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores)
    )
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert fpr_at_tpr(scores, labels) == pytest.approx(fpr[tpr >= 0.95].min())


def test_known_values():
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert auroc(scores, labels) == 0.75
    assert average_precision(scores, labels) == pytest.approx(5 / 6)
    assert fpr_at_tpr(scores, labels) == 0.5
    # Ranks decide: scores that float32 could not tell apart still do.
    assert auroc(np.array([1.0, 1.0 + 1e-12]), np.array([False, True])) == 1.0


def image(kind, score):
    return Scored(path=f"{kind}-{score}", kind=kind, score=score, zoomed=False)


def test_an_evaluation_ranks_each_kind_against_all_good_images():
    images = (
        image("good", 1.0),
        image("good", 3.0),
        image("crack", 2.0),
        image("hole", 4.0),
        image("hole", 5.0),
    )
    found = evaluation(images, backend="test", threshold=3.0)
    assert (found.overall.good, found.overall.defective) == (2, 3)
    assert found.by_kind["hole"].auroc == 1.0
    assert found.by_kind["crack"].auroc == 0.5
    assert found.at_threshold.false_rejects == 0  # the threshold itself still passes
    assert found.at_threshold.missed == ("crack-2.0",)


def test_one_class_alone_has_no_ranking():
    found = evaluation((image("good", 1.0),), backend="test")
    assert found.overall.auroc is None
    assert found.by_kind == {}
    assert found.at_threshold is None


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
