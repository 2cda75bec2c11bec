"""Options that several commands share."""

import sys
from typing import Final

import typer

from engine.errors import ConfigurationError

BITS: Final = typer.Option(
    min=9, max=16, help="Significant bits of 16-bit images, where the files do not say."
)
"""Of all commands that read images of parts."""


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


def _backends() -> tuple[str, ...]:
    from engine.backends.base import BACKENDS

    return ("auto", *BACKENDS.names())
