"""`agent sign`: put a signature into a bundle."""

import json
from pathlib import Path
from typing import Annotated

import typer


def sign(
    *,
    bundle: Annotated[Path, typer.Option(help="The bundle to sign.")],
    key: Annotated[Path, typer.Option(help="The Ed25519 private key, in PEM.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Sign a bundle: its manifest, and through the hashes every file that it names.

    Example: agent sign --bundle model --key signing.pem

    An agent with bundle.require_signature refuses bundles that the matching key has not
    signed. Sign last: agent export changes the manifest.
    """
    from engine.bundle import MANIFEST, open_bundle, replace_file
    from engine.errors import BundleError
    from engine.signature import SIGNATURE
    from engine.signature import sign as signature_of

    opened = open_bundle(bundle)
    try:
        replace_file(bundle / SIGNATURE, signature_of(opened.read(MANIFEST), key))
    except OSError as error:
        raise BundleError(str(bundle), f"cannot be signed ({error.strerror})") from error
    answer = {"bundle": str(bundle), "bundle_id": opened.id, "signature": str(bundle / SIGNATURE)}
    typer.echo(json.dumps(answer, indent=2) if as_json else f"signed {bundle}, {opened.id}")
