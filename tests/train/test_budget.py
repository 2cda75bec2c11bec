"""The views that a machine has time for: which are chosen, and what is said of others."""

import shutil
from dataclasses import replace

import pytest

from agent.commands import budget
from agent.commands.budget import (
    Tried,
    _of_twice_the_time,
    best_within,
    chosen,
    milliseconds,
    require_evidence,
)
from engine.bundle import MANIFEST, open_bundle
from engine.errors import ConfigurationError
from train import tiles
from train.backbones.resnet import ResNet
from train.recipes.line import Line
from train.run import train_bundle


def tried(side: int, ms: float, found: float | None) -> Tried:
    promised = None if found is None else 0.03
    return Tried(side=side, ms=ms, found=found, promised=promised, finished=None)


def test_what_finds_most_is_chosen_and_of_equals_the_fastest():
    assert chosen([tried(160, 9, 0.7), tried(224, 20, 0.9), tried(320, 40, 0.9)]).side == 224
    assert chosen([tried(160, 9, None), tried(224, 20, None)]).side == 224


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], "nothing finer was in reach"),
        ([tried(320, 70, 0.95)], "views of 320 pixels would find 95 of 100 instead of 90"),
        ([tried(320, 70, 0.9)], "would find no more"),
        ([tried(320, 90, 0.95)], "nothing finer was in reach"),
        ([tried(320, 70, None)], "views of 320 pixels would be in reach"),
    ],
)
def test_twice_the_time_is_told(others, said):
    best = tried(224, 35, 0.9)
    assert said in _of_twice_the_time(best, [best, *others], 40.0)


def test_a_budget_is_a_time():
    assert milliseconds("40ms") == milliseconds("40") == milliseconds("0.04 s") == 40
    for wrong in ("", "0ms", "forty", "-3", "1e9s", "nan"):
        with pytest.raises(ConfigurationError, match="--budget"):
            milliseconds(wrong)


def test_a_recipe_must_say_what_it_would_find():
    with pytest.raises(ConfigurationError, match="use --recipe nearest"):
        require_evidence(Line())


def test_the_best_of_several_trainings_becomes_the_bundle(source, nearest, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "SIDES", (32, 48))
    trained = []
    settings = replace(nearest, view=replace(nearest.view, side=32), hold_out=0.25)
    once = train_bundle(source, tmp_path / "once", settings, weights=None, defects=4)

    def train(folder, settings, weights, pieces):
        assert weights is None
        trained.append((settings.view.side, pieces))
        assert settings.view.side in budget.SIDES
        bundle = open_bundle(shutil.copytree(once.written.bundle.path, folder))
        return replace(once, written=replace(once.written, bundle=bundle))

    said = []
    ended = best_within(60_000, [(settings, None)], None, tmp_path / "out", train, said.append)
    assert [line.partition(":")[0] for line in said[:2]] == [
        "Views of 32 pixels",
        "Views of 48 pixels",
    ]
    assert said[2].startswith("Taken: views of ")
    assert ended.written.bundle.path == tmp_path / "out"
    assert (tmp_path / "out" / MANIFEST).exists()
    assert trained == [(32, None), (48, None)]
    trained.clear()
    best_within(60_000, [(settings, None)], "auto", tmp_path / "small", train, said.append)
    assert trained == [(32, None), (48, None)]  # frames are too small for tiles
    trained.clear()
    monkeypatch.setattr(tiles, "COARSEST", 2.0)
    best_within(60_000, [(settings, None)], "auto", tmp_path / "tiles", train, said.append)
    assert trained == [(32, None), (32, "auto"), (48, None)]
    with pytest.raises(ConfigurationError, match=r"too short: with the smallest views, 32 pixels"):
        best_within(1e-3, [(settings, None)], None, tmp_path / "late", train, said.append)
    other = replace(settings, backbone=ResNet(architecture="resnet50", stages=("layer2",)))
    both = [(settings, None), (other, None)]
    best_within(60_000, both, None, tmp_path / "both", train, said.append)
    assert "Views of 48 pixels with resnet50 layer2" in {line.partition(":")[0] for line in said}
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "both",
        "once",
        "out",
        "small",
        "tiles",
    ]
