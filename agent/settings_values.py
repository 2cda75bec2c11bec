"""The values that settings are made of: every number has its bounds here, every text and path too.

Settings of all kinds use these, those of installed packages as well. What lies outside is refused
when the configuration is read, and so never meets a clock, a socket or a file system.
"""

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

_PATH_MAX_BYTES: Final = 4096
_NAME_MAX_BYTES: Final = 255
_ADDRESS: Final = re.compile(
    r"\w[\w+.-]+:/|.*://|(//)?[^\s/]+:[^\s/]*@|\\\\|//[^/]|[A-Za-z]:[\\/]", re.ASCII
)
"""`rtsp://…`, what becomes of it as a path, `user:password@host`, and Windows' `\\\\host\\share`,
`//host/share` and `C:\\data`."""
_TIME: Final = re.compile(r"([01]\d|2[0-3]):[0-5]\d", re.ASCII)
_DAY_MS: Final = 86_400_000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed; write others")
    if text != text.strip():
        raise ValueError("has spaces around it; remove them")
    return text


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("should be a time in quotes, such as '06:00'")
    return text


def _without_spaces(text: str) -> str:
    if set(text) & set(" /@"):
        raise ValueError("should be a host name or an address alone, such as broker.local")
    if text.count(":") == 1 or set(text) & set("[]"):
        raise ValueError("should be a host name or an address alone; the port has a key of its own")
    return text


def _usable_path(value: object) -> object:
    """`value` if a file could have this path; pydantic says what is wrong with other types."""
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if not text.strip():
        raise ValueError("is empty; write a path")
    if _ADDRESS.match(text):
        raise ValueError("is an address; write the path of a file or folder")
    _printable(text)
    if len(text.encode()) > _PATH_MAX_BYTES or any(
        len(part.encode()) > _NAME_MAX_BYTES for part in text.split("/")
    ):
        raise ValueError("is longer than a path can be")
    try:
        return type(value)(Path(text).expanduser())
    except RuntimeError:
        raise ValueError("starts with ~ and names no user with a home") from None


Text = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_printable)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_printable)]
HostName = Annotated[Text, AfterValidator(_without_spaces)]
AnyPath = Annotated[Path, BeforeValidator(_usable_path)]
"""The path of a file or folder; `~` is expanded, and what is relative starts at the file's."""

Port = Annotated[int, Field(ge=1, le=65_535)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0.1, le=_DAY_MS)]
Seconds = Annotated[float, Field(ge=0.1, le=_DAY_MS / 1e3)]
SecondsOrNone = Annotated[float, Field(ge=0, le=3600)]
"""A wait that may be left out, by 0."""
Days = Annotated[float, Field(ge=0.01, le=36_500)]
Megabytes = Annotated[int, Field(ge=1, le=1_000_000)]
PartsPerMinute = Annotated[float, Field(ge=0.01, le=60_000)]
Shifts = Annotated[
    tuple[Annotated[Text, AfterValidator(_time)], ...], Field(min_length=1, max_length=24)
]
"""The local times of day at which shifts begin."""
