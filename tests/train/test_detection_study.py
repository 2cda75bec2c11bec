"""The pure functions of benchmarks/detection_study, on generated data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.detection_study import curves, known
from benchmarks.detection_study.bank import Memory, k_centre, top_mean
from benchmarks.detection_study.closer import closer_box, gated
from benchmarks.detection_study.features import Features, view_spec
from benchmarks.detection_study.heads import CrossFitted, evidence_weight
from benchmarks.detection_study.resampling import beta_binomial_tail, resampled
from benchmarks.detection_study.scores import Scores, as_z, figures, order_threshold
from calibration.bound import allowed_exceedances
from engine.frame import Box


def test_k_centre_reaches_every_cluster_however_few_its_patches_are():
    rng = np.random.default_rng(0)
    corners = 10 * np.eye(12)
    counts = [300, *[3] * 11]
    cluster = np.repeat(np.arange(12), counts)
    patches = corners[cluster] + 0.1 * rng.standard_normal((len(cluster), 12))
    chosen = k_centre(torch.from_numpy(patches), 24)
    assert set(cluster[chosen]) == set(range(12))
    assert len(set(chosen.tolist())) == 24
    assert len(k_centre(torch.from_numpy(patches[:5]), 24)) == 5


@pytest.fixture
def memory():
    """Six good views of a bank; a seventh like them, and an eighth with four foreign patches."""
    rng = np.random.default_rng(0)
    fine = rng.standard_normal((1, 200, 8, 8)) + 0.7 * rng.standard_normal((8, 200, 8, 8))
    fine[7, :, 2:4, 2:4] = rng.standard_normal((200, 2, 2))
    coarse = np.repeat(rng.standard_normal((1, 80, 4, 4)), 8, axis=0)
    features = Features([fine.astype(np.float16), coarse.astype(np.float16)])
    return Memory(features, np.arange(6), size=6 * 64, greedy=False)


def test_a_good_image_is_scored_as_if_the_bank_had_been_made_without_it(memory):
    distances = memory.distances(range(8))
    scores = Scores(top_mean(distances[:6], 0.03), top_mean(distances[6:], 0.03))
    z = as_z(scores)
    assert z.good.mean() == pytest.approx(0, abs=1e-6)
    assert z.good.std() == pytest.approx(1, abs=1e-3)
    assert abs(z.others[0]) < 4
    assert z.others[1] > 10
    # The bank holds the image's own patches; met, they would be at no distance.
    assert distances[:6].min() > 0.01


def test_the_threshold_is_calibrations_order_statistic_and_the_highest_score_of_too_few():
    rng = np.random.default_rng(0)
    good = rng.permutation(267).astype(float)
    allowed = allowed_exceedances(267, max_false_reject=0.03, confidence=0.95)
    assert allowed == 3
    assert (good > order_threshold(good)).sum() == allowed
    assert order_threshold(good[:98]) == good[:98].max()
    found = figures(Scores(good, np.array([300.0, 264.5, 0.0])))
    assert found.found == pytest.approx(2 / 3)


def test_behind_the_gate_only_parts_that_were_suspicious_are_judged_by_the_closer_view():
    good, others = np.arange(10.0), np.array([9.5, 2.0])
    closer = Scores(np.full(10, 5.0), np.array([1.0, 100.0]))
    both = gated(Scores(good, others), closer, 0.8)
    assert both.good.tolist() == [*(good[:8] - 9), 13, 14]
    assert both.others.tolist() == [10.5, -7.0]
    assert gated(Scores(good, others), closer, 0.0).good.tolist() == (good + 5).tolist()


def test_the_closer_box_is_half_the_view_around_the_farthest_place_and_within_the_view():
    spec = view_spec(224)
    distances = torch.zeros(28, 28)
    distances[14, 10] = 1
    box = closer_box(distances, spec)
    assert (box.width, box.height) == (112, 112)
    assert box.left <= 10 * 8 < box.right
    assert box.top <= 14 * 8 < box.bottom
    distances[27, 27] = 9
    assert closer_box(distances, spec) == Box(left=112, top=112, right=224, bottom=224)


def test_heads_get_a_weight_only_by_enough_known_defects_that_they_rank_better():
    good, known = np.linspace(-2, 2, 200), np.arange(6)
    weak, strong = Scores(good, np.full(6, 1.0)), Scores(good, np.full(6, 3.0))
    assert evidence_weight(weak, strong, known) > 0
    assert evidence_weight(weak, strong, known[:4]) == 0
    assert evidence_weight(strong, Scores(good, np.full(6, -3.0)), known) == 0


def test_a_defect_is_scored_by_the_heads_that_have_not_seen_it():
    fitted = CrossFitted(
        good=np.zeros(2),
        others=np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]),
        seen=np.array([[True, False, True], [False, False, True]]),
    )
    assert fitted.unseen().others == pytest.approx([5, 4, np.nan], nan_ok=True)


def test_an_exact_threshold_in_the_resampling_realises_what_order_statistics_say():
    tail = beta_binomial_tail(10, 0, 19)
    assert tail[0] == pytest.approx(10 / 29)  # the highest of all 29 is a new part
    assert tail[-1] == pytest.approx(0)
    # Patches far from every bank by the image's own amount: no bank matters, so all ways are exact.
    own = np.random.default_rng(0).random(60).astype(np.float32)
    nearest = np.broadcast_to(own[:, None, None], (60, 60, 4))
    never, always = np.zeros((1, 60, 4), np.float32), np.full((1, 60, 4), 2, np.float32)
    defects = np.concatenate([never, always])
    found = list(resampled(nearest, defects, repeats=50, rates=(0.03, 0.1)))
    assert [(one.way, one.asked) for one in found] == [("loo", 0.1), ("fold5", 0.1)]
    for one in found:
        assert one.rate == pytest.approx(one.exact_rate, abs=0.02)
        assert one.beyond < 0.1
        assert one.found == 0.5


def test_the_curves_in_the_documents_are_those_of_the_kept_scores(tmp_path):
    picture = tmp_path / "goals.svg"
    curves.main([str(picture)])
    shown = Path(__file__).parents[2] / "docs" / "pictures" / "detection-goals.svg"
    assert picture.read_text() == shown.read_text()


def test_the_table_of_known_defects_in_the_decision_is_that_of_the_kept_scores(capsys):
    known.main()
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(
        line.startswith("10 with heads evidence 0.79 0.88 (0.970) 0.42 (0.872)") for line in said
    )
    assert any(line.startswith("1 evidence 0.50 0.91 (0.972) 0.50 (0.866)") for line in said)
