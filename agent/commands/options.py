"""Options that several commands share."""

import sys

from engine.errors import ConfigurationError


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
