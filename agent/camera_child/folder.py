"""The child of a folder camera: looks for images, reads and decodes them, tidies up."""

import errno
import os
import select
import shutil
from collections.abc import Callable, Collection, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any, Final

from agent.camera_child.process import SharedPixels
from agent.camera_child.watched import Candidate, Watched, mounted_on
from agent.camera_child.wire import GoneError, Message, receive, send, why
from engine.errors import ImageError
from engine.image import decode, read_file
from engine.listing import UNREADABLE, LeftOut, find_images, in_words, shortened

_MOST: Final = 2000
"""Paths in one message."""
_SIGN_S: Final = 0.5
_TIDY_S: Final = 5.0
"""After a file could not be moved or deleted, so long none is tried."""
_FSTAB: Final = Path("/etc/fstab")


def serve(connection: Connection, memory: int, **settings: Any) -> None:
    """Answer the agent's requests until it closes the connection."""
    folder = _Folder(connection, SharedPixels(memory), **settings)
    while True:
        request = receive(connection)
        send(connection, folder.answer(request))


class _Folder:
    def __init__(
        self,
        connection: Connection,
        memory: SharedPixels,
        *,
        path: str,
        settle_s: float,
        must_be_mount: bool,
        max_pixels: int,
        bits: int | None,
        accept_damaged: bool,
        done_folder: str | None,
    ) -> None:
        self._connection = connection
        self._memory = memory
        self._path = Path(path)
        self._settle_s = settle_s
        self._must_be_mount = must_be_mount
        self._done_folder = done_folder
        self._max_pixels = max_pixels
        self._decode: Callable[[bytes, str], Any] = lambda data, source: decode(
            data,
            source=source,
            max_pixels=max_pixels,
            bits=bits,
            accept_damaged=accept_damaged,
        )
        self._watched: Watched | None = None
        self._is_mount = False
        self._untidy: str | None = None
        self._next_tidying = 0.0
        self._next_sign = 0.0

    def answer(self, request: Message) -> Message:
        """What comes of one request; `gone` is why the folder cannot be used now."""
        try:
            match request["do"]:
                case "list":
                    return self._list()
                case "look":
                    return self._said(self._opened())
                case "read":
                    return self._read(request["path"])
                case "next":
                    return self._next(request["within_s"])
                case "tidy":
                    return self._tidied(request["files"])
        except OSError as error:
            return {"gone": why(error)}
        raise AssertionError(request)

    def _list(self) -> Message:
        self._check()
        listing = find_images(self._path, self._looking)
        names = [os.path.relpath(file, self._path) for file in listing.files]
        for start in range(0, len(names), _MOST):
            send(self._connection, {"names": names[start : start + _MOST]})
        mount = {"is_mount": self._is_mount}
        return {"left_out": str(listing), "fault": _fault(listing.left_out), **mount}

    def _read(self, name: str) -> Message:
        path = self._path / name
        try:
            return self._frame(str(path))[0]
        except ImageError as error:
            self._check()
            return {"failed": str(error), "name": name}

    def _next(self, within_s: float) -> Message:
        """The next new image; nothing where none has come in time."""
        until = monotonic() + within_s
        watched = self._opened()
        while True:
            while (candidate := watched.next()) is not None:
                if (found := self._tried(watched, candidate)) is not None:
                    return found | self._said(watched)
            left = until - monotonic()
            if left <= 0:
                return self._said(watched)
            waited = min(left, watched.wait_s())
            files = [self._connection.fileno()]
            files += [] if watched.events is None else [watched.events.fileno()]
            if self._connection.fileno() in select.select(files, [], [], waited)[0]:
                return self._said(watched)  # the agent has gone, or wants something else

    def _opened(self) -> Watched:
        if self._watched is None:
            self._check()
            self._watched = Watched(
                self._path,
                settle_s=self._settle_s,
                recorded=self._recorded,
                progress=self._looking,
            )
        return self._watched

    def _tried(self, watched: Watched, candidate: Candidate) -> Message | None:
        """The image, or why it cannot be used; `None` while it may still become one."""
        path = candidate.path
        try:
            told, content, is_checked = self._frame(path, watched)
        except ImageError as error:
            send(self._connection, {"doing": "look"})
            os.stat(self._path)  # a folder that has gone says nothing of the file
            if watched.postponed(candidate):
                return None
            told, content = {"failed": str(error)}, candidate.content
        else:
            if content != candidate.content:  # it was written to while it was read
                watched.postponed(candidate)
                return None
            if not is_checked and not candidate.is_complete and watched.postponed(candidate):
                return None
        watched.settled(candidate)
        name = os.path.relpath(path, self._path)
        return told | {"name": name, "content": content}

    def _frame(self, path: str, watched: Watched | None = None) -> tuple[Message, str, bool]:
        """Lay the picture into the shared memory; tells what is done, as it may take for ever."""
        name = os.path.relpath(path, self._path)
        data, status = read_file(Path(path), max_pixels=self._max_pixels, progress=self._looking)
        content = "" if watched is None else watched.content(path, status)
        send(self._connection, {"doing": "decode", "name": name, "content": content})
        decoded = self._decode(data, path)
        del data
        self._memory.put(decoded.pixels)
        told = {"shape": decoded.pixels.shape, "note": decoded.note, "name": name}
        return told, content, decoded.is_checked

    def _looking(self) -> None:
        """A sign of life: to look at all files, or to read one, may take long."""
        if (now := monotonic()) >= self._next_sign:
            self._next_sign = now + _SIGN_S
            send(self._connection, {"doing": "look"})

    def _recorded(self, files: Sequence[tuple[str, str]]) -> set[str]:
        """Ask the agent which of these contents were inspected before."""
        known: set[str] = set()
        for start in range(0, len(files), _MOST):
            some = files[start : start + _MOST]
            asked = [(content, os.path.relpath(path, self._path)) for content, path in some]
            send(self._connection, {"recorded?": asked})
            known.update(some[index][0] for index in receive(self._connection)["recorded"])
        return known

    def _said(self, watched: Watched) -> Message:
        left_out = watched.left_out
        told = {"left_out": in_words(left_out), "fault": _fault(left_out), "untidy": self._untidy}
        return told | {"is_mount": self._is_mount}

    def _check(self) -> None:
        """Raises `OSError`, whose text says why there can be no parts."""
        path = self._path
        os.stat(path)
        if not path.is_dir():
            raise GoneError("is not a folder")
        # Something of the same disk may be mounted, too, which its device does not tell.
        self._is_mount = mounted_on(path)[0] == os.path.realpath(path)
        if not self._is_mount:
            if self._must_be_mount:
                raise GoneError("has nothing mounted on it")
            if (point := _unmounted(path)) is not None:
                raise GoneError(
                    f"lies on {point}, where /etc/fstab mounts something, but nothing is mounted"
                )
        if not os.access(path, os.R_OK | os.X_OK):
            raise GoneError("cannot be read: Permission denied for this user")

    def _tidied(self, files: Sequence[tuple[str, str]]) -> Message:
        """Move or delete files whose parts are recorded; tells which are done with.

        Where one cannot be, the others wait: inspection has more use of the time.
        """
        done: list[str] = []
        if monotonic() >= self._next_tidying:
            self._untidy = None
            for name, content in files:
                self._looking()
                if (reason := self._tidy(self._path / name, content)) is not None:
                    self._untidy, self._next_tidying = reason, monotonic() + _TIDY_S
                    break
                done.append(content)
        return {"done": done, "untidy": self._untidy}

    def _tidy(self, path: Path, content: str) -> str | None:
        """Move or delete a file, if it still is that file; says why it cannot."""
        try:
            if self._watched is None or self._watched.content(str(path), path.stat()) != content:
                return None
        except FileNotFoundError:
            return None
        try:
            if self._done_folder is None:
                path.unlink()
            else:
                _move(path, Path(self._done_folder) / path.relative_to(self._path))
        except OSError as error:
            os.stat(self._path)  # a folder that has gone says nothing of the file
            to = "deleted" if self._done_folder is None else f"moved to {self._done_folder}"
            return f"files that are done with cannot be {to} ({error.strerror or error})"
        return None


def _move(path: Path, target: Path) -> None:
    """Move a file, also to another file system; whole, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target = target.with_stem(f"{target.stem}-{path.stat().st_mtime_ns}")
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        unfinished = target.with_name(f".{target.name}")
        try:
            shutil.copy2(path, unfinished)
            unfinished.replace(target)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        path.unlink()


def _fault(left_out: Collection[LeftOut]) -> str | None:
    found = next((each for each in left_out if each.reason == UNREADABLE), None)
    if found is None:
        return None
    return f"{found.count} folders {found.reason} (first: {shortened(found.first)})"


def _unmounted(path: Path) -> str | None:
    """The mount point of /etc/fstab that `path` is or lies below, where nothing is mounted."""
    try:
        lines = _FSTAB.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    points = [line.split()[1] for line in lines if len(line.split()) > 1 and line[0] != "#"]
    wanted = [
        point
        for point in points
        if point.startswith("/") and point != "/" and os.path.commonpath([point, real]) == point
    ]
    longest = max(wanted, key=len, default=None)
    is_there = longest is None or len(mounted_on(path)[0]) >= len(longest)
    return None if is_there else longest
