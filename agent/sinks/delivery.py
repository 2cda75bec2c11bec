"""The thread that delivers to one sink: window, order, retries and back-off, for every kind of it.

    ledger ── commit ──▶ wake ─┐
    status ────────────▶ wake ─┴─▶ thread ── window ──▶ sink ──▶ receiver
                                     └── taken, refused ──▶ ledger

A delivery is done when the sink gives its receipt. A broken connection is opened again with
back-off, and deliveries without a receipt are sent again, marked as resent. What a sink cannot
encode or send is refused and named, and the deliveries behind it continue.
"""

import logging
import random
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, Self

from agent.clock import SystemClock
from agent.ports import Clock, Receipt, Sink, TakesRequests
from agent.record.ledger import Ledger
from agent.record.outbox import Mark
from agent.record.rows import THUMBNAIL, Delivery
from agent.requests import Requests
from agent.sinks.order import Order, Waiting
from agent.station.status import SinkStatus, Status
from engine.errors import ConfigurationError, SinkError

_LOG: Final = logging.getLogger("atac_agent.sink")
_ANSWER_S: Final = 20.0
"""How long a receiver may take for a receipt before its connection is opened again."""
_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 30.0
_RETRY_REFUSED_S: Final = 20.0
_STEADY_S: Final = 10.0
"""A connection that held so long was a good one: the next retry is quick again."""
_IDLE_S: Final = 0.25
"""From one look whether an idle connection still stands to the next."""
_RECEIPT_S: Final = 0.01
"""How long to wait for a receipt while there is room for more."""
_FULL_S: Final = 1.0
"""The same while there is none."""
_JOIN_S: Final = 20.0


class Deliverer:
    """Delivers what `sink` wants of each part; a context manager.

    Entering starts the thread and waits for nobody. Leaving it sends what waits, for at most
    `drain_s`, and tells the receiver that the agent goes.

    Args:
        sink: Made, not connected; nobody else calls it but for `items`.
        ledger: Has what waits, entered.
        drain_s: How long a stopping agent goes on sending what is left.
        requests: What others may ask of the agent through the sink; `None`: nothing.
        clock: Times retries and receipts.
    """

    def __init__(
        self,
        sink: Sink,
        ledger: Ledger,
        *,
        drain_s: float = 5.0,
        requests: Requests | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._sink = sink
        self._ledger = ledger
        self._drain_s = drain_s
        self._clock = clock or SystemClock()
        self._order = Order(ledger, sink.name)
        self._flight: dict[int, tuple[Waiting, float]] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._deadline = 0.0
        self._lock = threading.Lock()
        self._newest: Status | None = None
        self._is_connected = False
        self._fault: str | None = None  # until the first attempt has failed
        self._is_fault_said = False
        self._refusing: dict[str, str] = {}
        self._delivered = 0
        self._refused = 0
        self._heard = None
        if requests is not None and isinstance(sink, TakesRequests):
            self._heard = sink.listen(requests, self.replay)
        self._inner = ExitStack()
        # A daemon, as looking up a host's name cannot be interrupted.
        self._thread = threading.Thread(
            target=self._run, name=f"atac-sink-{sink.name}", daemon=True
        )

    def __enter__(self) -> Self:
        self._ledger.listen(self._sink.name, self._wake.set)
        self._thread.start()
        if self._heard is not None:
            self._inner.enter_context(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()
        self._deadline = self._clock.now() + self._drain_s
        self._ledger.flush(self._drain_s)
        self._stop.set()
        self._wake.set()
        self._thread.join(self._drain_s + _JOIN_S)
        self._ledger.flush(self._drain_s)  # the marks of what was delivered
        self._ledger.listen(self._sink.name, lambda: None)

    @property
    def name(self) -> str:
        """The sink's name."""
        return self._sink.name

    @property
    def is_alive(self) -> bool:
        """Whether the thread that sends is running."""
        return self._thread.is_alive()

    def status(self) -> SinkStatus:
        """How delivery stands now."""
        with self._lock:
            fault = self._fault
            if fault is None and self._refusing:
                fault = "; ".join(
                    f"refuses {item}: {reason}" for item, reason in self._refusing.items()
                )
            return SinkStatus(
                is_connected=self._is_connected,
                fault=fault,
                pending=self._ledger.waiting(self.name),
                delivered=self._delivered,
                refused=self._refused,
                requests=0 if self._heard is None else self._heard.accepted,
                requests_refused=0 if self._heard is None else self._heard.refused,
            )

    def report(self, status: Status) -> None:
        """Have the sink say how the agent is; of several that wait only the newest is sent."""
        with self._lock:
            self._newest = status
        self._wake.set()

    def replay(self, epoch: str, first: int, last: int) -> int:
        """Send these parts again; see `Order.replay`. May be called by any thread."""
        count = self._order.replay(epoch, first, last)
        self._wake.set()
        return count

    # ---- everything below runs in the thread that sends

    def _run(self) -> None:
        try:
            self._keep_connected()
        finally:
            with self._lock:
                self._is_connected = False
                if not self._stop.is_set():
                    self._fault = "the thread that sends has died: restart the agent"

    def _keep_connected(self) -> None:
        retry_s = _RETRY_FIRST_S
        while not self._stop.is_set():
            began = self._clock.now()
            try:
                self._connect_and_deliver()
            except (SinkError, ConfigurationError) as error:
                is_refusal = isinstance(error, ConfigurationError) or error.is_refusal
                retry_s = self._lost(str(error), began, retry_s, is_refusal=is_refusal)
                if isinstance(error, SinkError) and error.retry_s is not None:
                    retry_s = error.retry_s
            except Exception as error:  # noqa: BLE001 - a fault, not the end of the thread
                _LOG.exception("%s: an error that nobody expected", self.name)
                reason = f"{type(error).__name__}: {error}"
                retry_s = self._lost(reason, began, retry_s, is_refusal=False)
            if self._clock.wait(self._stop, retry_s * random.uniform(0.5, 1.0)):
                self._sink.disconnect(is_stopping=True)
            retry_s = min(2 * retry_s, _RETRY_MAX_S)

    def _connect_and_deliver(self) -> None:
        """One connection, from its beginning to its loss (`SinkError`) or the agent's stop."""
        is_stopping = False
        try:
            window = self._sink.connect()
            self._connected()
            while not self._is_done():
                self._wake.clear()
                self._report()
                self._fill(window)
                self._take(window)
            is_stopping = True
        finally:
            self._sink.disconnect(is_stopping=is_stopping)
        with self._lock:
            self._is_connected, self._fault = False, "stopped"

    def _is_done(self) -> bool:
        if not self._stop.is_set():
            return False
        is_drained = not (self._flight or self._newest or self._order.has_more())
        return is_drained or self._clock.now() > self._deadline

    def _report(self) -> None:
        with self._lock:
            newest, self._newest = self._newest, None
        if newest is not None:
            self._sink.report(newest)

    def _fill(self, window: int) -> None:
        """Send until the window is full or nothing is left."""
        refused = []
        while len(self._flight) < window and (waiting := self._order.next()) is not None:
            delivery, _ = waiting
            self._flight[delivery.id] = (waiting, self._clock.now())
            if (receipt := self._sent(waiting)) is not None:
                refused.append(receipt)
        self._settle(refused)

    def _sent(self, waiting: Waiting) -> Receipt | None:
        delivery, event = waiting
        if delivery.item == THUMBNAIL and event.thumbnail is None:
            return Receipt(delivery=delivery.id, refused="the picture has been discarded")
        try:
            return self._sink.send(delivery, event)
        except SinkError:
            raise
        except Exception as error:  # noqa: BLE001 - it is refused, and those behind it go on
            reason = f"cannot be sent: {type(error).__name__}: {error}"
            return Receipt(delivery=delivery.id, refused=reason)

    def _take(self, window: int) -> None:
        """Wait for receipts, or for something to do, then settle all that have come."""
        if self._flight:
            is_full = len(self._flight) >= window
            self._settle(self._sink.receipts(_FULL_S if is_full else _RECEIPT_S))
        else:
            self._wake.wait(_IDLE_S)
            self._settle(self._sink.receipts(0))
        oldest = next(iter(self._flight.values()), None)
        if oldest is not None and self._clock.now() - oldest[1] > _ANSWER_S:
            raise SinkError(f"{self.name}: acknowledges nothing any more")

    def _settle(self, receipts: Sequence[Receipt]) -> None:
        """Note how deliveries ended."""
        marks = []
        for receipt in receipts:
            flying = self._flight.pop(receipt.delivery, None)
            if flying is None:
                continue
            self._order.settled(receipt.delivery)
            self._note(flying[0][0], receipt.refused)
            marks.append(
                Mark(
                    id=receipt.delivery,
                    time_ns=self._clock.utc_ns(),
                    refused=receipt.refused,
                    code=receipt.code,
                )
            )
        if marks:
            self._ledger.settle(marks)

    def _note(self, delivery: Delivery, refused: str | None) -> None:
        with self._lock:
            before = self._refusing.pop(delivery.item, None)
            if refused is not None:
                self._refusing[delivery.item] = refused
            self._delivered += refused is None
            self._refused += refused is not None
        if refused is not None and before != refused:
            _LOG.warning("%s refuses %s: %s", self.name, delivery.item, refused)
        if refused is None and before is not None:
            _LOG.warning("%s accepts %s again", self.name, delivery.item)

    def _connected(self) -> None:
        """What has no receipt from the last connection goes first."""
        self._order.connected(waiting for waiting, _ in self._flight.values())
        self._flight.clear()
        with self._lock:
            is_news, self._is_fault_said = self._is_fault_said, False
            self._is_connected, self._fault = True, None
        _LOG.log(logging.WARNING if is_news else logging.INFO, "%s: connected", self.name)

    def _lost(self, fault: str, began: float, retry_s: float, *, is_refusal: bool) -> float:
        """Say what is wrong, once per change; returns how long to wait before the next attempt."""
        with self._lock:
            is_news = fault != self._fault
            self._is_connected, self._fault = False, fault
            self._is_fault_said = True
        if is_news:
            _LOG.warning("%s: what it wants waits in the ledger: %s", self.name, fault)
        if self._clock.now() - began >= _STEADY_S:
            retry_s = _RETRY_FIRST_S
        return max(retry_s, _RETRY_REFUSED_S) if is_refusal else retry_s
