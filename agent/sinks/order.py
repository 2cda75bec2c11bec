"""The order in which a sink gets what waits for it.

First what was sent and has no receipt, at most a window full; then what has been recorded since
the connection was made; then the backlog, oldest first. So a live alarm does not wait behind the
thousands that gathered while the receiver was away. Last comes what a receiver asked for again, a
few parts at a time.
"""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from agent.record.outbox import Requeued
from agent.record.rows import Delivery, Event, Span
from agent.requests import RequestError

_FETCH: Final = 100
_REPLAYED: Final = 20
"""Parts that are queued again at once, when nothing else waits."""
_REPLAYS: Final = 100
_NO_END: Final = (1 << 63) - 1

Waiting = tuple[Delivery, Event]


class Deliveries(Protocol):
    """What this asks of the ledger."""

    @property
    def epoch(self) -> str: ...
    @property
    def fault(self) -> str | None: ...
    @property
    def last_sequence(self) -> int: ...
    def newest(self, sink: str) -> int: ...
    def waiting_for(
        self, sink: str, *, after: int, limit: int, upto: int = ...
    ) -> list[Waiting]: ...
    def requeue(self, sink: str, epoch: str, span: Span, *, parts: int) -> Requeued | None: ...
    def deliveries_of(self, sink: str, epoch: str, span: Span) -> int | None: ...


@dataclass(slots=True, kw_only=True)
class _Stretch:
    """Deliveries with ids above `after`, up to `upto` where it ends; `read` are in memory."""

    after: int
    upto: int | None = None
    is_replay: bool = False
    read: deque[Waiting] = field(default_factory=deque)


class Order:
    """What to send next to `sink`; used by one thread, but for `replay`."""

    def __init__(self, ledger: Deliveries, sink: str) -> None:
        self._ledger = ledger
        self._sink = sink
        self._from_before = ledger.newest(sink)
        self._again: deque[Waiting] = deque()
        self._live = _Stretch(after=0)
        self._backlog: deque[_Stretch] = deque()
        self._held: set[int] = set()
        self._lock = threading.Lock()
        self._replays: deque[tuple[str, Span]] = deque()

    def connected(self, unsettled: Iterable[Waiting]) -> None:
        """A connection begins, and with it what is live; `unsettled` was sent on the last one."""
        newest = self._ledger.newest(self._sink)
        self._live.upto = newest
        self._backlog.append(self._live)
        self._live = _Stretch(after=newest)
        both = {one[0].id: one for one in (*unsettled, *self._again)}
        self._again = deque(_marked(both[number]) for number in sorted(both))

    def next(self) -> Waiting | None:
        """The next delivery, `None` when there is none now; counts as held until `settled`."""
        if self._again:
            return self._again.popleft()
        if found := self._from(self._live):
            return found
        while True:
            if not self._backlog and not self._queue_replay():
                return None
            stretch = self._backlog[0]
            if found := self._from(stretch):
                may_have_come = stretch.is_replay or found[0].id <= self._from_before
                return _marked(found) if may_have_come else found
            if self._is_unread(stretch):
                return None  # the ledger cannot be read just now
            self._backlog.popleft()

    def replay(self, epoch: str, first: int, last: int) -> int:
        """Send these parts again when nothing else waits; says how many deliveries they have.

        May be called by any thread. Raises `RequestError` when the ledger cannot be read or too
        many replays wait already.
        """
        if epoch == self._ledger.epoch:
            # Or a replay could run after the line for ever.
            last = min(last, self._ledger.last_sequence)
        count = self._ledger.deliveries_of(self._sink, epoch, (first, last))
        if count is None:
            raise RequestError("the ledger cannot be read; ask again later")
        asked = (epoch, (first, last))
        with self._lock:
            if count and asked not in self._replays:
                if len(self._replays) >= _REPLAYS:
                    raise RequestError("too many replays wait; ask again later")
                self._replays.append(asked)
        return count

    def settled(self, number: int) -> None:
        """The sink has taken or refused this delivery."""
        self._held.discard(number)

    def has_more(self) -> bool:
        """Whether anything waits, in memory or in the ledger."""
        stretches = (self._live, *self._backlog)
        return bool(self._again or self._replays) or any(
            one.read or self._is_unread(one) for one in stretches
        )

    def _queue_replay(self) -> bool:
        """Queue the next parts of a replay; says whether there are any."""
        with self._lock:
            if not self._replays:
                return False
            epoch, (first, last) = self._replays.popleft()
        found = self._ledger.requeue(self._sink, epoch, (first, last), parts=_REPLAYED)
        if found is None:
            return False
        if found.last < last:
            with self._lock:
                self._replays.appendleft((epoch, (found.last + 1, last)))
        if found.ids:
            stretch = _Stretch(after=found.ids[0] - 1, upto=found.ids[-1], is_replay=True)
            self._backlog.append(stretch)
        return bool(found.ids) or found.last < last

    def _from(self, stretch: _Stretch) -> Waiting | None:
        if not stretch.read and self._is_unread(stretch):
            self._read(stretch)
        return stretch.read.popleft() if stretch.read else None

    def _upto(self, stretch: _Stretch) -> int:
        return self._ledger.newest(self._sink) if stretch.upto is None else stretch.upto

    def _is_unread(self, stretch: _Stretch) -> bool:
        return self._upto(stretch) > stretch.after

    def _read(self, stretch: _Stretch) -> None:
        upto = self._upto(stretch)
        found = self._ledger.waiting_for(self._sink, after=stretch.after, upto=upto, limit=_FETCH)
        if found:
            stretch.after = found[-1][0].id
            news = [one for one in found if one[0].id not in self._held]
            self._held.update(one[0].id for one in news)
            stretch.read.extend(news)
        elif self._ledger.fault is None:
            stretch.after = max(stretch.after, upto)


def _marked(one: Waiting) -> Waiting:
    """The same delivery, saying that it may have come before."""
    delivery, event = one
    return replace(delivery, is_resent=True), event
