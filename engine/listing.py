"""Which files below a folder are images of parts, and what is left out and why.

Folders hold what other programs leave there: hidden files, previews, recycle bins. Nothing of it is
a part. What is left out is counted, so that nobody has to guess why a number is smaller.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUFFIXES: Final = frozenset(
    {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_OTHER_IMAGES: Final = frozenset(
    {".arw", ".avif", ".bayer", ".bpg", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".fits"}
    | {".gif", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpx", ".jxl"}
    | {".nef", ".pcx", ".pfm", ".pnm", ".psd", ".raw", ".svg", ".tga", ".wmf"}
)
FOREIGN: Final = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$extend",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@synoresource",
        "@tmp",
        "__macosx",
        "_gsdata_",
        "dfsrprivate",
        "found.000",
        "lost+found",
        "lost.dir",
        "network trash folder",
        "recycled",
        "recycler",
        "system volume information",
        "temporary items",
        "thevolumesettingsfolder",
        "~snapshot",
    }
)
"""Folders that other systems make in shared folders, in lower case."""

_SHOWN: Final = 120
HIDDEN: Final = "hidden"
OF_OTHERS: Final = "made by another program"
OTHER_FORMATS: Final = "images of a format that is not read"
OTHER_NAMES: Final = "without the name of an image that can be read"
LINKS: Final = "links to folders"
NO_FILES: Final = "neither files nor folders"
UNREADABLE: Final = "that cannot be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """How many files or folders were left out for one `reason`, and the path of the `first`."""

    reason: str
    count: int
    first: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The image files below a folder, in one order on every file system, and what was left out."""

    files: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def unreadable(self) -> LeftOut | None:
        """The folders that cannot be read: nobody knows how many images are in them."""
        return next((each for each in self.left_out if each.reason == UNREADABLE), None)

    def __str__(self) -> str:
        """What was left out, in one line; empty when nothing was."""
        return in_words(self.left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a folder: an image, a folder to look into, or left out for `reason`."""

    path: str
    is_folder: bool = False
    reason: str | None = None


def entries(folder: str) -> Iterator[Entry]:
    """What is in `folder` itself; raises `OSError` where it cannot be read or entered."""
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", folder)
    with os.scandir(folder) as found:
        for entry in found:
            yield _entry(entry)


def reason_by_name(name: str) -> str | None:
    """Why a file of this name is no image of a part; `None` when it may be one."""
    if name.startswith((".", "~$")):
        return HIDDEN
    suffix = os.path.splitext(name)[1].lower()
    if suffix in SUFFIXES:
        return None
    return OTHER_FORMATS if suffix in _OTHER_IMAGES else OTHER_NAMES


def is_searched(name: str) -> bool:
    """Whether a folder of this name may hold images of parts."""
    return not name.startswith(".") and name.lower() not in FOREIGN


def is_part_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder that may hold images of parts."""
    found = _entry(entry)
    return found.is_folder and found.reason is None


def find_images(folder: Path, progress: Callable[[], None] = lambda: None) -> Listing:
    """All image files below `folder`; raises `OSError` where the folder itself cannot be read.

    `progress` is called for each entry, as there may be many behind a slow network.
    """
    paths: list[str] = []
    counts = Counts()
    waiting = [str(folder)]
    while waiting:
        current = waiting.pop()
        try:
            for entry in entries(current):
                progress()
                if entry.reason is not None:
                    counts.add(entry.reason, os.path.relpath(entry.path, folder))
                elif entry.is_folder:
                    waiting.append(entry.path)
                else:
                    paths.append(entry.path)
        except OSError as error:
            if current == str(folder):
                raise
            counts.add(UNREADABLE, f"{os.path.relpath(current, folder)}: {error.strerror}")
    return Listing(files=tuple(sorted(map(Path, paths))), left_out=counts.left_out)


class Counts:
    """Counts what is left out, by reason."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, path: str) -> None:
        """One more; the first in the order of names is kept."""
        count, first = self._found.get(reason, (0, path))
        self._found[reason] = count + 1, min(first, path)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What has been counted."""
        return tuple(
            LeftOut(reason=reason, count=count, first=first)
            for reason, (count, first) in sorted(self._found.items())
        )


def in_words(left_out: Iterable[LeftOut]) -> str:
    """`left out: 2 hidden (first: .a.jpg), 1 links to folders (first: old)`; else empty."""
    said = [f"{each.count} {each.reason} (first: {shortened(each.first)})" for each in left_out]
    return f"left out: {', '.join(said)}" if said else ""


def shortened(path: str) -> str:
    """A path as one line has room for it."""
    return path if len(path) <= _SHOWN else f"…{path[-_SHOWN:]}"


def _entry(entry: os.DirEntry[str]) -> Entry:
    name = entry.name
    try:
        is_folder, is_link = entry.is_dir(), entry.is_symlink()
        is_file = not is_folder and entry.is_file()
    except OSError as error:
        is_loop = error.errno == errno.ELOOP
        return Entry(path=entry.path, reason=NO_FILES if is_loop else UNREADABLE)
    if reason_by_name(name) == HIDDEN:
        return Entry(path=entry.path, reason=HIDDEN)
    if is_folder and not is_searched(name):
        return Entry(path=entry.path, reason=OF_OTHERS)
    if is_folder and is_link:
        return Entry(path=entry.path, reason=LINKS)
    if is_folder:
        return Entry(path=entry.path, is_folder=True)
    if (reason := reason_by_name(name)) is not None:
        return Entry(path=entry.path, reason=reason)
    return Entry(path=entry.path, reason=None if is_file else NO_FILES)
