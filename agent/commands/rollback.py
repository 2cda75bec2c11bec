"""`agent rollback`: bring back the bundle that was in force before."""

import json
from pathlib import Path
from typing import Annotated

import typer

from agent.commands import options


def rollback(
    *,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    product: Annotated[str | None, options.PROMOTED_PRODUCT] = None,
    camera: Annotated[str | None, options.PROMOTED_CAMERA] = None,
    why: Annotated[str, typer.Option(help="The reason, for the audit log.")] = "",
    by: Annotated[
        str | None, typer.Option(help="Who asks, for the audit log; default: this user.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Bring back the bundle that was in force before the last agent promote.

    Example: agent rollback --config agent.yaml --why "too many false alarms"

    A running agent takes it between two parts, which needs rollback in mqtt.commands. A second
    rollback goes forward again.
    """
    from agent.bundle_places import previous_place
    from agent.commands.bundles import change_bundle, told, user
    from agent.settings import load_config
    from engine.errors import BundleError

    settings = load_config(config)
    place = previous_place(settings.promoted(product, camera).path)
    if not place.is_dir():
        raise BundleError(str(place), "there is no bundle from before: none has been promoted")
    answer = change_bundle(
        settings, "rollback", place, by=user(by), why=why, product=product, camera=camera
    )
    typer.echo(json.dumps(answer, indent=2) if as_json else told(answer))
