"""The order in which the sender empties the ledger's outbox.

First what was sent and not acknowledged, at most a window full; then what has been recorded since
the connection was made; then the backlog, oldest first. So a live alarm does not wait behind the
thousands that gathered while the broker was away. Last comes what a consumer asked for again, a
few parts at a time.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from agent.ledger import Ledger
from agent.ledger_file import OutboxMessage, Span
from agent.messages import resent
from agent.requests import RequestError

_FETCH: Final = 100
_REPLAYED: Final = 20
"""Parts that are queued again at once, when nothing else waits."""
_REPLAYS: Final = 100


@dataclass(slots=True, kw_only=True)
class _Stretch:
    """Messages with ids above `after`, up to `upto` where it ends; `read` are in memory."""

    after: int
    upto: int | None = None
    is_replay: bool = False
    read: deque[OutboxMessage] = field(default_factory=deque)


class Outbox:
    """What to send next; used by one thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._from_before = ledger.newest_message
        self._again: deque[OutboxMessage] = deque()
        self._live = _Stretch(after=0)
        self._backlog: deque[_Stretch] = deque()
        self._held: set[int] = set()
        self._replays: deque[tuple[str, Span]] = deque()

    def connected(self, unsettled: Iterable[OutboxMessage]) -> None:
        """A connection begins, and with it what is live; `unsettled` was sent on the last one."""
        newest = self._ledger.newest_message
        self._live.upto = newest
        self._backlog.append(self._live)
        self._live = _Stretch(after=newest)
        both = {one.id: one for one in (*unsettled, *self._again)}
        self._again = deque(marked(both[number]) for number in sorted(both))

    def next(self) -> OutboxMessage | None:
        """The next message, `None` when there is none now; counts as held until `settled`."""
        if self._again:
            return self._again.popleft()
        if found := self._from(self._live):
            return found
        while self._backlog:
            stretch = self._backlog[0]
            if found := self._from(stretch):
                may_have_come = stretch.is_replay or found.id <= self._from_before
                return marked(found) if may_have_come else found
            if self._is_unread(stretch):
                return None  # the ledger cannot be read just now
            self._backlog.popleft()
            if not self._backlog:
                self._replay_more()
        return None

    def replay(self, epoch: str, first: int, last: int) -> int:
        """Send these parts again when nothing else waits; says how many messages they have.

        Raises `RequestError` when the ledger cannot be read or too many replays wait already.
        """
        if epoch == self._ledger.epoch:
            last = min(last, self._ledger.total())  # or a replay could run after the line for ever
        count = self._ledger.messages_of(epoch, (first, last))
        if count is None:
            raise RequestError("the ledger cannot be read; ask again later")
        asked = (epoch, (first, last))
        if count and asked not in self._replays:
            if len(self._replays) >= _REPLAYS:
                raise RequestError("too many replays wait; ask again later")
            self._replays.append(asked)
            if not self._backlog:
                self._replay_more()
        return count

    def _replay_more(self) -> None:
        if not self._replays:
            return
        epoch, (first, last) = self._replays.popleft()
        done = self._ledger.requeue(epoch, (first, last), parts=_REPLAYED)
        if done is None:
            return
        (lowest, highest), upto = done
        self._backlog.append(_Stretch(after=lowest - 1, upto=highest, is_replay=True))
        if upto < last:
            self._replays.appendleft((epoch, (upto + 1, last)))

    def settled(self, number: int) -> None:
        """The broker has taken or refused this message."""
        self._held.discard(number)

    def has_more(self) -> bool:
        """Whether anything waits, in memory or in the ledger."""
        stretches = (self._live, *self._backlog)
        return bool(self._again or self._replays) or any(
            one.read or self._is_unread(one) for one in stretches
        )

    def _from(self, stretch: _Stretch) -> OutboxMessage | None:
        if not stretch.read and self._is_unread(stretch):
            self._read(stretch)
        return stretch.read.popleft() if stretch.read else None

    def _is_unread(self, stretch: _Stretch) -> bool:
        upto = self._ledger.newest_message if stretch.upto is None else stretch.upto
        return upto > stretch.after

    def _read(self, stretch: _Stretch) -> None:
        upto = self._ledger.newest_message if stretch.upto is None else stretch.upto
        found = self._ledger.pending_messages(after=stretch.after, upto=upto, limit=_FETCH)
        if found:
            stretch.after = found[-1].id
            news = [one for one in found if one.id not in self._held]
            self._held.update(one.id for one in news)
            stretch.read.extend(news)
        elif self._ledger.trouble is None:
            stretch.after = max(stretch.after, upto)


def marked(one: OutboxMessage) -> OutboxMessage:
    """The same message, saying that it may have come before."""
    return replace(one, message=resent(one.message))
