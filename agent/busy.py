"""Notices that a thread is held up: a disk that hangs raises nothing."""

import time
from collections.abc import Callable
from typing import Self


class Busy:
    """Work of one thread, as a context manager; any thread may ask whether it takes too long.

    Args:
        limit_s: How long it may take.
        now: Steady seconds.
    """

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._now = now
        self._since: float | None = None

    def __enter__(self) -> Self:
        self._since = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._since = None

    @property
    def is_late(self) -> bool:
        """Whether it has gone on for longer than the limit."""
        since = self._since
        return since is not None and self._now() - since > self._limit_s
