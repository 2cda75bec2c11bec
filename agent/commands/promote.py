"""`agent promote`: put another bundle in force, while the line runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from agent.commands import options


def promote(
    *,
    bundle: Annotated[Path, typer.Argument(help="The bundle, calibrated.")],
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    product: Annotated[str | None, options.PROMOTED_PRODUCT] = None,
    camera: Annotated[str | None, options.PROMOTED_CAMERA] = None,
    why: Annotated[str, typer.Option(help="The reason, for the audit log.")] = "",
    by: Annotated[
        str | None, typer.Option(help="Who asks, for the audit log; default: this user.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Put another bundle in force, with its own calibration, and keep the old one.

    Example: agent promote runs/bottle-2 --config agent.yaml --why "learnt the new scratch"

    A running agent takes it between two parts, which needs promote in mqtt.commands; a stopped one
    at its next start. A bundle that cannot be used is refused: the line goes on with the old one.
    """
    from agent.bundle_places import put_next
    from agent.commands.bundles import change_bundle, told, user
    from agent.runtime import calibrated
    from agent.settings import load_config
    from engine.bundle import open_bundle
    from engine.errors import BundleError

    settings = load_config(config)
    chosen = settings.promoted(product, camera)
    new = open_bundle(bundle, signed_by=chosen.require_signature)
    calibrated(new, chosen)  # refuses what has no threshold, or cannot be run here
    if new.id == open_bundle(chosen.path).id:
        raise BundleError(str(bundle), "is the bundle in force already")
    answer = change_bundle(
        settings,
        "promote",
        put_next(new, chosen.path),
        by=user(by),
        why=why,
        product=product,
        camera=camera,
    )
    typer.echo(json.dumps(answer, indent=2) if as_json else told(answer))
