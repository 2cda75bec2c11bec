"""Options that several commands share."""

import os
import sys
from pathlib import Path
from typing import Final

import typer

from engine.errors import ConfigurationError

BITS: Final = typer.Option(
    min=8, max=16, help="Significant bits of 16-bit images, where the files do not say."
)
"""Of all commands that read images of parts."""

PRODUCT: Final = typer.Option(help="Which of the products; without it the first one.")
"""Of all commands that are about one product of a line."""

CAMERA: Final = typer.Option(help="A camera that has a bundle of its own for this product.")
"""Of commands that are about what one bundle inspects."""

PROMOTED_PRODUCT: Final = typer.Option(
    "--product", help="Whose bundle changes, where the line makes several products."
)
PROMOTED_CAMERA: Final = typer.Option(
    "--camera", help="Of a camera that has a bundle of its own for this product."
)
"""Of the commands that change a bundle: which one is never a guess."""


def backend(name: str | None) -> str | None:
    """The value of --backend: `auto`, or a runtime that there is."""
    known = _backends()
    if name is not None and name not in known:
        raise ConfigurationError("--backend", name, f"write {', '.join(known[:-1])} or {known[-1]}")
    return name


def backend_metavar() -> str:
    """What the help of a command shows for --backend; the list of commands does not need it."""
    is_for_one_command = len(sys.argv) > 2
    return f"[{'|'.join(_backends())}]" if is_for_one_command else "BACKEND"


def require_writable(option: str, folder: Path) -> None:
    """Refuse a folder in which nothing could be kept, before the work is done."""
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = "may not be written by this user; let it, or copy the folder"
        raise ConfigurationError(option, str(folder), remedy)


def _backends() -> tuple[str, ...]:
    from engine.backends.base import BACKENDS

    return ("auto", *BACKENDS.names())
