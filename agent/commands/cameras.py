"""`agent cameras`: which cameras are there, and the lines that use them."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from agent.cameras.settings import Found


def cameras(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """List the cameras on network and USB, with the lines to paste into agent.yaml.

    Example: agent cameras

    Cameras that another program holds are listed as well. What cannot be looked for says why.
    """
    from agent.cameras.settings import CAMERAS
    from engine.errors import CameraError

    found: dict[str, list[Found]] = {}
    failed: dict[str, str] = {}
    for kind in CAMERAS.names():
        look: Any = getattr(CAMERAS.find(kind).module, "found", None)
        if look is None:
            continue
        try:
            found[kind] = look()
        except CameraError as error:
            failed[kind] = str(error)
    if as_json:
        every = {kind: [asdict(each) for each in some] for kind, some in found.items()}
        typer.echo(json.dumps({"found": every, "failed": failed}, indent=2))
        return
    for some in found.values():
        for each in some:
            typer.echo(f"{each.title}\n{lines(each)}\n")
    for reason in failed.values():
        typer.echo(reason)
    if not any(found.values()):
        kinds = ", ".join(found) or "none"
        typer.echo(f"no camera answers (looked for: {kinds}); check power, cable and addresses")


def lines(found: "Found") -> str:
    """The lines of a configuration that use this camera."""
    features = [f"    {name}: {value}" for name, value in found.features.items()]
    return "\n".join(
        [
            "camera:",
            *(f"  {key}: {_written(value)}" for key, value in found.settings.items()),
            *(["  features:", *features] if features else []),
        ]
    )


def _written(value: object) -> str:
    """Text in quotes where YAML would take it for a number or something else."""
    text = str(value)
    is_plain = isinstance(value, str) and text.replace("-", "").replace("_", "").isalnum()
    return text if is_plain and not text.isdigit() else json.dumps(value)
