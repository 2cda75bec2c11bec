"""What a person reads first, of scores that cost detection and of such that do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.outlook import (
    costs_of,
    deciding,
    headline,
    look_first,
    outlook_of,
    prices_text,
    promise,
)
from calibration.record import Calibration, calibrate
from calibration.scores import KEPT, Scores, with_cross_fitted
from engine.bundle import Bundle
from engine.cross_fitted import CrossFitted, CrossFittedPart
from engine.picture import data_uri
from tests.tiny_bundle import good_part, tiny_bundle

PILLS = (*(3.2 + i / 100 for i in range(98)), 7.5, 9.3)
DEFECTS = (*(3.4 + i / 50 for i in range(50)), *[8.0] * 10, *[10.0] * 40)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle")


def scores(values: tuple[float, ...], digest: str) -> Scores:
    names = tuple(f"parts/good/{place:03}.jpg" for place in range(len(values)))
    return Scores(values=values, names=names, hashes=frozenset({digest * 64}))


def made(bundle: Bundle, good: Scores, defective: Scores | None) -> Calibration:
    return calibrate(
        bundle,
        good,
        defective,
        precision="fp32",
        backend="onnxruntime cpu fp32",
        max_false_reject=0.03,
        confidence=0.95,
    )


def part(place: int, score: float, kind: str = "good") -> CrossFittedPart:
    return CrossFittedPart(
        path=f"train/{kind}/{place:03}.png", sha256=f"{place:064x}", kind=kind, score=score
    )


def test_good_parts_that_cost_detection_are_said_first(bundle: Bundle) -> None:
    good, defective = scores(PILLS, "a"), scores(DEFECTS, "b")
    calibration = made(bundle, good, defective)
    costs = costs_of(calibration, good)
    assert look_first(calibration, costs) == (
        "Look at good/099.jpg and good/098.jpg first: are they really good? They cost 21 of your "
        "100 defects: without them 61 would be found instead of 40, as the threshold would be 4.17 "
        "instead of 9.3 (the promise would then need 1 more good part)."
    )
    assert headline(calibration) == (
        "Of 100 defects like yours, 40 will be found; of 1 000 good parts at most 30 will be "
        "rejected."
    )
    steps = outlook_of(calibration, costs, good, defective).steps
    assert "61 of 100 defects instead of 40" in steps[0]
    assert any("5 % instead of 3 % false rejects: 50 of 100" in step for step in steps)
    rows = prices_text(costs, calibration).splitlines()
    assert len(rows) == 6
    assert rows[4].split() == ["≤", "3", "%", "40", "of", "100", "9.3", "<"]
    assert "199 more good parts needed" in rows[3]


def test_one_outlier_is_found_without_defects_too(bundle: Bundle) -> None:
    good = scores((*PILLS[:99], 3.0), "a")
    calibration = made(bundle, good, None)
    said = look_first(calibration, costs_of(calibration, good))
    assert said.startswith("Look at good/098.jpg first: far above the others. Without it the thr")
    assert said.endswith("instead of 7.5. Is it really good?")
    assert headline(calibration) == (
        "Of 1 000 good parts at most 30 will be rejected. How many defects will be found is not "
        "known: no defect was given."
    )


def test_one_good_part_alone_is_enough_for_a_page(bundle: Bundle) -> None:
    good = scores((2.0,), "a")
    calibration = calibrate(
        bundle,
        good,
        None,
        precision="fp32",
        backend="onnxruntime cpu fp32",
        max_false_reject=0.9,
        confidence=0.5,
    )
    assert deciding(calibration, costs_of(calibration, good)) == (
        "good/000.jpg alone sets the threshold. If it is not really good, remove it: there would "
        "be too few good parts for this promise."
    )


def test_nothing_is_said_first_where_nothing_is_odd(bundle: Bundle) -> None:
    good = scores(tuple(np.linspace(1, 2, 120)), "a")
    calibration = made(bundle, good, scores((5.0,) * 30, "b"))
    outlook = outlook_of(calibration, costs_of(calibration, good), good, None)
    assert outlook.look_first == ""
    assert outlook.headline.startswith("Of 100 defects like yours, about 100 will be")
    assert outlook.steps == ()


def test_cross_fitted_scores_are_an_estimate_and_no_proof(bundle: Bundle) -> None:
    cross = CrossFitted(
        way="leave_one_out",
        folds=100,
        good=tuple(part(i, 1 + (100 - i) / 100) for i in range(100)),
        defective=tuple(part(i, 1.5 + i, "scratch") for i in range(5)),
        look_alikes=7,
    )
    shown = {
        one.path: data_uri(good_part(place)).partition(",")[2]
        for parts in (cross.good, cross.defective)
        for place, one in enumerate(parts[:3])
    }
    good = with_cross_fitted(None, cross, shown, label="good")
    defective = with_cross_fitted(None, cross, shown, label="defective")
    defective = replace(defective, hashes=frozenset({"b" * 64}))
    assert (good.cross_fitted, good.look_alikes, defective.look_alikes) == (100, 7, 0)
    assert [one.name for one in good.exhibits] == [f"train/good/{i:03}.png" for i in range(3)]
    assert [one.score for one in defective.exhibits] == [1.5, 2.5, 3.5]
    calibration = made(bundle, good, defective)
    assert not calibration.is_proved
    assert (calibration.cross_fitted, calibration.cross_fitted_defective) == (100, 5)
    assert "not proved" in promise(calibration)
    assert "each scored by a model that had not seen the part" in promise(calibration)
    assert headline(calibration).endswith("of 1 000 good parts at most 30 should be rejected.")
    outlook = outlook_of(calibration, costs_of(calibration, good), good, defective)
    assert outlook.suspects[0].remark == (
        "alone sets the threshold; without it: threshold 1.99, 4 of 5 found"
    )
    assert outlook.suspects[0].picture is not None
    assert any("For a proof, bring 99 good parts" in step for step in outlook.steps)


def test_parts_that_are_new_to_the_network_take_the_place_of_their_cross_fitted_scores() -> None:
    cross = CrossFitted(way="folds", folds=5, good=tuple(part(i, 1.0) for i in range(20)))
    unseen = replace(scores((2.0, 3.0), "a"), hashes=frozenset({f"{3:064x}", f"{99:064x}"}))
    found = with_cross_fitted(unseen, cross, {}, label="good")
    assert found.values == (2.0, 3.0, *[1.0] * 19)
    assert (found.cross_fitted, len(found.names), len(found.hashes)) == (19, 21, 21)
    assert len(found.exhibits) <= KEPT
