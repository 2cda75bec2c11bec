import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import save_file

from benchmarks import robustness
from engine.bundle import Bundle, open_bundle, sha256, write_manifest
from engine.errors import ConfigurationError
from tests.tiny_bundle import tiny_bundle
from train.backbones.resnet import ResNetBackbone
from train.datasets import SPLIT, SPLIT_JSON, Source, Split
from train.recipes import RECIPE, RECIPE_JSON
from train.recipes.line import Line

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path: Path, parts: Path, split: Split, line: Line) -> Bundle:
    """At `<set>/bundle`: a network that needs no training, with the split and a recipe."""
    folder = tmp_path / parts.name / "bundle"
    made = tiny_bundle(folder)
    settled = replace(line, backbone=replace(line.backbone, form="v1.5"))
    texts = {SPLIT: SPLIT_JSON.dump_json(split), RECIPE: RECIPE_JSON.dump_json(settled)}
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    training = replace(
        made.manifest.training,
        training_sha256=tuple(item.sha256 for item in split.training),
        held_out_scores=(1.0, 30.0),
    )
    hashes = {name: sha256(text) for name, text in texts.items()}
    return write_manifest(
        folder, replace(made.manifest, files=made.manifest.files | hashes, training=training)
    )


def test_a_set_has_every_figure_and_the_table_shows_it(bundle: Bundle, parts: Path, capsys) -> None:
    result = bundle.path.parent / "robustness.json"
    given = [str(bundle.path), "--data", str(parts.parent), "--result", str(result)]
    robustness.main([*given, "--images", "4"])
    printed = capsys.readouterr().out
    written = json.loads(result.read_text())
    row = written["sets"][parts.name]
    assert written["images"].startswith("4 of each label")
    assert (row["good"], row["defective"], row["threshold"]) == (4, 4, 30.0)
    assert row["light"]["with_clahe"]["as it is"] == row["auroc"]
    assert row["light"].keys() == {"with_clahe"}
    assert row["batch"] == {"views": 8.0, "score_map": 0.0, "attention": 0.0, "score": 0.0}
    for name, changes in robustness.DISTURBANCES.items():
        found = row["disturbed"][name]
        assert found["inspections"] == 8 * len(changes)
        assert 0 <= found["median_move"] <= found["p95_move"] <= found["most_move"]
        assert 0 <= found["p05_box_iou"] <= found["median_box_iou"] <= 1
    robustness.main([*given, "--show"])
    assert capsys.readouterr().out == printed


def test_the_twin_without_clahe_has_the_same_recipe_and_split(
    bundle: Bundle, source: Source, line: Line, tmp_path: Path
) -> None:
    backbone = ResNetBackbone(line.backbone)
    backbone.initialise()
    weights = tmp_path / "weights.safetensors"
    save_file(backbone.state_dict(), weights)
    twin = robustness.without_clahe(bundle, source, tmp_path / "twin", weights)
    own = RECIPE_JSON.validate_json(twin.read(RECIPE))
    settings = RECIPE_JSON.validate_json(bundle.read(RECIPE))
    assert own == replace(
        settings, view=replace(settings.view, equalise="never"), hold_out=own.hold_out
    )
    again = robustness.without_clahe(bundle, source, tmp_path / "twin", tmp_path / "gone")
    assert again.id == twin.id == open_bundle(tmp_path / "twin").id

    later = replace(settings, epochs=settings.epochs + 1)
    text = RECIPE_JSON.dump_json(later)
    (bundle.path / RECIPE).write_bytes(text)
    changed = write_manifest(
        bundle.path,
        replace(bundle.manifest, files={**bundle.manifest.files, RECIPE: sha256(text)}),
    )
    with pytest.raises(ConfigurationError, match=r"--out: .*was not trained as"):
        robustness.without_clahe(changed, source, tmp_path / "twin", weights)


def test_moves_are_told_in_units_of_the_room_below_the_threshold() -> None:
    def seen(score: float, right: int) -> Namespace:
        box = robustness.Box(left=0, top=0, right=right, bottom=10)
        return Namespace(score=score, box=box)

    plain = [seen(1, 10), seen(5, 10)]
    found = robustness.moved(
        plain, [[seen(2, 10), seen(3, 5)]], np.array([False, True]), threshold=4.0, room=2.0
    )
    assert (found["median_move"], found["most_move"]) == (0.75, 1.0)
    assert found["median_box_iou"] == 0.75
    assert (found["flips_good"], found["flips_defective"], found["auroc"]) == (0, 1, [1.0])


def test_disturbances_do_what_they_are_called() -> None:
    right = robustness.shifted(1, 0)(PIXELS)
    assert np.array_equal(right[:, 1:], PIXELS[:, :-1])
    assert np.array_equal(right[:, 0], PIXELS[:, 0])
    assert np.array_equal(robustness.turned(0)(PIXELS), PIXELS)
    quarter = robustness.turned(90)(PIXELS[:, :40])
    assert np.array_equal(quarter, np.rot90(PIXELS[:, :40]))
    smooth = cv2.GaussianBlur(PIXELS, (0, 0), 8)
    change = cv2.absdiff(robustness.jpeg(90)(smooth), smooth)
    assert 0 < change.max() < 12  # red and blue stay where they were
    assert robustness.lit(0.5, offset=10)(np.uint8([[0, 100, 255]])).tolist() == [[10, 60, 138]]
    assert robustness.lit(gamma=2)(np.uint8([[0, 128, 255]])).tolist() == [[0, 64, 255]]
    side = robustness.sidelit(0.5)(np.full((2, 3), 200, np.uint8))
    assert side.tolist() == [[100, 150, 200]] * 2


def test_a_sample_is_spread_over_all_names(split: Split) -> None:
    items = [item for item in split.test if item.defective]
    assert robustness.chosen(items, 2) == [items[0], items[-1]]
    assert robustness.chosen(items, 0) == items
    assert robustness.chosen(items, 100) == items
