"""Which part id belongs to which part, where ids come from a source of their own.

    readings ─┐
    parts ────┴▶ Naming ─▶ the reading of a part

A part fits a reading when it begins within the `Window` after it; the window of a reader that looks
at parts after they have begun lies below 0. A reading is given to a part only if no other fits, of
either kind: a code that could not be read costs one part its id, and shifts no other.
"""

from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from agent.ports import Announcement
from agent.triggers.reconcile import GRACE_S, Window

P = TypeVar("P")
_ROOM: Final = 1000


@dataclass(slots=True)
class Naming(Generic[P]):
    """A pure state machine; calls come in the order of their times.

    `fault` is what is wrong between readings and parts, in one line. `unclaimed` counts the
    readings that belong to no part.
    """

    window: Window
    fault: str | None = None
    unclaimed: int = 0
    _readings: list[Announcement] = field(default_factory=list)
    _parts: list[tuple[float, P]] = field(default_factory=list)
    _last: Announcement | None = None

    def began(self, part: P, at: float) -> Announcement | None:
        """A part without an id began; its reading, where that is here already."""
        self.passed(at)
        fitting = [one for one in self._readings if self._fits(one, at)]
        for one in fitting:
            self._readings.remove(one)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            self.unclaimed += len(fitting)
            self.fault = f"{len(fitting)} part ids fit one part: make the window narrower"
        elif len(self._parts) < _ROOM:
            self._parts.append((at, part))
        return None

    def read(self, reading: Announcement) -> P | None:
        """An id was read; its part, where that has begun already."""
        self.passed(reading.at)
        if self._is_repeated(reading):
            return None
        self._last = reading
        fitting = [one for one in self._parts if self._fits(reading, one[0])]
        for one in fitting:
            self._parts.remove(one)
        if len(fitting) == 1:
            return fitting[0][1]
        if fitting:
            self.unclaimed += 1
            self.fault = f"{len(fitting)} parts fit one part id: make the window narrower"
        elif len(self._readings) < _ROOM:
            self._readings.append(reading)
        return None

    def passed(self, now: float) -> None:
        """Time has passed: what belongs together would have been told by now."""
        lost = [one for one in self._readings if now > one.at + self.window.max_s + GRACE_S]
        if lost:
            self._readings = [one for one in self._readings if one not in lost]
            self.unclaimed += len(lost)
            self.fault = f"a part id belongs to no part: {lost[-1].part_id!r}"
        latest_s = max(0.0, -self.window.min_s) + GRACE_S
        self._parts = [one for one in self._parts if now <= one[0] + latest_s]

    @property
    def due(self) -> float | None:
        """When `passed` has to be called next; `None` while no reading waits."""
        times = [one.at + self.window.max_s + GRACE_S for one in self._readings]
        return min(times, default=None)

    def _fits(self, reading: Announcement, at: float) -> bool:
        return self.window.min_s <= at - reading.at <= self.window.max_s

    def _is_repeated(self, reading: Announcement) -> bool:
        """Whether a reader has read the same code once more, as many do while it is in view."""
        last = self._last
        if last is None or reading.part_id is None or reading.part_id != last.part_id:
            return False
        return reading.at - last.at <= self.window.max_s - self.window.min_s
