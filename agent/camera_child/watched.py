"""Which images of a folder are new: events where the system gives them, looks where it does not.

A file is known by its content, not by its path: by inode, size and time. Each new content is
offered once it is complete. On file systems whose inodes do not last, the path stands in for them.
"""

import heapq
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from inotify_simple import INotify, flags

from agent.camera_child.wire import GoneError
from engine.listing import UNREADABLE, Counts, LeftOut, entries, is_searched, reason_by_name

_LASTING: Final = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nfs", "nfs4", "overlay"}
    | {"ramfs", "tmpfs", "xfs", "zfs"}
)
"""File systems on which a file keeps its inode."""
_QUIET_S: Final = 0.2
"""A file that has not changed for so long may be complete."""
_WRITING_S: Final = 60.0
"""A file that somebody has opened to write to is waited for so long after its last change."""
_LOOK_S: Final = 0.2
_SEARCH_S: Final = 2.0
_DAY_S: Final = 86_400.0
_LOOK_SHARE: Final = 200
"""Looks take at most this share of a CPU: one second in 200."""
_MOUNTS: Final = "/proc/self/mountinfo"
_WANTED: Final = (
    flags.CLOSE_WRITE
    | flags.CREATE
    | flags.MODIFY
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)


def mounted_on(folder: Path) -> tuple[str, str]:
    """The mount point that `folder` is below, or is, and the type of the file system there."""
    path, found = os.path.realpath(folder), ("/", "")
    try:
        lines = Path(_MOUNTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return found
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        if os.path.commonpath([point, path]) == point and len(point) >= len(found[0]):
            found = point, right.split()[0]
    return found


def _place(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


@dataclass(slots=True)
class _Folder:
    """A folder that is watched: what it holds, and when that last changed."""

    changed_ns: int
    known: dict[str, str | None]
    """The contents that were offered or need not be, by name; `None` for what is left out."""
    has_told: bool = False
    """Whether the system has told of its changes since the last look."""


@dataclass(slots=True)
class Candidate:
    """A new content at `path`, which is offered when `due`; `complete` where that is known."""

    path: str
    content: str
    changed: float
    due: float
    is_complete: bool
    order: int


class Watched:
    """The images below `root` that are new.

    Args:
        root: The folder.
        settle_s: A file that cannot be used is waited for until it has not changed for so long.
        recorded: Of contents with their files' paths, those contents that were inspected before.
        progress: Called for each file that is looked at.
        clock: Steady seconds.
    """

    def __init__(
        self,
        root: Path,
        *,
        settle_s: float,
        recorded: Callable[[Sequence[tuple[str, str]]], Collection[str]],
        progress: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = str(root)
        self._settle_s = settle_s
        self._recorded = recorded
        self._progress = progress
        self._clock = clock
        self._mounted = mounted_on(root)
        self._has_lasting_inodes = self._mounted[1] in _LASTING
        self._place = _place(self._root)
        self._folders: dict[str, _Folder] = {}
        self._by_watch: dict[int, str] = {}
        self._candidates: dict[str, Candidate] = {}
        self._written: set[str] = set()  # files that somebody has opened to write to
        self._queue: list[tuple[float, int, str]] = []
        self._orders = count()
        self._next_look = self._next_search = 0.0
        self._next_keeping = clock() + _DAY_S
        self.left_out: tuple[LeftOut, ...] = ()
        try:
            self.events: INotify | None = INotify(nonblocking=True)
        except OSError:  # the system has no more of them: looks are enough
            self.events = None
        self.search()

    def close(self) -> None:
        """Watch no more."""
        if self.events is not None:
            self.events.close()

    def content(self, path: str, status: os.stat_result) -> str:
        """What identifies the content of a file."""
        where = status.st_ino if self._has_lasting_inodes else os.path.abspath(path)
        return f"{where}:{status.st_size}:{status.st_mtime_ns}"

    def wait_s(self) -> float:
        """After how long `next` may know more, if no event comes."""
        due = self._queue[0][0] if self._queue else self._next_look
        return max(0.0, min(due, self._next_look) - self._clock())

    def next(self) -> Candidate | None:
        """The next content to be tried, if there is one now; `OSError` when the folder has gone.

        It is tried until it is `settled` or `postponed`.
        """
        self._hear()
        if self._clock() >= self._next_look:
            self._look()
        while self._queue and self._queue[0][0] <= self._clock():
            _, order, path = heapq.heappop(self._queue)
            candidate = self._candidates.get(path)
            if candidate is None or candidate.order != order:
                continue
            try:
                content = self.content(path, os.stat(path))
            except OSError:  # renamed or removed meanwhile
                del self._candidates[path]
                continue
            if content != candidate.content:
                self._note(path, content, is_complete=False)
            elif self._recorded([(content, path)]):
                self.settled(candidate)
            else:
                return candidate
        return None

    def settled(self, candidate: Candidate) -> None:
        """This content was used, or never will be."""
        self._candidates.pop(candidate.path, None)
        folder, name = os.path.split(candidate.path)
        if folder in self._folders:
            self._folders[folder].known[name] = candidate.content

    def postponed(self, candidate: Candidate) -> bool:
        """Wait for the rest of this file; `False` when that has been waited for long enough."""
        candidate.is_complete = False
        is_written = candidate.path in self._written
        patience = max(self._settle_s, _WRITING_S) if is_written else self._settle_s
        if self._clock() >= candidate.changed + patience:
            return False
        self._enqueue(candidate, candidate.changed + patience)
        return True

    def search(self) -> None:
        """Look at every file."""
        began = time.thread_time()
        before, self._folders = self._folders, {}
        self.left_out = self._explore(self._root, before)
        for path in [path for path in self._by_watch.values() if path not in self._folders]:
            self._forget(path)
        for path in [path for path in self._candidates if not os.path.lexists(path)]:
            del self._candidates[path]
        self._written = {path for path in self._written if os.path.lexists(path)}
        if self._clock() >= self._next_keeping:
            self._keep()
        spent = time.thread_time() - began
        self._next_search = self._clock() + max(_SEARCH_S, _LOOK_SHARE * spent)
        self._next_look = self._clock() + _LOOK_S

    def _keep(self) -> None:
        """Ask about all that is there, so that the ledger does not forget it."""
        self._next_keeping = self._clock() + _DAY_S
        for path, folder in self._folders.items():
            known = [
                (each, os.path.join(path, name)) for name, each in folder.known.items() if each
            ]
            if known:
                self._recorded(known)

    def _explore(self, start: str, before: dict[str, _Folder]) -> tuple[LeftOut, ...]:
        """Look at every file from `start` on down; `before` is what was known of the folders."""
        counts = Counts()
        found: list[tuple[str, str, float]] = []
        waiting = [start]
        while waiting:
            current = waiting.pop()
            try:
                waiting += self._look_into(current, before.get(current), counts, found)
            except FileNotFoundError:
                if current == self._root:
                    raise
            except OSError as error:
                if current == self._root:
                    raise
                counts.add(UNREADABLE, f"{self._relative(current)}: {error.strerror}")
        self._admit(sorted(found))
        return counts.left_out

    def _look_into(
        self,
        path: str,
        before: _Folder | None,
        counts: Counts,
        found: list[tuple[str, str, float]],
    ) -> list[str]:
        """Look at the files of one folder; gives the folders in it."""
        # Watched before it is read, so that nothing falls between the two.
        self._watch(path)
        folder = _Folder(os.stat(path).st_mtime_ns, {})
        folders = []
        for entry in entries(path):
            self._progress()
            name = os.path.basename(entry.path)
            if entry.reason is not None:
                counts.add(entry.reason, self._relative(entry.path))
                folder.known[name] = None
                continue
            if entry.is_folder:
                folders.append(entry.path)
                folder.known[name] = None
                continue
            try:
                status = os.stat(entry.path)
            except OSError:  # renamed or removed meanwhile
                continue
            content = self.content(entry.path, status)
            if before is not None and before.known.get(name) == content:
                folder.known[name] = content
            else:
                found.append((entry.path, content, status.st_mtime))
        self._folders[path] = folder
        return folders

    def _watch(self, path: str) -> None:
        if self.events is not None:
            with suppress(OSError):  # no more watches: looks find what is new
                self._by_watch[self.events.add_watch(path, _WANTED)] = path

    def _forget(self, path: str) -> None:
        """A folder is no longer there."""
        self._folders.pop(path, None)
        for watch in [watch for watch, at in self._by_watch.items() if at == path]:
            del self._by_watch[watch]
            if self.events is not None:
                with suppress(OSError):  # it went with its folder
                    self.events.rm_watch(watch)

    def _hear(self) -> None:
        """Note what the system tells of."""
        if self.events is None:
            return
        for event in self.events.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                self._next_search = self._next_look = 0.0
                continue
            folder = self._by_watch.get(event.wd)
            if folder is None or folder not in self._folders:
                continue
            if event.mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED):
                self._next_look = 0.0
                continue
            self._folders[folder].has_told = True
            path = os.path.join(folder, event.name)
            if event.mask & flags.MODIFY:
                self._written.add(path)
            elif event.mask & (flags.MOVED_FROM | flags.DELETE):
                self._written.discard(path)
                self._folders[folder].known.pop(event.name, None)
                self._candidates.pop(path, None)
                for below in self._below(path) if event.mask & flags.ISDIR else ():
                    self._forget(below)
            elif event.mask & flags.ISDIR:
                self._arrived(path)
            else:
                is_complete = bool(event.mask & (flags.CLOSE_WRITE | flags.MOVED_TO))
                (self._written.discard if is_complete else self._written.add)(path)
                self._found(path, is_complete=is_complete)

    def _below(self, path: str) -> list[str]:
        return [each for each in self._folders if each == path or each.startswith(path + "/")]

    def _arrived(self, path: str) -> None:
        """A new folder: it may hold files already, of which no event told."""
        folder, name = os.path.split(path)
        if is_searched(name) and os.path.isdir(path) and not os.path.islink(path):
            self._explore(path, {})
        self._folders[folder].known[name] = None

    def _found(self, path: str, *, is_complete: bool) -> None:
        folder, name = os.path.split(path)
        if reason_by_name(name) is not None:
            self._folders[folder].known[name] = None
            return
        try:
            status = os.stat(path)
        except OSError:  # renamed or removed meanwhile
            return
        content = self.content(path, status)
        if not stat.S_ISREG(status.st_mode) or self._folders[folder].known.get(name) == content:
            return
        self._note(path, content, is_complete=is_complete)

    def _admit(self, found: Iterable[tuple[str, str, float]]) -> None:
        """New contents from a search, in the order of their paths."""
        new = [each for each in found if not self._is_candidate(each[0], each[1])]
        recorded = (
            set(self._recorded([(content, path) for path, content, _ in new])) if new else set()
        )
        for path, content, changed in new:
            folder, name = os.path.split(path)
            if content in recorded:
                self._folders[folder].known[name] = content
            else:
                self._note(path, content, is_complete=time.time() - changed > self._settle_s)

    def _is_candidate(self, path: str, content: str) -> bool:
        candidate = self._candidates.get(path)
        return candidate is not None and candidate.content == content

    def _note(self, path: str, content: str, *, is_complete: bool) -> None:
        now = self._clock()
        before = self._candidates.get(path)
        changed = before.changed if before is not None and before.content == content else now
        candidate = Candidate(path, content, changed, now, is_complete, 0)
        self._candidates[path] = candidate
        # Tried at once; when it changes, only once it has stopped.
        self._enqueue(candidate, now if is_complete or before is None else now + _QUIET_S)

    def _enqueue(self, candidate: Candidate, due: float) -> None:
        candidate.due, candidate.order = due, next(self._orders)
        heapq.heappush(self._queue, (due, candidate.order, candidate.path))

    def _look(self) -> None:
        """Whether the folder is there, and which folders have changed without an event."""
        began = time.thread_time()
        if (place := _place(self._root)) != self._place:
            if place[0] != self._place[0] or mounted_on(Path(self._root)) != self._mounted:
                raise GoneError("has another file system mounted on it, or none any more")
            self._place = place
        if self._clock() >= self._next_search:
            self.search()
            return
        for path, folder in tuple(self._folders.items()):
            has_told, folder.has_told = folder.has_told, False
            try:
                changed_ns = os.stat(path).st_mtime_ns
                if changed_ns != folder.changed_ns and not has_told:
                    self._compare(path, folder)
                folder.changed_ns = changed_ns
            except OSError:
                self._next_search = 0.0
        spent = time.thread_time() - began
        self._next_look = self._clock() + max(_LOOK_S, _LOOK_SHARE * spent)

    def _compare(self, path: str, folder: _Folder) -> None:
        """Find names that are new in a folder of which the system tells nothing."""
        names = set(os.listdir(path))
        for gone in folder.known.keys() - names:
            del folder.known[gone]
        for name in sorted(names - folder.known.keys()):
            new = os.path.join(path, name)
            if os.path.isdir(new):
                self._arrived(new)
            else:
                self._found(new, is_complete=False)

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._root)
