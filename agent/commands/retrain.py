"""`agent retrain`: from labels to a calibrated bundle, and what it would change."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.commands import options

if TYPE_CHECKING:
    from engine.bundle import Bundle


def retrain(
    *,
    out: Annotated[Path, typer.Option(help="Folder for everything; must be new.")],
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    product: Annotated[str | None, options.PRODUCT] = None,
    camera: Annotated[str | None, options.CAMERA] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="The labelled frames; default: page/labelled by the ledger.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="The images of the first training: good/, defective/ and calibration/."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="As for agent train; default: as the bundle in force was trained."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="As for agent train.")] = None,
    stage: Annotated[str | None, typer.Option(help="As for agent train.")] = None,
    backbone_weights: Annotated[str, typer.Option(help="As for agent train.")] = "",
    epochs: Annotated[int | None, typer.Option(min=1, help="As for agent train.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="As for agent train.")] = 0,
    bits: Annotated[int | None, options.BITS] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train again with what was labelled on the page, calibrate, and compare on kept frames.

    Example: agent retrain --config agent.yaml --base parts --out runs/second
    --backbone-weights resnet50-0676ba61.pth

    Good parts of the audit set the threshold, all others are learnt from. Nothing of the agent
    changes: agent promote OUT/bundle does that.
    """
    from agent.commands.calibrate import calibrate
    from agent.commands.compare import compare
    from agent.commands.train import train
    from agent.labelled import gather, read_labelled
    from agent.settings import load_config
    from calibration.record import read_calibration
    from engine.bundle import open_bundle
    from engine.errors import ConfigurationError

    whole = load_config(config)
    settings, (made, cameras) = whole.making(product, camera), whole.inspected(product, camera)
    folder = labelled or settings.ledger.path.parent / "page" / "labelled"
    found = read_labelled(folder, product=made, cameras=cameras)
    if not found.parts:
        raise ConfigurationError("--labelled", str(folder), "has no labelled part with its frame")
    old = open_bundle(settings.bundle.path, signed_by=settings.bundle.require_signature)
    counts = gather(found, base, out / "data")
    typer.echo(
        f"{counts['good']} good and {counts['defective']} defective images to learn from, "
        f"{counts['calibration']} good parts of the audit for the threshold",
        err=True,
    )
    bundle = out / "bundle"
    train(
        out=bundle,
        good=out / "data" / "good",
        defective=out / "data" / "defective" if counts["defective"] else None,
        recipe=recipe or _recipe(old),
        backbone=backbone,
        stage=stage,
        backbone_weights=[given] if (given := backbone_weights or _weights(old)) else None,
        defects=counts["defective"] or None,
        epochs=epochs,
        seed=seed,
        regions=old.path if old.manifest.method.regions is not None else None,
        bits=bits,
        curve=out / "curve.jsonl",
    )
    calibrate(bundle=bundle, good=out / "data" / "calibration" if counts["calibration"] else None)
    new = read_calibration(open_bundle(bundle)).calibration
    report = out / "comparison.html"
    changed = None
    if settings.evidence.folder is not None:
        compare(config=config, bundle=bundle, product=product, camera=camera, report=report)
        changed = str(report)
    answer = {
        "bundle": str(bundle),
        "bundle_id": new.bundle_id,
        "product": made,
        "threshold": new.threshold,
        "max_false_reject": new.max_false_reject,
        "proved": new.is_proved,
        "counts": counts,
        "comparison": changed,
    }
    (out / "result.json").write_text(json.dumps(answer, indent=2))
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        which = "" if made is None else f" --product {made}"
        at = "" if camera is None else f" --camera {camera}"
        typer.echo(f"To use it: agent promote {bundle} --config {config}{which}{at}")


def _recipe(old: "Bundle") -> str:
    """How the bundle in force was trained."""
    written = old.path / "recipe.json"
    return str(written) if written.is_file() else old.manifest.training.recipe


def _weights(old: "Bundle") -> str:
    """A bundle that began without weights does so again."""
    return "none" if old.manifest.training.pretrained == "none" else ""
