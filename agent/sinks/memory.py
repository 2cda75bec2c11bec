"""A sink for tests: keeps what it gets in memory and does what a script says."""

import threading
from collections.abc import Callable, Sequence
from typing import Final

from agent.part import Part, State
from agent.ports import Receipt
from agent.record.rows import Delivery, Event
from agent.station.status import Status
from engine.errors import SinkError


class MemorySink:
    """Takes everything, unless told otherwise; its attributes may be set by any thread.

    Args:
        name: The sink's name.
        window: How many deliveries may wait for their receipts.
        items: What it wants of a part; by default the alarm of each that did not end OK.
    """

    def __init__(
        self,
        name: str = "memory",
        *,
        window: int = 20,
        items: Callable[[Part], tuple[str, ...]] | None = None,
    ) -> None:
        self.name: Final = name
        self.window = window
        self.got: list[tuple[Delivery, Event]] = []
        """All that was sent, in order."""
        self.statuses: list[Status] = []
        self.refuses: Callable[[Delivery], str | None] = lambda _delivery: None
        """Why a delivery is refused; one that raises breaks the sending of it."""
        self.holds_back = False
        """No receipts come."""
        self.fault: str | None = None
        """Breaks every connection while it is set."""
        self.connections = 0
        self.is_connected = False
        self.has_left = False
        self._items = items or _alarm
        self._owed: list[Receipt] = []
        self._come = threading.Event()

    def items(self, part: Part) -> tuple[str, ...]:
        return self._items(part)

    def connect(self) -> int:
        self._check()
        self.connections += 1
        self.is_connected = True
        self._owed.clear()
        return self.window

    def send(self, delivery: Delivery, event: Event) -> Receipt | None:
        self._check()
        refused = self.refuses(delivery)
        self.got.append((delivery, event))
        self._owed.append(Receipt(delivery=delivery.id, refused=refused))
        self._come.set()
        return None

    def receipts(self, timeout_s: float) -> Sequence[Receipt]:
        self._check()
        if self.holds_back or not self._owed:
            self._come.clear()
            self._come.wait(timeout_s)
            return ()
        owed, self._owed = self._owed, []
        return owed

    def report(self, status: Status) -> None:
        self.statuses.append(status)

    def disconnect(self, *, is_stopping: bool) -> None:
        self.is_connected = False
        self.has_left |= is_stopping

    def _check(self) -> None:
        if self.fault is not None:
            raise SinkError(self.fault)


def _alarm(part: Part) -> tuple[str, ...]:
    assert part.verdict is not None
    return () if part.verdict.state is State.OK else ("alarm", "thumbnail")
