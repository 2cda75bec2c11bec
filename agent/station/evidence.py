"""Evidence: frames of rejected and of doubtful parts as JPEG files, within three limits.

    recorder ── a part worth keeping ──▶ four places ──▶ atac-evidence: index, JPEG, the oldest out

Each file is a whole frame as it was inspected, without heat map or box, and holds the part's id as
its JPEG comment; `agent/record/evidence_files.py` says where it lies. Age, number and size of all
are bounded; the oldest go first. What may go is what the index names. Nothing else there is ever
touched.
"""

import errno
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from agent.busy import Busy
from agent.part import Part, State
from agent.record.evidence_files import EvidenceIndex, Filed, file_name, index_path
from agent.record.retention import AgeClock
from agent.settings import EvidenceSettings
from engine.bundle import replace_file
from engine.errors import ImageError
from engine.image import visible
from engine.picture import jpeg, with_comment

_LOG: Final = logging.getLogger("atac_agent.line")
_ROOM: Final = 4
"""Frames that may wait for the disk; what comes then is not kept."""
_LOOK_S: Final = 10.0
_HELD_UP_S: Final = 10.0
"""After so long without an answer of the disk there is a fault, and nobody waits for it."""
_COMMIT_S: Final = 2.0
"""How long to wait for the ledger to hold a part."""
_QUALITY: Final = 95
_LARGEST_BYTES: Final = 8_000_000
_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750
_UNFINISHED: Final = ".part"
_TIDY: Final = 1000
"""After this many lines of files that are gone, the index is written again."""


class Evidence:
    """A thread that keeps pictures; a context manager that does nothing without a folder.

    A folder that cannot be written is a `fault`, said once; pictures are then not kept. So is
    anything else that goes wrong with a picture; the thread continues with the next one.

    Args:
        settings: The folder and its limits.
        agent_id: Names the index, so that two agents may share a folder.
        epoch: The ledger's; with the sequence it names each file.
        ages: The clock by which files become old.
        may_leave: Whether a sequence is safe to be known outside the process, waited for.
    """

    def __init__(
        self,
        settings: EvidenceSettings,
        agent_id: str,
        epoch: str,
        ages: AgeClock | None = None,
        may_leave: Callable[[int, float], bool] = lambda _sequence, _timeout_s: True,
    ) -> None:
        self._may_leave = may_leave
        self._settings = settings
        self._agent_id = agent_id
        self._epoch = epoch
        self._ages = ages or AgeClock()
        self._queue: queue.Queue[Part | None] = queue.Queue(_ROOM)
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._gone = 0
        self._fault: str | None = None
        self._busy = Busy(_HELD_UP_S)
        self._thread: threading.Thread | None = None
        self.not_kept = 0

    @property
    def fault(self) -> str | None:
        """Why nothing can be kept, in one line; `None` while it can."""
        if self._busy.is_late:
            return f"{self._settings.folder}: does not answer"
        return self._fault

    def __enter__(self) -> Self:
        if (folder := self._settings.folder) is not None:
            # A daemon, as nothing can interrupt a disk that hangs.
            self._thread = threading.Thread(
                target=self._run, args=(folder,), name="atac-evidence", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            while self._thread.is_alive():
                with suppress(queue.Full):
                    self._queue.put(None, timeout=0.2)
                    break
                if self._busy.is_late:
                    break
            while self._thread.is_alive() and not self._busy.is_late:
                self._thread.join(0.2)
        if self.not_kept:
            pictures = "1 picture was" if self.not_kept == 1 else f"{self.not_kept} pictures were"
            _LOG.warning("%s not kept as evidence", pictures)

    def offer(self, part: Part) -> None:
        """Keep the frame of `part` if it is worth it; never waits."""
        if self._settings.folder is None or not self._is_worth_it(part):
            return
        try:
            self._queue.put_nowait(part)
        except queue.Full:
            self.not_kept += 1

    def _is_worth_it(self, part: Part) -> bool:
        verdict, found = part.ended, part.inspection
        if part.frame is None or verdict.state is State.DROPPED:
            return False
        if verdict.state is not State.OK or found is None or part.audit is not None:
            return True
        return found.score > verdict.threshold - self._settings.near * abs(verdict.threshold)

    # ---- in the thread that keeps

    def _run(self, folder: Path) -> None:
        try:
            with self._busy:
                self._take_up(folder)
            while True:
                part, is_over = None, False
                with suppress(queue.Empty):
                    part = self._queue.get(timeout=_LOOK_S)
                    is_over = part is None
                if is_over:
                    return
                with self._busy:
                    if part is not None:
                        self._try_to_keep(folder, part)
                    self._make_room(folder)
        except Exception as error:  # noqa: BLE001 - a fault, not the end of the run
            _LOG.exception("the thread that keeps evidence has ended")
            self._fault = f"its thread has ended: {type(error).__name__}: {error}"

    def _try_to_keep(self, folder: Path, part: Part) -> None:
        try:
            self._keep(folder, part)
        except OSError as error:
            self._fail(f"{folder}: {error.strerror}")
        except ImageError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - the next picture may be kept
            _LOG.exception("a picture of part %s cannot be kept", part.part_id)
            self._fail(f"{type(error).__name__}: {error}")
        else:
            if self._fault is not None:
                _LOG.warning("evidence is kept again in %s", folder)
            self._fault = None

    def _fail(self, fault: str) -> None:
        self.not_kept += 1
        if self._fault is None:
            _LOG.error("no evidence can be kept: %s", fault)
        self._fault = fault

    def _take_up(self, folder: Path) -> None:
        """Take up what earlier runs have kept, and remove what they did not finish."""
        filed = EvidenceIndex(folder, self._agent_id).files()
        for one in filed:
            path = folder / one.name
            with suppress(OSError):
                path.with_name(path.name + _UNFINISHED).unlink()
            with suppress(OSError):
                status = path.stat()
                self._kept.append(_Kept(time_ns=status.st_mtime_ns, filed=one, size=status.st_size))
        self._kept = deque(sorted(self._kept, key=lambda one: one.time_ns))
        self._bytes = sum(one.size for one in self._kept)
        self._gone = len(filed) - len(self._kept)
        self._make_room(folder)

    def _keep(self, folder: Path, part: Part) -> None:
        assert part.frame is not None
        sequence = part.trigger.sequence
        if not self._may_leave(sequence, _COMMIT_S):
            # Another part could get the number after a crash.
            raise OSError(errno.EIO, "the ledger cannot be written")
        picture = jpeg(visible(part.frame), max_bytes=_LARGEST_BYTES, quality=_QUALITY)
        data = with_comment(picture, f"{self._agent_id}:{self._epoch}:{sequence}")
        name, now_ns = file_name(part), self._ages.now_ns()
        if (folder / name).exists():
            name = file_name(part, is_taken=True)
        filed = Filed(epoch=self._epoch, sequence=sequence, name=name)
        path = folder / name
        unfinished = path.with_name(path.name + _UNFINISHED)
        folder.mkdir(parents=True, exist_ok=True)
        _make_folders(folder, path.parent)
        index = index_path(folder, self._agent_id)
        # Nothing is written through a link, and no pipe is waited for.
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(index, how | os.O_CLOEXEC, _MODE), "a", encoding="utf-8") as file:
            file.write(filed.line)
        try:
            unfinished.unlink(missing_ok=True)
            unfinished.touch(_MODE, exist_ok=False)
            unfinished.write_bytes(data)
            os.utime(unfinished, ns=(now_ns, now_ns))
            unfinished.replace(path)
        except OSError:
            self._gone += 1
            with suppress(OSError):
                unfinished.unlink()
            raise
        self._kept.append(_Kept(time_ns=now_ns, filed=filed, size=len(data)))
        self._bytes += len(data)

    def _make_room(self, folder: Path) -> None:
        limits = self._settings
        oldest_ns = self._ages.now_ns() - round(limits.keep_days * 86_400e9)
        while self._kept and (
            len(self._kept) > limits.max_files
            or self._bytes > limits.max_mb * 1_000_000
            or self._kept[0].time_ns < oldest_ns
        ):
            old = self._kept.popleft()
            self._bytes -= old.size
            self._gone += 1
            path = folder / old.filed.name
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()  # the last of its camera, and of its day
                path.parent.parent.rmdir()
        if self._gone >= _TIDY:
            with suppress(OSError):
                replace_file(
                    index_path(folder, self._agent_id),
                    "".join(one.filed.line for one in self._kept).encode(),
                )
                self._gone = 0


def _make_folders(folder: Path, inner: Path) -> None:
    """Make the folders of a day and of a camera; a link in their place is refused."""
    for made in (inner.parent, inner):
        if made.is_symlink():
            raise OSError(errno.ELOOP, f"{made.relative_to(folder)} is a link")
        made.mkdir(_FOLDER_MODE, exist_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    time_ns: int
    filed: Filed
    size: int
