"""`agent verify`: check a bundle's signature and hashes."""

import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle to check.")],
    key: Annotated[Path, typer.Option(help="The Ed25519 public key of the signer, in PEM.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the finding as JSON.")] = False,
) -> None:
    """Check that a bundle is signed by a key and that no file has changed since.

    Example: agent verify --bundle model --key signing.pub.pem
    """
    from engine.bundle import open_bundle

    opened = open_bundle(bundle, signed_by=key, option="--key")
    answer = {"bundle": str(bundle), "bundle_id": opened.id, "signed_by": str(key)}
    typer.echo(
        json.dumps(answer, indent=2)
        if as_json
        else f"{bundle} is whole and signed by {key}: {opened.id}"
    )
