"""`agent train`: images in, bundle out."""

import importlib.util
import json
import math
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.commands import options
from agent.commands.budget import best_within, milliseconds, require_evidence
from agent.commands.progress import Progress
from engine.errors import AtacError, ConfigurationError, KindError
from engine.extras import install

_RECIPE_BYTES = 1_000_000

if TYPE_CHECKING:
    from train.checkpoint import Epoch
    from train.datasets import Split
    from train.recipes import RecipeSettings
    from train.run import Finished
    from train.tiles import Tiles
    from train.weights import Weights


def train(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the bundle; must be new.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Images: MVTec's layout, or good/ with defective/ or TYPE/."),
    ] = None,
    good: Annotated[
        Path | None, typer.Option(help="Folder of good parts, instead of --data.")
    ] = None,
    defective: Annotated[
        Path | None, typer.Option(help="Folder of defective parts, with --good.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="nearest remembers good parts, and known defects if there are any; line trains a "
            "network, best with ten known defects and their masks; two_stage trains one on good "
            "parts alone; paper does what ATAC-Net's paper says. Or the recipe.json of a bundle, "
            "for the same settings. Default: nearest with pretrained weights, line without."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="resnet18, resnet50, resnet50:v1 (weights with strides in the 1×1 convolutions), "
            "densenet121, densenet201 or timm:NAME, any model of timm with feature maps or patch "
            "tokens. Default: the recipe's, or what the weights are of."
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="Deepest feature map: layer2, layer3 or layer4; of timm models its number. "
            "Default: the recipe's."
        ),
    ] = None,
    backbone_weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Pretrained weights, .pth or .safetensors; 'download' lets timm fetch its own; "
            "'none' starts from nothing. Repeat it with --budget, which then chooses among them."
        ),
    ] = None,
    defects: Annotated[
        int | None,
        typer.Option(min=0, help="Known defects to learn from; default: 10, at most half of them."),
    ] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Share of good images that training does not see. Default: the recipe's.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="The same seed on the same machine gives the same weights.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted training.")
    ] = False,
    accept_flips: Annotated[
        bool,
        typer.Option(
            "--accept-flips", help="Write the bundle even if the ONNX network changes verdicts."
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="What one part may take on this machine, as 40ms: the views, and of several "
            "weights the backbone, that find most in this time are chosen. For the recipe nearest; "
            "takes several trainings."
        ),
    ] = None,
    regions: Annotated[
        Path | None,
        typer.Option(
            help="A file that names what of each frame is inspected, or a bundle that has such "
            "regions: docs/regions.md. Without it the whole frame is."
        ),
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            help="Inspect each frame in pieces that overlap, so that small defects on large frames "
            "are seen: 3x2 is three across and two down, auto as many as its size asks for. Each "
            "piece takes the time of a frame."
        ),
    ] = None,
    bits: Annotated[int | None, options.BITS] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    curve: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train a model from images of good parts and, if there are any, of some defective ones.

    Example: agent train --data mvtec_bottle --out bottle --backbone-weights resnet50-0676ba61.pth

    Without a known defect: agent train --recipe two_stage --good parts/good --out first
    --backbone-weights resnet18-f37072fd.pth

    Writes a bundle: the network in fp32, and training.html with curves, scores, pictures, and which
    images to collect next. Then agent calibrate sets the threshold; agent export adds precisions.
    Ctrl-C loses at most one epoch: repeat the command with --resume.
    """
    require_training_packages("agent train")
    from agent.regions_file import read_regions
    from train.datasets import find_source, left_out
    from train.run import require_new, train_bundle
    from train.tiles import tiles_of

    require_new(out)
    source = replace(find_source(data, good, defective), bits=bits)
    unused = left_out(source)
    for line in unused:
        typer.echo(line, err=True)
    cut = None if regions is None else read_regions(regions)
    pieces = None if tiles is None else tiles_of(tiles)
    why = None
    if recipe is None:
        recipe, why = usual_recipe(backbone_weights or [], epochs)
    settings = _settings(recipe, backbone, stage, hold_out, epochs)
    budget_ms = None if budget is None else milliseconds(budget)
    if budget_ms is not None:
        require_evidence(settings)
        if resume:
            raise ConfigurationError("--resume", None, "does not go with --budget; start again")
    elif len(backbone_weights or []) > 1:
        raise ConfigurationError("--backbone-weights", None, "several of them go with --budget")
    candidates = [
        _fitting(settings, weights, is_named=backbone is not None)
        for weights in (_weights(given, settings) for given in backbone_weights or [""])
    ]
    with Progress() as progress:
        if why is not None:
            progress.say(f"Recipe {recipe}: {why}.")

        def train_into(
            folder: Path,
            settings: "RecipeSettings",
            weights: "Weights | None",
            pieces: "Tiles | None",
        ) -> "Finished":
            progress.stage("reading the images, looking for copies")
            return train_bundle(
                source,
                folder,
                settings,
                weights=weights,
                regions=cut,
                tiles=pieces,
                defects=defects,
                seed=seed,
                resume=resume,
                accept_flips=accept_flips,
                on_split=partial(_say_split, progress, settings),
                on_epoch=partial(_say_epoch, progress, settings, curve),
                on_warning=lambda warning: progress.say(f"WARNING: {warning}."),
            )

        try:
            finished = (
                train_into(out, *candidates[0], pieces)
                if budget_ms is None
                else best_within(budget_ms, candidates, pieces, out, train_into, progress.say)
            )
        except KeyboardInterrupt:
            progress.say("\nTo continue, repeat the command with --resume.")
            raise
        bundle = finished.written.bundle
        record = bundle.manifest.training
        progress.stage("writing the report")
        statement, report, has_promise = _report(finished)
    if as_json:
        answer = {
            "bundle": str(bundle.path),
            "id": bundle.id,
            "report": None if report is None else str(report),
            "statement": statement,
            "epochs": [_told(epoch) for epoch in finished.epochs],
            "training": asdict(record),
            "left_out": unused,
        }
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(statement)
    pages = "" if report is None else f" and {report}"
    typer.echo(f"Written: {bundle.path} (id {bundle.id[:12]}){pages}")
    proof = ", or for a proof with --good DIR" if has_promise else " --good DIR"
    typer.echo(f"For the threshold: agent calibrate --bundle {bundle.path}{proof}")


def _report(finished: "Finished") -> tuple[str, Path | None, bool]:
    """Write the page; the bundle is complete without it, so a failure is a warning.

    Returns what the training came to, in words; the page, if it could be written; and whether its
    own images are enough for a threshold.
    """
    from calibration.outlook import training_outlook
    from train.report import (
        REPORT,
        about_spots,
        examine,
        small_defects,
        summary,
        write_report,
    )

    path = finished.written.bundle.path / REPORT
    try:
        outcome = examine(finished)
        outlook = training_outlook(finished.written.bundle)
        threshold = outcome.threshold if outlook is None else outlook.threshold
        spots = small_defects(finished, threshold)
        write_report(path, outcome, finished.images, outlook, spots)
    except AtacError as error:
        sys.stderr.write(f"WARNING: no {REPORT}, but the bundle is complete: {error}\n")
        record = finished.written.bundle.manifest.training
        said = f"Trained on {record.good} good and {record.defective} defective images."
        return said, None, False
    said = summary(outcome, outlook)
    if outlook is not None:
        said = " ".join(filter(None, (outlook.look_first, outlook.headline, said)))
    return f"{said} {about_spots(spots)}", path, outlook is not None


def require_training_packages(command: str) -> None:
    """Raise `ConfigurationError` when the packages of the extra `train` are not installed."""
    missing = [
        name
        for name in ("torch", "onnx", "onnxscript", "safetensors")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigurationError(command, ", ".join(missing), f"not installed; {install('train')}")


def usual_recipe(backbone_weights: list[str], epochs: int | None) -> tuple[str, str]:
    """The recipe for who names none, and why (docs/training.md)."""
    if backbone_weights == ["none"]:
        return "line", "only line trains a backbone that starts from nothing"
    if epochs is not None:
        return "line", "--epochs is given, and nearest has none"
    return "nearest", (
        "with few or no known defects it finds more, and every good part also counts for the "
        "threshold; with ten known defects, compare it with --recipe line"
    )


def _settings(
    name: str,
    backbone: str | None,
    stage: str | None,
    hold_out: float | None,
    epochs: int | None,
) -> "RecipeSettings":
    from train.backbones import named_backbone
    from train.recipes import RECIPES

    if name.endswith(".json"):
        settings = _written(Path(name))
    else:
        try:
            settings = RECIPES.find(name).settings()
        except KindError as error:
            raise ConfigurationError("--recipe", name, str(error)) from error
    chosen = settings.backbone
    if chosen is None and (backbone or stage):
        raise ConfigurationError("--backbone", backbone, f"the recipe {name} has no backbone")
    if chosen is not None:
        chosen = named_backbone(backbone, chosen.strides) if backbone else chosen
        settings = replace(settings, backbone=chosen.up_to(stage) if stage else chosen)
    if hold_out is not None:
        settings = replace(settings, hold_out=hold_out)
    return settings if epochs is None else settings.lasting(epochs)


def _written(path: Path) -> "RecipeSettings":
    """The settings of a bundle's recipe, in its file."""
    from engine.regular_file import read_regular
    from train.recipes import RECIPE_JSON

    try:
        found: RecipeSettings = RECIPE_JSON.validate_json(read_regular(path, limit=_RECIPE_BYTES))
    except OSError as error:
        raise ConfigurationError(
            "--recipe", str(path), f"cannot be read ({error.strerror})"
        ) from None
    except ValueError:
        remedy = "is no recipe of this version; name a recipe, or the recipe.json of a bundle"
        raise ConfigurationError("--recipe", str(path), remedy) from None
    return found


def _weights(given: str, settings: "RecipeSettings") -> "Weights | None":
    from train.weights import read_weights

    if settings.backbone is None:
        return None
    if given == "none":
        if not settings.descends:
            remedy = f"is not for {settings.type}, which trains no backbone; name --recipe line"
            raise ConfigurationError("--backbone-weights", given, remedy)
        return None
    if given == "download":
        return settings.backbone.download()
    if not given:
        raise ConfigurationError(
            "--backbone-weights",
            None,
            f"the backbone {settings.backbone.label} needs weights: "
            f"{settings.backbone.where_from}; or give 'none' to start from nothing (that takes "
            "more images and epochs, and finds less)",
        )
    return read_weights(Path(given))


def _fitting(
    settings: "RecipeSettings", weights: "Weights | None", *, is_named: bool
) -> "tuple[RecipeSettings, Weights | None]":
    """The settings with the backbone that the weights are of, unless the user has named one."""
    from train.backbones import recognised_backbone

    if weights is None or settings.backbone is None or is_named:
        return settings, weights
    return replace(settings, backbone=recognised_backbone(weights, settings.backbone)), weights


def _told(epoch: "Epoch") -> dict[str, Any]:
    """An epoch as JSON can hold it."""
    separation = None if math.isnan(epoch.separation) else epoch.separation
    return asdict(epoch) | {"separation": separation}


def _say_split(progress: Progress, settings: "RecipeSettings", split: "Split") -> None:
    for dropped in split.dropped:
        progress.say(f"{dropped.path} shows the same as {dropped.same_as}: left out")
    defective = sum(item.defective for item in split.test)
    masked = sum(item.mask is not None for item in split.train_defective)
    progress.say(
        f"{len(split.train_good)} good and {len(split.train_defective)} defective images "
        f"({masked} of them with a mask) to train on, "
        f"{len(split.held_out_good)} good held out, "
        f"{len(split.test) - defective} good and {defective} defective to test."
    )
    epochs = settings.epochs if settings.descends else 0
    progress.stage(settings.stage, epochs, "epochs")


def _say_epoch(
    progress: Progress, settings: "RecipeSettings", curve: Path | None, epoch: "Epoch"
) -> None:
    if curve is not None and settings.descends:
        with curve.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_told(epoch)) + "\n")
    said = [f"epoch {epoch.number}/{epoch.of}: loss {epoch.loss:.3f}"] if settings.descends else []
    if not math.isnan(epoch.separation):
        said.append(f"held-out good against known defects: AUROC {epoch.separation:.3f}")
    progress.step(epoch.number)
    if said:
        progress.say(", ".join(said))
    if epoch.number == epoch.of:
        progress.stage("writing the bundle, comparing its network with the trained one")
