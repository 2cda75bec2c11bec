"""The sink of a handshake: results go to the PLC that announced their parts, and it says so.

A result has its receipt when the PLC has acknowledged it. What the PLC never reads, because its
session has ended or the result came after its time, is refused, and so counted and named.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Self

from agent.part import Part
from agent.plc.exchange import WINDOW, Exchange
from agent.ports import Announcement, Receipt
from agent.record.rows import Delivery, Event
from agent.requests import Requests, Tally
from agent.station.status import Status
from engine.errors import ConfigurationError, SinkError

Connection = Callable[[Exchange], AbstractContextManager[object]]
"""Makes what carries an exchange to its PLC; entering it may raise `SinkError`."""
_ITEM: Final = "result"
_LOOK_S: Final = 0.1
_RETRY_S: Final = 0.25
"""A PLC that is back is served at once."""


class PlcSink:
    """Tells a PLC how its parts ended, and announces them.

    Args:
        name: The sink's name.
        exchange: The handshake.
        connection: Makes what carries it; entered with the first `connect`, left at the end.
    """

    def __init__(self, name: str, exchange: Exchange, connection: Connection) -> None:
        self.name: Final = name
        self._exchange = exchange
        self._make = connection
        self._connection: AbstractContextManager[object] | None = None
        self._camera = ""

    def announces(
        self, camera: str, stop: threading.Event, *, names_products: bool = False
    ) -> "PlcTriggers":
        """The source of the parts of `camera`; a handshake is that of one camera."""
        if self._camera:
            why = f"the PLC of {self.name} announces the parts of {self._camera}; use another sink"
            raise ConfigurationError("camera.trigger.sink", self.name, why)
        self._camera = camera
        self._exchange.names_products = names_products
        return PlcTriggers(self._exchange, stop)

    def listen(self, _requests: Requests, _replay: Callable[[str, int, int], int]) -> Tally:
        """A PLC asks nothing of the agent; peers that are turned away are counted."""
        return self._exchange.peers

    def items(self, part: Part) -> tuple[str, ...]:
        """The result of a part that the PLC has announced."""
        return (_ITEM,) if self._exchange.claims(part) else ()

    def connect(self) -> int:
        """Serve the PLC, and say whether there is one."""
        if not self._camera:
            why = "no camera has `trigger: {type: plc}` with this sink"
            raise ConfigurationError("sinks.name", self.name, why)
        if self._connection is None:
            connection = self._make(self._exchange)
            connection.__enter__()
            self._connection = connection
        self._check()
        return WINDOW

    def send(self, delivery: Delivery, event: Event) -> Receipt | None:
        """Have a result shown when those before it have been read."""
        self._check()
        return self._exchange.offer(delivery, event)

    def receipts(self, timeout_s: float) -> Sequence[Receipt]:
        """What the PLC has acknowledged."""
        receipts = self._exchange.receipts(timeout_s)
        if not receipts:
            self._check()
        return receipts

    def report(self, status: Status) -> None:
        """Tell the PLC when the agent cannot inspect."""
        self._exchange.report(status, self._camera)

    def disconnect(self, *, is_stopping: bool) -> None:
        """The connection stays, as the PLC has to see what is wrong, until the agent stops."""
        connection, stays = self._connection, not is_stopping
        if connection is not None and not stays:
            self._connection = None
            connection.__exit__(None, None, None)

    def _check(self) -> None:
        fault = self._exchange.fault
        if fault is not None:
            raise SinkError(fault, retry_s=_RETRY_S)


class PlcTriggers:
    """The parts that a PLC announces; `stop` ends the wait for one."""

    def __init__(self, exchange: Exchange, stop: threading.Event) -> None:
        self._exchange = exchange
        self._stop = stop

    def read(self) -> Announcement | None:
        """The next part; `None` when told to stop."""
        while not self._stop.is_set():
            announcement = self._exchange.announcement(_LOOK_S)
            if announcement is not None:
                return announcement
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...
