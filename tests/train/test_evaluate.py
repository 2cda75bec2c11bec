import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from train.evaluate import (
    Scored,
    auroc,
    average_precision,
    evaluation,
    fpr_at_tpr,
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
    return Scored(path=f"{kind}-{score}", sha256="0" * 64, kind=kind, score=score, zoomed=False)


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
