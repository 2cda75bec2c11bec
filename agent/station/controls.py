"""What may change while the line runs: the bundle in force, its threshold, and the pause.

A part is inspected and decided by one bundle and by this bundle's threshold, whatever changes
meanwhile: `held` gives both at once, and `replace` waits until no part needs the old ones.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.station.threshold import Threshold
from engine.inspector import Inspector

if TYPE_CHECKING:
    from agent.station.station import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What inspects one part, and the threshold that decides it."""

    inspector: Inspector
    model: "Model"
    threshold: float


class Controls:
    """The bundle in force, the threshold, and `paused`: while it is set no part is inspected.

    `begin` comes before everything else.
    """

    def __init__(self, *, threshold: Threshold, paused: threading.Event | None = None) -> None:
        self.threshold = threshold
        self.paused = paused or threading.Event()
        self._changed = threading.Condition()
        self._held: Counter[int] = Counter()
        self._serial = 0
        self._inspector: Inspector
        self._model: Model

    def begin(self, inspector: Inspector, model: "Model") -> None:
        """What inspects from the first part on."""
        self._inspector, self._model = inspector, model

    @property
    def model(self) -> "Model":
        """What inspects the next part."""
        return self._model

    @contextmanager
    def held(self) -> Iterator[InForce]:
        """What inspects the part of this moment; it is there until the end of the context."""
        with self._changed:
            serial = self._serial
            self._held[serial] += 1
            in_force = InForce(
                inspector=self._inspector, model=self._model, threshold=self.threshold.value
            )
        try:
            yield in_force
        finally:
            with self._changed:
                self._held[serial] -= 1
                self._changed.notify_all()

    def replace(
        self, inspector: Inspector, model: "Model", changed: float | None, *, within_s: float
    ) -> Inspector:
        """Inspect the next part with another bundle.

        Returns the old inspector when no part needs it.

        Args:
            inspector: The new one, ready.
            model: What it is.
            changed: What its threshold was changed to by a request, if it was.
            within_s: How long to wait for parts that the old one inspects.
        """
        with self._changed:
            old, replaced = self._serial, self._inspector
            self._inspector, self._model = inspector, model
            self.threshold.take(
                calibrated=model.threshold,
                calibration_id=model.calibration_id,
                scores=model.scores,
                changed=changed,
            )
            self._serial += 1
            self._changed.wait_for(lambda: not self._held[old], within_s)
            return replaced
