"""A secret that the configuration names and does not hold: a file's content, or a variable's."""

import os
import stat
from pathlib import Path
from typing import Final

from engine.errors import ConfigurationError
from engine.regular_file import open_regular

_MAX_BYTES: Final = 65_536


def read_secret(key: str, *, file: Path | None, variable: str | None) -> str | None:
    """The secret in `file` or in the environment's `variable`; `None` where neither is named.

    Args:
        key: What the settings call it, such as `mqtt.password`; their keys add `_file` and
            `_variable`.
        file: A regular file that only its owner may write.
        variable: The name of an environment variable.

    Returns:
        The text without its last line end.

    Raises:
        ConfigurationError: Both are named, or the one that is named cannot be used.
    """
    if file is not None and variable is not None:
        name = key.rpartition(".")[2]
        remedy = f"give either {name}_file or {name}_variable"
        raise ConfigurationError(f"{key}_variable", variable, remedy)
    if variable is not None:
        if (found := os.environ.get(variable)) is None:
            remedy = "there is no such environment variable; set it"
            raise ConfigurationError(f"{key}_variable", variable, remedy)
        _check(found, f"{key}_variable", variable)
        return found
    return None if file is None else _in_file(f"{key}_file", file)


def _check(secret: str, key: str, named: str) -> None:
    """Refuse what nobody can have meant; nothing of the secret is shown."""
    if not secret:
        raise ConfigurationError(key, named, "is empty")
    if not secret.isprintable():
        remedy = "has several lines, or characters that cannot be printed; save it as UTF-8 text"
        raise ConfigurationError(key, named, remedy)


def _in_file(key: str, file: Path) -> str:
    try:
        with open_regular(file) as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(_MAX_BYTES + 1)
        found = data.decode("utf-8-sig").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(key, str(file), f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:  # whose text shows a byte of it
        raise ConfigurationError(key, str(file), "is not text in UTF-8") from None
    if len(data) > _MAX_BYTES:
        raise ConfigurationError(key, str(file), f"is larger than {_MAX_BYTES} bytes")
    _check(found, key, str(file))
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        remedy = f"can be written by others than its owner; chmod 600 {file}"
        raise ConfigurationError(key, str(file), remedy)
    return found
