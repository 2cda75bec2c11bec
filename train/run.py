"""One training from images to bundle, and the folders in which it happens.

The last epoch counts; nothing is selected on test images. After every epoch the state is saved, so
that an interrupted training can be continued; it ends in the same weights as one that was not
interrupted.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from engine.bundle import MANIFEST, TrainingRecord, sha256
from engine.errors import ConfigurationError
from engine.region_spec import RegionsSpec
from train.checkpoint import UNFINISHED, Epoch
from train.datasets import (
    ADVISABLE_GOOD,
    SPLIT_JSON,
    Images,
    Source,
    Split,
    TrainingImages,
    draw_split,
)
from train.export.gate import Written, judged_items, library_versions, write_bundle
from train.recipes import RecipeSettings, Run, Trained, open_recipe
from train.tiles import Tiles, tiled
from train.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """A training that has ended in a bundle: all that its report is made of."""

    written: Written
    settings: RecipeSettings
    split: Split
    images: Images
    epochs: tuple[Epoch, ...]


def train_bundle(
    source: Source,
    out: Path,
    settings: RecipeSettings,
    *,
    weights: Weights | None,
    regions: RegionsSpec | None = None,
    tiles: Tiles | None = None,
    defects: int | None = None,
    seed: int = 0,
    resume: bool = False,
    accept_flips: bool = False,
    on_split: Callable[[Split], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Finished:
    """Draw a split of `source`, train on it, and write the bundle.

    Unfinished work waits in the folder `out.training` beside it and goes when the bundle stands.

    Args:
        source: The images.
        out: The folder for the bundle, which must be new or empty.
        settings: Of the recipe.
        weights: Of the backbone; None: it starts from nothing.
        regions: What of each image is learnt and will be inspected; None: all of it.
        tiles: In how many pieces; None: in one.
        defects: How many known defects train; default ten, at most half of them. None do where the
            recipe learns from good parts alone.
        seed: Of split, initialisation and batches.
        resume: Continue with an interrupted training.
        accept_flips: Write the bundle even if ONNX and torch do not decide alike.
        on_split: Hears of the split before training.
        on_epoch: Hears of every epoch; of those before an interruption first.
        on_warning: Hears, in a sentence, of what may make the training worth less.

    Raises:
        ConfigurationError: `out` or its folder for unfinished work cannot be made, or holds
            something else; or the weights or the tiles do not fit.
        TrainingError: There are too few images, or the training fails.
        BundleError: ONNX and torch do not decide alike.
    """
    if out.name in {"", ".."}:  # "." and the like have no name to put a folder beside
        out = out.resolve()
    run_folder = _run_folder(out)
    images = Images(source)
    try:
        settings = settings.settled(weights)
        known = defects if settings.learns_defects else 0
        split = draw_split(images, defects=known, hold_out=settings.hold_out, seed=seed)
        for warning in _warnings(settings, split, defects):
            on_warning(warning)
        images.forget_others((*split.training, *judged_items(split)))
        on_split(split)
        run = Run(
            settings=settings,
            weights=weights,
            seed=seed,
            folder=run_folder,
            resume=resume,
            on_epoch=on_epoch,
            on_warning=on_warning,
        )
        if tiles is not None:
            height, width = images.pixels(split.train_good[0]).shape[:2]
            regions = tiled(regions, tiles, frame=(width, height), side=settings.view.side)
        seen = TrainingImages(images, split, regions, anywhere=settings.leaves_out)
        if split.train_defective and not seen.defective:
            on_warning("no known defect lies in a region, so training learns from none")
        trained = open_recipe(settings).train(seen, run)
        trained = replace(trained, method=seen.method(trained.method))
        written = write_bundle(
            out,
            trained,
            settings,
            _record(run, split, trained),
            images,
            split,
            accept_flips=accept_flips,
        )
        for name in UNFINISHED:
            (run_folder / name).unlink(missing_ok=True)
        return Finished(
            written=written, settings=settings, split=split, images=images, epochs=trained.history
        )
    finally:
        with suppress(OSError):
            run_folder.rmdir()  # refused while an unfinished training waits in it


def _warnings(settings: RecipeSettings, split: Split, defects: int | None) -> Iterator[str]:
    """What the user should know of the images before time goes into training."""
    good, kept = len(split.train_good), sum(item.defective for item in split.test)
    if good < ADVISABLE_GOOD:
        yield (
            f"only {good} good images train; {ADVISABLE_GOOD} or more are advisable, of several "
            "days and batches"
        )
    if not settings.learns_defects and (kept or defects):
        yield (
            f"the recipe {settings.type} learns from good parts alone: all {kept} defective images "
            "are kept for agent evaluate"
        )


def _record(run: Run, split: Split, trained: Trained) -> TrainingRecord:
    settings, weights, last = run.settings, run.weights, trained.history[-1]
    pretrained = (
        "none" if weights is None else f"{weights.source} (tensors' SHA-256 {weights.sha256[:16]})"
    )
    return TrainingRecord(
        recipe=settings.type,
        backbone="none" if settings.backbone is None else settings.backbone.label,
        pretrained=pretrained,
        seed=run.seed,
        epochs=settings.epochs,
        good=len(split.train_good),
        defective=len(split.train_defective),
        split_sha256=sha256(SPLIT_JSON.dump_json(split, indent=1)),
        training_sha256=tuple(item.sha256 for item in split.training),
        held_out_scores=(),
        final_loss=last.loss,
        seconds=round(last.seconds, 1),
        versions=library_versions(),
    )


def require_new(out: Path) -> None:
    """Raise `ConfigurationError` unless a bundle can be made in `out`, as far as that is seen."""
    if (out / MANIFEST).exists():
        raise ConfigurationError("--out", str(out), "is a bundle already; name a new folder")
    with suppress(OSError):
        if out.exists() and any(out.iterdir()):
            raise ConfigurationError("--out", str(out), "is not empty; name a new folder")


def _run_folder(out: Path) -> Path:
    """Make the folder for unfinished work beside `out`, which must be new or empty."""
    require_new(out)
    run_folder = out.with_name(out.name + ".training")
    try:
        if out.exists():
            next(out.iterdir(), None)
        run_folder.mkdir(parents=True, exist_ok=True)
        foreign = {file.name for file in run_folder.iterdir()} - {*UNFINISHED}
    except OSError as error:
        raise ConfigurationError(
            "--out",
            str(out),
            f"cannot be made ({error.strerror}: {error.filename}); name a folder that can",
        ) from error
    if foreign:
        raise ConfigurationError(
            "--out",
            str(out),
            f"has no place for unfinished work: {run_folder} holds {min(foreign)}; "
            "name another folder",
        )
    return run_folder
