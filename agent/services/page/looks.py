"""Which good part is most like another, and which parts show the same thing twice.

Fingerprints of kept frames (`engine/likeness.py`) are made in the background while somebody
reviews, a few a second: none is waited for.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import numpy as np

from agent.services.page.history import History, Row
from agent.services.page.pictures import Pictures
from engine.errors import ImageError
from engine.image import decode_image
from engine.likeness import Fingerprint, alike, fingerprint, likeness

_MOST: Final = 800
_CANDIDATES: Final = 400
_LEASE_S: Final = 120.0
_GOOD: Final = "label = 'good'"
_TAKEN_FOR_GOOD: Final = "label IS NULL AND state = 'OK' AND queues & 4"

Key = tuple[str, int]


class Looks:
    """Fingerprints of the parts with a frame; thread-safe."""

    def __init__(
        self, history: History, pictures: Pictures, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._history = history
        self._pictures = pictures
        self._now = now
        self._lock = threading.Lock()
        self._prints: OrderedDict[Key, Fingerprint] = OrderedDict()

        self._wanted = -_LEASE_S

    def fill(self, most: int) -> None:
        """Make up to `most` fingerprints of good parts, if somebody reviews."""
        if self._now() - self._wanted > _LEASE_S:
            return
        for row in self._good(""):
            if (
                most
                and (row.epoch, row.sequence) not in self._prints
                and self._print(row) is not None
            ):
                most -= 1

    def compared(self, row: Row) -> tuple[Row | None, list[Row]]:
        """The good part most like this one, and the parts that look the same as it.

        Only those count whose fingerprints are there.
        """
        self._wanted = self._now()
        own = self._print(row)
        if own is None:
            return None, []
        with self._lock:
            known = {
                key: one for key, one in self._prints.items() if key != (row.epoch, row.sequence)
            }
        if not known:
            return None, []
        keys, others = list(known), np.stack(list(known.values()))
        good = {(one.epoch, one.sequence) for one in self._good(row.camera)}
        order = np.argsort(-likeness(own, others))
        nearest = next((keys[index] for index in order if keys[index] in good), None)
        same = [keys[index] for index in np.flatnonzero(alike(own, others))][:5]
        found = [self._history.part(*key) for key in same]
        return (
            None if nearest is None else self._history.part(*nearest),
            [one for one in found if one is not None and one.camera == row.camera],
        )

    def _good(self, camera: str) -> list[Row]:
        """Parts that people call good, then parts of the audit that passed; the newest first."""
        return [
            *self._history.parts_where(_GOOD, camera, _CANDIDATES),
            *self._history.parts_where(_TAKEN_FOR_GOOD, camera, _CANDIDATES),
        ]

    def _print(self, row: Row) -> Fingerprint | None:
        key = row.epoch, row.sequence
        with self._lock:
            if key in self._prints:
                return self._prints[key]

        frame = self._pictures.frame(*key)
        try:
            made = None if frame is None else fingerprint(decode_image(frame, source="evidence"))
        except ImageError:
            made = None
        with self._lock:
            if made is not None:
                self._prints[key] = made
            while len(self._prints) > _MOST:
                self._prints.popitem(last=False)
        return made
