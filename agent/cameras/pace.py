"""What cameras that are no devices have in common: a steady rate, and frames that are counted."""

from typing import Final, Self

from agent.ports import CameraContext
from engine.frame import Frame, Pixels

_SILENCE_S: Final = 2.0
_MAX_LATE_S: Final = 1.0
"""After a longer stall the rhythm starts afresh: the belt does not run faster to catch up."""
_RECENT: Final = 100


class Pace:
    """One tick every `interval_s` seconds; 0 ticks at once. The `stop` of `context` ends a wait."""

    def __init__(self, interval_s: float, context: CameraContext) -> None:
        self._interval_s = interval_s
        self._context = context
        self._due = context.clock.now()

    @property
    def silence_s(self) -> float:
        """Without a tick for so long, and the time for a slow picture, something is wrong."""
        return max(_SILENCE_S, 3 * self._interval_s)

    def restart(self) -> None:
        """The next tick is due now."""
        self._due = self._context.clock.now()

    def wait(self) -> bool:
        """Wait for the next tick; `False` when it is time to stop."""
        stop, clock = self._context.stop, self._context.clock
        now = clock.now()
        if self._due < now - _MAX_LATE_S:
            self._due = now
        stopped = clock.wait(stop, self._due - now) if self._due > now else stop.is_set()
        self._due += self._interval_s
        return not stopped


def interval_s(parts_per_minute: float | None) -> float:
    """The seconds between two parts; 0 where they come as fast as they are wanted."""
    return 0.0 if parts_per_minute is None else 60 / parts_per_minute


class PacedCamera:
    """A camera of frames that are made or read one by one, at a pace; `read` is left to add.

    `number` is that of the next frame.
    """

    triggered: bool = True
    is_live: bool = False
    fault: str | None = None

    def __init__(self, context: CameraContext, *, interval_s: float = 0.0) -> None:
        self.context = context
        self.pace = Pace(interval_s, context)
        self.number = 0
        self._names: dict[int, tuple[str | None, str | None]] = {}

    @property
    def silence_s(self) -> float | None:
        return self.pace.silence_s

    def __enter__(self) -> Self:
        self.pace.restart()
        return self

    def __exit__(self, *_: object) -> None: ...

    def part_id(self, number: int) -> str | None:
        """The name that `count` was given for a recent frame."""
        return self._names.get(number, (None, None))[0]

    def source(self, number: int) -> str | None:
        """The source that `count` was given for a recent frame."""
        return self._names.get(number, (None, None))[1]

    def frame(self, pixels: Pixels, name: str | None = None, source: str | None = None) -> Frame:
        """The next frame."""
        frame = Frame(pixels=pixels, number=self.number, captured_ns=self.context.clock.utc_ns())
        self.count(name, source)
        return frame

    def count(self, name: str | None = None, source: str | None = None) -> None:
        """The next frame number is taken by what has this name."""
        self._names[self.number] = name, source
        self._names.pop(self.number - _RECENT, None)
        self.number += 1
