"""Where the paths of a configuration lead, so that none lies inside another unnoticed."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PATIENCE_S: Final = 1.0
"""A share that hangs must not hold up the reading of a configuration."""

Identity = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a path leads, with links followed; `folders` are it and all that it lies in."""

    written: Path
    real: Path
    folders: tuple[Identity, ...] = ()
    identity: Identity | None = None

    def holds(self, other: "Place") -> bool:
        """Whether `other` is this folder or lies in it, by whatever name or mount."""
        return (
            other.written.is_relative_to(self.written)
            or other.real.is_relative_to(self.real)
            or (self.identity is not None and self.identity in other.folders)
        )


def found_places(paths: Sequence[Path]) -> dict[Path, Place]:
    """Where each path leads; links that cannot be followed in time count as they are written."""
    absolute = {path: Path(os.path.abspath(path)) for path in paths}  # noqa: PTH100 - no links yet
    found = {path: Place(written=each, real=each) for path, each in absolute.items()}

    def follow() -> None:
        for path, each in absolute.items():
            found[path] = _followed(each)

    # A daemon, as nothing can interrupt it.
    following = threading.Thread(target=follow, name="atac-places", daemon=True)
    following.start()
    following.join(_PATIENCE_S)
    return dict(found)


def _followed(path: Path) -> Place:
    real = Path(os.path.realpath(path))
    folders = []
    for each in (real, *real.parents):
        with suppress(OSError):
            status = each.stat()
            folders.append((status.st_dev, status.st_ino))
    with suppress(OSError):
        status = real.stat()
        return Place(
            written=path,
            real=real,
            folders=tuple(folders),
            identity=(status.st_dev, status.st_ino),
        )
    return Place(written=path, real=real, folders=tuple(folders))
