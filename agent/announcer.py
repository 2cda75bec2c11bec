"""The publishing thread: verdicts become ledger entries, alarms and health messages.

Pictures are drawn and compressed here, so that inspection never waits for them. What has been
recorded is sent by the MQTT sender; nothing in this thread waits for a broker or a disk.
"""

import logging
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from types import TracebackType
from typing import Final, Self

from agent.cameras.settings import FailSafe
from agent.ledger import Ledger
from agent.messages import THUMBNAIL_MAX_BYTES, Message, Origin, outgoing, summary
from agent.part import State
from agent.verdict import Verdict
from engine.errors import ImageError
from engine.picture import annotated, jpeg, reduced

_LOG: Final = logging.getLogger("atac_agent.line")
_ROOM: Final = 8
"""Verdicts that may wait here with their frames, before inspection waits for them."""
_COMMENT_BYTES: Final = 1024
"""Kept free in a thumbnail for the alarm's id."""
_LOOK_S: Final = 0.25
"""From one look for troubles to the next."""


class Announcer:
    """A thread that records verdicts with their messages; a context manager.

    `fail_safe` holds for the parts of each camera. `tell_health` is called in the same thread every
    `health_s` seconds, and at once when what `troubles` gives has changed; `watch` with each
    verdict once it has been handed to the ledger. Leaving the context settles all that waits.
    """

    def __init__(
        self,
        ledger: Ledger,
        origin: Origin,
        *,
        fail_safe: Mapping[str, FailSafe],
        thumbnails: bool,
        every_part: bool,
        tell_health: Callable[[], None],
        health_s: float,
        troubles: Callable[[], object],
        watch: Callable[[Verdict], None],
    ) -> None:
        self._ledger = ledger
        self._origin = origin
        self._fail_safe = fail_safe
        self._thumbnails = thumbnails
        self._every_part = every_part
        self._tell_health = tell_health
        self._health_s = health_s
        self._troubles = troubles
        self._watch = watch
        self._queue: queue.Queue[Verdict | None] = queue.Queue(_ROOM)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atac-announcer")
        self.alarms = 0

    def __enter__(self) -> Self:
        self._ended = self._thread.submit(self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._put(None)
        self._thread.shutdown()
        self._ended.result()

    def settle(self, verdict: Verdict) -> None:
        """Have `verdict` recorded and announced; waits only while eight others are waiting."""
        self._put(verdict)

    def _put(self, verdict: Verdict | None) -> None:
        while not self._ended.done():
            try:
                self._queue.put(verdict, timeout=1.0)
                return
            except queue.Full:
                continue
        if verdict is not None:
            self._ended.result()  # raises what ended the thread

    def _run(self) -> None:
        due = look_due = monotonic()
        told: object = None
        while True:
            if (now := monotonic()) >= look_due:
                look_due = now + min(_LOOK_S, self._health_s)
                troubles = self._troubles()
                if now >= due or troubles != told:
                    self._tell_health()
                    due, told = now + self._health_s, troubles
            try:
                verdict = self._queue.get(timeout=max(0.0, look_due - monotonic()))
            except queue.Empty:
                continue
            if verdict is None:
                self._tell_health()
                return
            messages = self._messages(verdict)
            self._ledger.record(verdict, messages)
            self._watch(verdict)

    def _messages(self, verdict: Verdict) -> list[Message]:
        if not _is_alarm(verdict.state, self._fail_safe[verdict.trigger.camera]):
            return [summary(self._origin, verdict)] if self._every_part else []
        self.alarms += 1
        picture = self._picture(verdict) if self._thumbnails else None
        return outgoing(self._origin, verdict, picture, every_part=self._every_part)

    def _picture(self, verdict: Verdict) -> bytes | None:
        if verdict.frame is None:
            return None
        pixels, found = verdict.frame.pixels, verdict.inspection
        try:
            if found is None:
                shown = reduced(pixels, 640)
            else:
                shown = annotated(pixels, found, verdict.threshold)
            return jpeg(shown, max_bytes=THUMBNAIL_MAX_BYTES - _COMMENT_BYTES)
        except ImageError as error:
            _LOG.warning("no thumbnail for part %s: %s", verdict.trigger.part_id, error)
            return None


def _is_alarm(state: State, fail_safe: FailSafe) -> bool:
    match state:
        case State.NG | State.ERROR:
            return True
        case State.TIMEOUT | State.NO_FRAME:
            return fail_safe == "reject"
        case State.OK | State.DROPPED:
            return False
