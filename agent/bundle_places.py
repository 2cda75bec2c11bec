"""Where bundles lie: the one in force at `bundle.path`, the next and the previous one beside it.

    bottle            the bundle in force, as agent.yaml names it
    bottle.next       a copy of the one to be promoted
    bottle.previous   the one before, for a rollback

Folders change places in one step of the kernel, so that there is a whole bundle at `bundle.path`
at every moment, also after a power cut.
"""

import ctypes
import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from engine.bundle import Bundle
from engine.errors import BundleError

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def next_place(path: Path) -> Path:
    """Where the bundle lies that is to be promoted."""
    return path.with_name(f"{path.name}.next")


def previous_place(path: Path) -> Path:
    """Where the bundle lies that was in force before."""
    return path.with_name(f"{path.name}.previous")


def put_next(bundle: Bundle, path: Path) -> Path:
    """Copy `bundle`, with its calibration and its pages, to where the next one lies.

    Raises `BundleError` where nothing can be written beside `path`.
    """
    place = next_place(path)
    unfinished = path.with_name(f"{path.name}.copying")
    try:
        for old in (unfinished, place):
            if old.exists():
                shutil.rmtree(old)
        unfinished.mkdir()
        for file in sorted(bundle.path.iterdir()):
            if file.is_file():
                with (unfinished / file.name).open("wb") as copy:
                    copy.write(file.read_bytes())
                    os.fsync(copy.fileno())
        unfinished.rename(place)
    except OSError as error:
        raise BundleError(str(place), f"cannot be written ({error.strerror})") from error
    return place


def put_in_force(path: Path, place: Path) -> None:
    """Exchange the bundle at `path` for that at `place`: the old one lies at `previous_place`.

    Raises `BundleError` where the disk refuses; then nothing has changed.
    """
    previous = previous_place(path)
    try:
        if place != previous and previous.exists():
            shutil.rmtree(previous)
        _exchange(path, place)
    except OSError as error:
        raise BundleError(str(path), f"cannot be exchanged ({error.strerror})") from error
    if place != previous:
        with suppress(OSError):  # it can still be promoted by hand
            place.rename(previous)


def take_back(path: Path, place: Path) -> None:
    """Undo `put_in_force`."""
    previous = previous_place(path)
    if place != previous:
        previous.rename(place)
    _exchange(path, place)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change their names in one step."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        names = os.fsencode(one), os.fsencode(other)
        if not renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
            return
        number = ctypes.get_errno()
        if number not in {errno.EINVAL, errno.ENOSYS}:
            raise OSError(number, os.strerror(number), str(one))
    # A file system that cannot: for a moment there is no bundle.
    aside = one.with_name(f"{one.name}.moving")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
