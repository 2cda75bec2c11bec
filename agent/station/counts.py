"""Whether trigger source, camera and agent have counted the same parts, shift by shift.

    trigger source  count of the source ─┐
    camera          its trigger counter ─┼─▶ differences ─▶ health, for the shift that follows
    agent           number of the part ──┘

A count that falls was restarted, and begins again from there. A difference means that parts have
passed that nobody inspected, or that the camera was triggered without a part.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from agent.cameras.settings import LineSettings
from agent.part import Part
from agent.shifts import shift_began_ns

_LOG: Final = logging.getLogger("atac_agent.trigger")
_WRAP: Final = 65_536
_LARGEST_STEP: Final = 10_000
"""A count that leaps further has been restarted."""
_NAMES: Final = {"source": "the trigger source", "camera": "the camera"}


@dataclass(slots=True)
class _Count:
    """How much further than our own number a count has moved since the shift began."""

    last: tuple[int, int] | None = None
    ahead: int = 0

    def told(self, number: int, count: int) -> None:
        """Part `number` came with this count."""
        last, self.last = self.last, (number, count)
        if last is None:
            return
        parts, step = number - last[0], count - last[1]
        if parts <= 0:  # it has ended after a later one
            self.last = last
            return
        if step < 0 and last[1] < _WRAP and step + _WRAP <= _LARGEST_STEP:
            # 16 bits; some begin again at 1.
            step += _WRAP - 1 if step + _WRAP - 1 == parts else _WRAP
        if 0 <= step <= _LARGEST_STEP:
            self.ahead += step - parts


@dataclass(slots=True)
class _Shift:
    began_ns: int
    parts: int = 0
    counts: dict[str, _Count] = field(default_factory=dict)


class CountWatch:
    """Hears of each part, and compares the counts of the shift before when the first of a new ends.

    Args:
        lines: When shifts begin, by the camera's name.
        utc_ns: The time of now.
    """

    def __init__(self, lines: Mapping[str, LineSettings], utc_ns: Callable[[], int]) -> None:
        self._lines = lines
        self._utc_ns = utc_ns
        self._shifts: dict[str, _Shift] = {}
        self._found: dict[str, str] = {}
        self._fault: str | None = None

    @property
    def fault(self) -> str | None:
        """What was different in the shift before, of the first camera where something was."""
        return self._fault

    def add(self, part: Part) -> None:
        """A part has ended."""
        camera, trigger = part.camera, part.trigger
        began_ns = shift_began_ns(self._utc_ns() / 1e9, self._lines[camera].shifts)
        shift = self._shifts.setdefault(camera, _Shift(began_ns))
        if began_ns != shift.began_ns:
            self._compare(camera, shift, began_ns)
            for count in shift.counts.values():
                count.ahead = 0
            shift.began_ns, shift.parts = began_ns, 0
        shift.parts += 1
        counted = None if part.frame is None else part.frame.trigger_count
        for name, value in (("source", trigger.count), ("camera", counted)):
            if value is not None:
                shift.counts.setdefault(name, _Count()).told(trigger.number, value)

    def _compare(self, camera: str, shift: _Shift, ended_ns: int) -> None:
        said = [
            f"{_NAMES[name]} counted {abs(count.ahead)} {'more' if count.ahead > 0 else 'less'}"
            for name, count in shift.counts.items()
            if count.ahead
        ]
        self._found.pop(camera, None)
        if said:
            ended = datetime.fromtimestamp(ended_ns / 1e9).astimezone()
            self._found[camera] = (
                f"camera {camera}: of the {shift.parts} parts until {ended:%H:%M}, "
                f"{' and '.join(said)}; check wiring and window"
            )
            _LOG.warning("%s", self._found[camera])
        self._fault = next(iter(self._found.values()), None)
