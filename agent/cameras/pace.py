"""Parts at a steady rate, as a belt brings them."""

import threading
import time
from typing import Final

_SILENCE_S: Final = 2.0
_MAX_LATE_S: Final = 1.0
"""After a longer stall the rhythm starts afresh: the belt does not run faster to catch up."""


class Pace:
    """One tick every `interval_s` seconds; 0 ticks at once. `stop` ends any wait."""

    def __init__(self, interval_s: float, stop: threading.Event) -> None:
        self._interval_s = interval_s
        self._stop = stop
        self._due = time.monotonic()

    @property
    def silence_s(self) -> float:
        """Without a tick for so long, and the time for a slow picture, something is wrong."""
        return max(_SILENCE_S, 3 * self._interval_s)

    def restart(self) -> None:
        """The next tick is due now."""
        self._due = time.monotonic()

    def wait(self) -> bool:
        """Wait for the next tick; `False` when it is time to stop."""
        now = time.monotonic()
        if self._due < now - _MAX_LATE_S:
            self._due = now
        stopped = self._stop.wait(self._due - now) if self._due > now else self._stop.is_set()
        self._due += self._interval_s
        return not stopped
