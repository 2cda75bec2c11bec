"""Parts to train on, and recipes at a size that trains in seconds: fixtures of several folders."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from train.backbones.resnet import ResNet
from train.datasets import Images, Source, Split, TrainingImages, draw_split, find_source
from train.nearest_patch import Bank
from train.recipes import RECIPE, RECIPE_JSON, RecipeSettings, Run, Trained, open_recipe
from train.recipes.line import Line
from train.recipes.nearest import Nearest
from train.recipes.paper import Paper
from train.schedule import Steps
from train.weights import Weights

SIZE = 80
SMALL = ResNet(architecture="resnet18", stages=("layer2",))


def part(seed: int, defect: str | None = None) -> tuple[Image.Image, Image.Image]:
    """A grey disc on a dark belt, perhaps with a bright spot or a scratch, and its mask."""
    rng = np.random.default_rng(seed)
    belt = rng.normal(60, 4, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
    image, mask = Image.fromarray(belt), Image.new("L", (SIZE, SIZE))
    x, y = rng.integers(-3, 4, 2) + SIZE // 2
    ImageDraw.Draw(image).ellipse((x - 26, y - 26, x + 26, y + 26), fill=(150, 150, 160))
    for canvas, colour in ((image, (250, 240, 120)), (mask, 255)):
        draw = ImageDraw.Draw(canvas)
        if defect == "spot":
            draw.ellipse((x - 14, y - 9, x + 2, y + 7), fill=colour)
        elif defect == "scratch":
            draw.line((x - 18, y - 10, x + 15, y + 12), fill=colour, width=4)
    return image, mask


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVTec's layout: 24 + 6 good parts, 5 with a spot and 5 with a scratch."""
    root = tmp_path_factory.mktemp("parts")
    for place, count, first in (("train/good", 24, 0), ("test/good", 6, 100)):
        (root / place).mkdir(parents=True)
        for i in range(count):
            part(first + i)[0].save(root / place / f"{i:03}.png")
    for start, kind in ((200, "spot"), (300, "scratch")):
        (root / "test" / kind).mkdir()
        (root / "ground_truth" / kind).mkdir(parents=True)
        for i in range(5):
            image, mask = part(start + i, kind)
            image.save(root / "test" / kind / f"{i:03}.png")
            mask.save(root / "ground_truth" / kind / f"{i:03}_mask.png")
    return root


@pytest.fixture(scope="session")
def source(parts: Path) -> Source:
    return find_source(parts, None, None)


@pytest.fixture(scope="session")
def split(source: Source) -> Split:
    return draw_split(source, defects=4, hold_out=0.25, seed=0)


@pytest.fixture(scope="session")
def images(source: Source, split: Split) -> TrainingImages:
    return TrainingImages(Images(source), split)


@pytest.fixture(scope="session")
def line() -> Line:
    settings = Line()
    return replace(
        settings,
        view=replace(settings.view, side=48),
        crop=replace(settings.crop, min_side=16),
        backbone=SMALL,
        freeze=False,
        memory_bank=None,
        epochs=1,
        least_steps=4,
        batch=8,
    )


@pytest.fixture(scope="session")
def nearest() -> Nearest:
    settings = Nearest()
    return replace(
        settings,
        view=replace(settings.view, side=48, equalise="never"),
        backbone=SMALL,
        memory_bank=Bank(patches=300, directions=64),
        head_steps=4,
    )


@pytest.fixture(scope="session")
def paper() -> Paper:
    settings = Paper()
    return replace(
        settings,
        view=replace(settings.view, side=64),
        backbone=SMALL,
        epochs=1,
        least_steps=4,
        schedule=Steps(every=10, factor=0.1),
    )


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe `line` over few steps of small views, as the file that `--recipe` takes."""
    settings = Line()
    settings = replace(
        settings,
        view=replace(settings.view, side=96),
        crop=replace(settings.crop, min_side=32),
        batch=8,
        least_steps=2,
    )
    path = tmp_path_factory.mktemp("recipes") / RECIPE
    path.write_bytes(RECIPE_JSON.dump_json(settings))
    return path


@pytest.fixture(scope="session")
def data() -> Path:
    root = Path(os.environ.get("ATAC_DATA", "../shared/data")).resolve()
    if not root.is_dir():
        pytest.skip(f"no real images at {root}; set ATAC_DATA")
    return root


def trained(
    settings: RecipeSettings,
    images: TrainingImages,
    folder: Path,
    *,
    weights: Weights | None = None,
    seed: int = 0,
    **options: object,
) -> Trained:
    """What a recipe makes of `images`; its state is kept in `folder`."""
    run = Run(settings=settings, weights=weights, seed=seed, folder=folder, **options)
    return open_recipe(settings).train(images, run)
