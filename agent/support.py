"""The support archive: what whoever helps needs to know, without passwords and without pictures."""

import io
import json
import platform
import re
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from agent.record.rows import software
from engine.errors import without_secrets
from engine.regular_file import read_regular

_CONFIG_MAX_BYTES: Final = 1_000_000
_SECRET: Final = re.compile(
    r"(?P<key>['\"]?[\w-]*(passw|secret|token|credential)[\w-]*['\"]?\s*:\s*)(?P<value>[^\s,}#].*)",
    re.IGNORECASE,
)
_NAMES_A_PLACE: Final = re.compile(r"(_file|_variable)['\"]?\s*:\s*$", re.IGNORECASE)


def shown_configuration(path: Path) -> list[str]:
    """The lines of a configuration as they may be shown: what could be a password is left out.

    Raises `OSError` where it cannot be read.
    """
    text = read_regular(path, limit=_CONFIG_MAX_BYTES).decode(errors="replace")
    return [_shown(line) for line in text.splitlines()]


def _shown(line: str) -> str:
    found = _SECRET.search(line)
    if found is not None and not _NAMES_A_PLACE.search(found["key"]):
        line = line[: found.start("value")] + "…"
    return without_secrets(line)


def archive(configuration: Path | None, files: Mapping[str, object]) -> bytes:
    """A ZIP file with the configuration, the versions of all packages, and `files`.

    What is no text is written as JSON.
    """
    packages = sorted({f"{one.name} {one.version}" for one in distributions()})
    about = [software(), platform.platform(), f"Python {platform.python_version()}", *packages]
    content: dict[str, object] = {"versions.txt": _lines(about), **files}
    if configuration is not None:
        try:
            content["agent.yaml"] = _lines(shown_configuration(configuration))
        except OSError as error:
            content["agent.yaml"] = f"cannot be read: {error.strerror}"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, value in content.items():
            text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
            packed.writestr(name, without_secrets(text))
    return made.getvalue()


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
