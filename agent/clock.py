"""The clock of the running agent, and one that tests drive."""

import threading
import time
from typing import Final

_POLL_S: Final = 0.001


class SystemClock:
    """The machine's time."""

    def now(self) -> float:
        """Steady seconds from an arbitrary start; the `time.monotonic` of this machine."""
        return time.monotonic()

    def utc_ns(self) -> int:
        """UTC in nanoseconds since 1970."""
        return time.time_ns()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set or `timeout_s` have passed; says whether it is set."""
        return event.wait(max(0.0, timeout_s))


class ManualClock:
    """A clock that stands still until `advance` is called; for tests.

    Whoever waits by it wakes when enough time has been given or the event is set. Without `utc_ns`
    it stands at the machine's UTC: parts of long ago would be too old for the ledger to keep.
    """

    def __init__(self, *, now: float = 1000.0, utc_ns: int | None = None) -> None:
        self._now = now
        self._utc_ns = time.time_ns() if utc_ns is None else utc_ns
        self._waiting: set[int] = set()  # thread identifiers

    @property
    def waiting(self) -> int:
        """How many threads wait for this clock just now."""
        return len(self._waiting)

    def now(self) -> float:
        """The seconds that tests have let pass, from an arbitrary start."""
        return self._now

    def utc_ns(self) -> int:
        """UTC in nanoseconds since 1970."""
        return self._utc_ns

    def advance(self, seconds: float) -> None:
        """Let so much time pass, on both clocks."""
        self._utc_ns += round(seconds * 1e9)
        self._now += seconds

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set or `advance` has given `timeout_s`."""
        thread = threading.get_ident()
        until = self._now + timeout_s
        self._waiting.add(thread)
        # By polling, since the event may be set by a thread that knows nothing of this clock.
        while not event.is_set() and self._now < until:
            event.wait(_POLL_S)
        self._waiting.discard(thread)
        return event.is_set()
