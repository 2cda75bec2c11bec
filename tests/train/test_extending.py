"""One more recipe, or backbone, is one more file."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from agent.commands.train import train
from engine import registry
from engine.backends.opening import open_inspector
from engine.bundle import open_bundle
from tests.training_parts import part
from train.backbones import BACKBONES
from train.export.gate import load_network
from train.recipes import RECIPES

EXAMPLES = Path(__file__).parents[2] / "examples" / "extending"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package into a folder of packages that adds the kind of an example."""

    def put(kind: str, name: str) -> None:
        folder = tmp_path / "site"
        info = folder / f"{name}_package-1.dist-info"
        info.mkdir(parents=True)
        shutil.copy(EXAMPLES / f"{name}.py", folder / f"{name}_package.py")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[atac_agent.{kind}]\n{name} = {name}_package\n")
        monkeypatch.syspath_prepend(folder)
        registry._installed.cache_clear()

    monkeypatch.setattr(RECIPES, "_found", {})
    monkeypatch.setattr(BACKBONES, "_found", {})
    yield put
    registry._installed.cache_clear()


@pytest.mark.parametrize("name", ["average", "pixels"])
def test_an_example_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40


def scores(bundle):
    with open_inspector(bundle) as inspector:
        return [
            inspector.inspect(np.asarray(part(seed, defect)[0])).score
            for seed, defect in ((1000, None), (1001, None), (1002, "spot"), (1003, "scratch"))
        ]


def test_one_file_adds_a_recipe_from_images_to_a_bundle_that_runs(install, parts, tmp_path):
    install("recipes", "average")
    out = tmp_path / "bundle"
    train(data=parts, out=out, recipe="average", hold_out=0.25, defects=4)
    bundle = open_bundle(out)
    assert (bundle.manifest.training.recipe, bundle.manifest.training.backbone) == (
        "average",
        "none",
    )
    assert (out / "training.html").exists()
    assert load_network(bundle).average.max() > 100
    assert len(set(scores(bundle))) == 4


def test_one_file_adds_a_backbone(install, parts, tmp_path):
    install("backbones", "pixels")
    out = tmp_path / "bundle"
    train(
        data=parts,
        out=out,
        backbone="pixels",
        backbone_weights=["none"],
        epochs=1,
        defects=4,
        accept_flips=True,
    )
    bundle = open_bundle(out)
    assert bundle.manifest.training.backbone == "pixels"
    assert bundle.manifest.method.network.outputs["score_map"] == (28, 28)
    assert len(set(scores(bundle))) == 4
