"""Evidence: frames of rejected and of doubtful parts as JPEG files, within three limits.

    announcer ── a part worth keeping ──▶ four places ──▶ atac-evidence: JPEG, file, the oldest out

Each file is a whole frame as it was inspected, without heat map or box, and holds the part's id as
its JPEG comment. Age, number and size of all are bounded; the oldest go first.
"""

import logging
import os
import queue
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agent.messages import Origin, with_comment
from agent.part import State
from agent.retention import AgeClock
from agent.settings import EvidenceSettings
from agent.verdict import Verdict
from engine.picture import jpeg

_LOG: Final = logging.getLogger("atac_agent.line")
_ROOM: Final = 4
"""Frames that may wait for the disk; what comes then is passed over."""
_LOOK_S: Final = 10.0
_QUALITY: Final = 95
_LARGEST_BYTES: Final = 8_000_000
_UNFINISHED: Final = ".part"


class Evidence:
    """A thread that keeps pictures; a context manager that does nothing without a folder.

    What others put into the folder is left alone and not counted. A folder that cannot be written
    is `trouble`, said once; pictures are then passed over.
    """

    def __init__(
        self, settings: EvidenceSettings, origin: Origin, ages: AgeClock | None = None
    ) -> None:
        self._settings = settings
        self._origin = origin
        self._ages = ages or AgeClock()
        self._queue: queue.Queue[Verdict | None] = queue.Queue(_ROOM)
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._trouble: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atac-evidence")
        self.passed_over = 0

    @property
    def trouble(self) -> str | None:
        """Why nothing can be kept, in one line; `None` while it can."""
        return self._trouble

    def __enter__(self) -> Self:
        if self._settings.folder is not None:
            self._ended = self._thread.submit(self._run, self._settings.folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._settings.folder is not None:
            self._queue.put(None)
            self._thread.shutdown()
            self._ended.result()
        if self.passed_over:
            _LOG.warning("%d pictures were passed over as evidence", self.passed_over)

    def offer(self, verdict: Verdict) -> None:
        """Keep the frame of `verdict` if it is worth it; never waits."""
        if self._settings.folder is None or not self._is_worth_it(verdict):
            return
        try:
            self._queue.put_nowait(verdict)
        except queue.Full:
            self.passed_over += 1

    def _is_worth_it(self, verdict: Verdict) -> bool:
        if verdict.frame is None or verdict.state is State.DROPPED:
            return False
        if verdict.state is not State.OK or verdict.inspection is None:
            return True
        margin = self._settings.near * abs(verdict.threshold)
        return verdict.inspection.score > verdict.threshold - margin

    # ---- in the thread that keeps

    def _run(self, folder: Path) -> None:
        self._look_around(folder)
        while True:
            try:
                verdict = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                self._make_room()
                continue
            if verdict is None:
                return
            try:
                self._keep(folder, verdict)
            except OSError as error:
                self.passed_over += 1
                if self._trouble is None:
                    _LOG.error("no evidence can be kept in %s: %s", folder, error.strerror)
                self._trouble = f"{folder}: {error.strerror}"
            else:
                if self._trouble is not None:
                    _LOG.warning("evidence is kept again in %s", folder)
                self._trouble = None
            self._make_room()

    def _look_around(self, folder: Path) -> None:
        """Take up what earlier runs have kept, and remove what they did not finish."""
        found = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.name.endswith(f".jpg{_UNFINISHED}"):
                        Path(entry.path).unlink()
                    elif entry.name.endswith(".jpg") and entry.name.count("_") == 2:
                        status = entry.stat()
                        found.append(
                            _Kept(time_ns=status.st_mtime_ns, path=entry.path, size=status.st_size)
                        )
        self._kept.extend(sorted(found))
        self._bytes = sum(one.size for one in found)
        self._make_room()

    def _keep(self, folder: Path, verdict: Verdict) -> None:
        assert verdict.frame is not None
        picture = jpeg(verdict.frame.pixels, max_bytes=_LARGEST_BYTES, quality=_QUALITY)
        sequence = verdict.trigger.sequence
        data = with_comment(picture, self._origin.id(sequence))
        path = folder / f"{self._origin.epoch}_{sequence:010d}_{verdict.state}.jpg"
        unfinished = path.with_name(path.name + _UNFINISHED)
        now_ns = self._ages.now_ns()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(data)
            os.utime(unfinished, ns=(now_ns, now_ns))
            unfinished.replace(path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise
        self._kept.append(_Kept(time_ns=now_ns, path=str(path), size=len(data)))
        self._bytes += len(data)

    def _make_room(self) -> None:
        limits = self._settings
        oldest_ns = self._ages.now_ns() - round(limits.keep_days * 86_400e9)
        while self._kept and (
            len(self._kept) > limits.max_files
            or self._bytes > limits.max_mb * 1_000_000
            or self._kept[0].time_ns < oldest_ns
        ):
            gone = self._kept.popleft()
            self._bytes -= gone.size
            with suppress(OSError):
                Path(gone.path).unlink()


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Kept:
    time_ns: int
    path: str
    size: int
