"""Exponential back-off between attempts to reach something that is away."""

import random
import threading
from typing import Final

from agent.ports import Clock

_FIRST_S: Final = 0.25
_LAST_S: Final = 5.0


class Backoff:
    """Waits of a quarter of a second to five seconds, each twice the last, with jitter."""

    def __init__(self, clock: Clock, stop: threading.Event) -> None:
        self._clock = clock
        self._stop = stop
        self._next_s = _FIRST_S

    def wait(self) -> None:
        """Wait for the next attempt; less when `stop` is set."""
        self._clock.wait(self._stop, self._next_s * random.uniform(0.5, 1.0))
        self._next_s = min(2 * self._next_s, _LAST_S)

    def reset(self) -> None:
        """It was reached: the next wait is a short one."""
        self._next_s = _FIRST_S
