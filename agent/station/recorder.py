"""The recording thread: ended parts get their thumbnail and go to the ledger.

Pictures are drawn and compressed here, so that inspection never waits for them. What has been
recorded is delivered by others; nothing in this thread waits for a receiver or a disk.
"""

import logging
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from agent.part import Part, State
from agent.record.evidence_files import local
from agent.record.rows import THUMBNAIL_MAX_BYTES
from engine.errors import ImageError
from engine.image import visible
from engine.picture import annotated, captioned, jpeg, reduced

_LOG: Final = logging.getLogger("atac_agent.line")
_ROOM: Final = 8
"""Parts that may wait here with their frames, before inspection waits for them."""
_COMMENT_BYTES: Final = 1024
"""Kept free in a thumbnail for the alarm's id."""
_SIDE: Final = 640

Observer = Callable[[Part], None]
"""Is told of each part that was recorded, in the recording thread: it must be quick."""


class Recorder:
    """A thread that records ended parts; a context manager. Leaving it records all that wait.

    Args:
        record: Hands a part and its thumbnail, if it has one, to the ledger.
        wants_thumbnail: Whether a part gets one.
        observers: Are told of each part once it has been recorded. One that raises is told no
            more, and its error becomes `fault`.
    """

    def __init__(
        self,
        record: Callable[[Part, bytes | None], object],
        *,
        wants_thumbnail: Callable[[Part], bool],
        observers: Sequence[Observer],
    ) -> None:
        self._record = record
        self._wants_thumbnail = wants_thumbnail
        self._observers = list(observers)
        self._queue: queue.Queue[Part | None] = queue.Queue(_ROOM)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atac-recorder")
        self.fault: str | None = None

    def __enter__(self) -> Self:
        self._ended = self._thread.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._put(None)
        self._thread.shutdown()
        self._ended.result()

    def put(self, part: Part) -> None:
        """Have `part` recorded; waits only while eight others are waiting."""
        self._put(part)

    def _put(self, part: Part | None) -> None:
        while not self._ended.done():
            try:
                self._queue.put(part, timeout=1.0)
                return
            except queue.Full:
                continue
        if part is not None:
            self._ended.result()  # raises what ended the thread

    def _run(self) -> None:
        while (part := self._queue.get()) is not None:
            self._record(part, _thumbnail(part) if self._wants_thumbnail(part) else None)
            for observer in tuple(self._observers):
                try:
                    observer(part)
                except Exception as error:  # noqa: BLE001 - a fault, not the end of the run
                    self._observers.remove(observer)
                    self.fault = f"an observer ended with {type(error).__name__}: {error}"
                    _LOG.exception("an observer of parts failed; it receives no more parts")


def _thumbnail(part: Part) -> bytes | None:
    if part.frame is None or part.ended.state is State.DROPPED:
        return None
    pixels, found = visible(part.frame), part.inspection
    try:
        shown = (
            reduced(pixels, _SIDE)
            if found is None
            else annotated(pixels, found, part.ended.threshold)
        )
        shown = captioned(shown, part.part_id or "no part id", *_caption(part))
        return jpeg(shown, max_bytes=THUMBNAIL_MAX_BYTES - _COMMENT_BYTES)
    except ImageError as error:
        _LOG.warning("no thumbnail for part %s: %s", part.part_id, error)
        return None


def _caption(part: Part) -> list[str]:
    """The local time, and the score of a part that has one."""
    caption = [f"{local(part.trigger.triggered_ns):%Y-%m-%d %H:%M:%S}"]
    if part.inspection is not None:
        caption.append(f"score {part.inspection.score:.3g} / {part.ended.threshold:.3g}")
    return caption
