"""The newest part of each camera with its frame, kept only while somebody looks.

    atac-recorder ── a part, at most five a second ──▶ slot ◀── a service that shows it

A slot holds the frame itself, no copy: the recorder's thread pays for an assignment.
"""

import time
from collections.abc import Callable
from typing import Final

from agent.part import Part

_LEASE_S: Final = 5.0
"""Who has not looked for so long looks no more."""
_EVERY_S: Final = 0.2


class Live:
    """Told of each recorded part; `newest` may be called by any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until: dict[str, float] = {}
        self._kept: dict[str, tuple[float, Part]] = {}

    def offer(self, part: Part) -> None:
        """Keep `part` if somebody looks at its camera; never waits."""
        if part.camera not in self._until:
            return
        now = self._now()
        if now > self._until[part.camera]:
            self._until.pop(part.camera, None)
            self._kept.pop(part.camera, None)
        elif part.frame is not None:
            kept = self._kept.get(part.camera)
            if kept is None or now - kept[0] >= _EVERY_S:
                self._kept[part.camera] = now, part

    def newest(self, camera: str) -> Part | None:
        """The newest part kept of a camera; asking has the next ones kept."""
        self._until[camera] = self._now() + _LEASE_S
        kept = self._kept.get(camera)
        return None if kept is None else kept[1]
