"""Verdicts, boxes and scores of two ways, compared."""

import pytest

from engine.frame import Box
from engine.parity import box_iou, compared, provisional_threshold
from tests import inspections

BOX = Box(left=0, top=0, right=4, bottom=2)


def inspection(score, box=BOX):
    return inspections.inspection(score, Box.whole(20, 20), box)


def test_a_verdict_that_differs_is_named():
    other = Box(left=2, top=1, right=6, bottom=3)
    parity = compared(
        [inspection(1.0), inspection(2.0), inspection(5.0)],
        [inspection(1.1), inspection(3.5, other), inspection(4.0)],
        ["a", "b", "c"],
        compared_with="the other",
        threshold=3.0,
        threshold_from="calibration",
    )
    assert parity.flips == ("b",)
    assert parity.max_score_difference == 1.5
    assert (parity.median_box_iou, parity.least_box_iou) == (1.0, pytest.approx(2 / 14))
    assert parity.summary.startswith("1 of 3 verdicts differ from the other at threshold 3 ")


def test_the_image_that_set_the_threshold_is_on_the_fence():
    parity = compared(
        [inspection(3.0)],
        [inspection(3.1)],
        ["fence"],
        compared_with="the other",
        threshold=3.0,
        threshold_from="calibration",
    )
    assert parity.flips == ()


def test_a_verdict_near_the_threshold_is_no_objection():
    parity = compared(
        [inspection(2.5), inspection(3.5), inspection(4.5)],
        [inspection(3.2), inspection(2.0), inspection(2.0)],
        ["below", "above", "far"],
        compared_with="the other",
        threshold=3.0,
        threshold_from="calibration",
        band=(2.0, 4.0),
    )
    assert (parity.flips, parity.within_band) == (("far",), ("below", "above"))
    assert "1 of 3 verdicts differ from the other at threshold 3 " in parity.summary
    assert "(from calibration) and 2 near it" in parity.summary
    assert parity.objections == ("1 of 3 verdicts change at threshold 3 (far)",)


def test_boxes_and_ranking_are_kept_too():
    def parity(box, auroc_loss):
        return compared(
            [inspection(1.0)],
            [inspection(1.0, box)],
            ["one"],
            compared_with="the other",
            threshold=3.0,
            threshold_from="held-out images",
            auroc_loss=auroc_loss,
        )

    assert parity(BOX, 0.001).objections == ()
    assert parity(BOX, -0.5).objections == ()
    ranking, boxes = parity(BOX, 0.003), parity(Box(left=0, top=0, right=2, bottom=2), None)
    assert ranking.objections == ("the AUROC falls by 0.0030, more than 0.002",)
    assert boxes.objections == ("the boxes overlap by 0.50 in the median, less than 0.9",)


def test_provisional_thresholds_lie_between_the_classes():
    assert provisional_threshold([1.0, 2.0], [4.0, 9.0, 1.5]) == 3.0
    assert provisional_threshold([1.0, 2.0], [1.5]) == pytest.approx(2.2)


def test_box_iou():
    assert box_iou(BOX, BOX) == 1.0
    assert box_iou(BOX, Box(left=2, top=1, right=6, bottom=3)) == pytest.approx(2 / 14)
    assert box_iou(BOX, Box(left=4, top=0, right=6, bottom=2)) == 0.0
