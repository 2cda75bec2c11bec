"""The feed of recorded parts: every service reads here, and none can hold up the ledger.

    owner thread ── after each commit ──▶ bounded buffer ──▶ thread or child process
          ▲────────── rows after (epoch, sequence), a thumbnail ────────┘

The owner thread offers rows; who reads them makes events of them, a child in its own process. A
child is sent many rows at once, a few times a second: each frame wakes two threads, which the line
pays for. The first row after a pause is sent at once.
A buffer never waits. One that is full drops what comes and says so once it has been read: `Gap`.
A reader that hears of a gap asks for the rows after the newest part that it has. The owner thread
serves them between two commits, in the order in which parts were recorded. `follow` does all this.
"""

import base64
import json
import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from select import select
from time import monotonic, perf_counter
from typing import Any, Final, Protocol, Self

from pydantic import TypeAdapter

from agent.record.rows import Event, event_of

_LOG: Final = logging.getLogger("atac_agent.feed")
Cursor = tuple[str, int]
"""The epoch and the sequence of the newest part that a reader has; `START` before the first."""
Row = Mapping[str, Any]
"""A part as it was recorded, without its thumbnail: what `event_of` takes, and JSON can hold."""
START: Final[Cursor] = ("", 0)
ROWS: Final = 500
"""The most rows that one question gets."""
_ROOM: Final = 1000
_RETRY_S: Final = 1.0
_PACE_S: Final = 0.25
"""Between two times that a child is sent parts."""
_REST: Final = 20.0
"""A reader that catches up rests this many times as long as its last question took: the line goes
first, and loses at most a twentieth of its time."""
_REST_MAX_S: Final = 2.0
_HEAD: Final = struct.Struct(">I")
_FRAME_MAX: Final = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Parts were recorded after the part at `after` that this reader was not offered."""

    after: Cursor


class Reader(Protocol):
    """Reads the feed, in this process or in a child; used by one thread."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        ...

    def next(self, timeout_s: float) -> Event | Gap | None:
        """The next part, or that some were missed; `None` when nothing came in time."""
        ...

    def rows_after(self, after: Cursor, limit: int = ROWS) -> list[Event] | None:
        """The next parts recorded after the one at `after`, at most 500, without thumbnails.

        From the oldest that there is where that part is not known. `None`: they cannot be read now.
        """
        ...

    def thumbnail(self, epoch: str, sequence: int) -> bytes | None:
        """The picture of a part, if there is one."""
        ...


class _Buffer:
    """Parts that wait for one reader: bounded, and filling it never waits."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._changed = threading.Condition()
        self._rows: deque[Row] = deque()
        self._gap: Gap | None = None
        self._newest: Cursor = START
        self.is_closed = False

    def offer(self, row: Row) -> None:
        """Keep a part, or that it was dropped."""
        with self._changed:
            if self._gap is None and len(self._rows) < self._room:
                self._rows.append(row)
                self._newest = row["epoch"], row["sequence"]
            elif self._gap is None:
                self._gap = Gap(after=self._newest)
            self._changed.notify_all()

    def skip(self, gap: Gap) -> None:
        """Keep that parts were dropped elsewhere."""
        with self._changed:
            self._gap = self._gap or gap
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Event | Gap | None:
        """What `next` gives."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._rows or self._gap is not None or self.is_closed, timeout_s
            )
            if not self._rows:
                gap, self._gap = self._gap, None
                return gap
            row = self._rows.popleft()
        return event_of(row)

    def take_all(self) -> tuple[list[Row], Gap | None]:
        """All that waits, and whether parts were dropped after it."""
        with self._changed:
            rows, gap = list(self._rows), self._gap
            self._rows.clear()
            self._gap = None
            return rows, gap

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


class Feed:
    """Gives what was recorded to all readers; made by the ledger."""

    def __init__(
        self,
        *,
        rows_after: Callable[[Cursor, int], list[Row] | None],
        thumbnail: Callable[[str, int], bytes | None],
    ) -> None:
        self.raw_rows_after: Final = rows_after
        self.thumbnail: Final = thumbnail
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def is_heard(self) -> bool:
        """Whether there is any reader."""
        return bool(self._subscriptions)

    def rows_after(self, after: Cursor, limit: int) -> list[Event] | None:
        """The next events recorded after a part; `None` where they cannot be read now."""
        rows = self.raw_rows_after(after, limit)
        return None if rows is None else [event_of(row) for row in rows]

    def subscribe(self, *, room: int = _ROOM) -> "Subscription":
        """A reader in this process, a context manager; at most `room` parts wait for it."""
        return Subscription(self, room)

    def serve(self, connection: socket.socket, *, room: int = _ROOM) -> "FeedServer":
        """A context manager that feeds the process at the other end of `connection`."""
        return FeedServer(self, connection, room)

    def offer(self, rows: Sequence[Row]) -> None:
        """Tell all readers; called by the owner thread, and never waits."""
        for subscription in self._subscriptions:
            for row in rows:
                subscription.offer(row)

    def close(self) -> None:
        """Nothing more will be recorded."""
        with self._lock:
            self._is_closed = True
            for subscription in self._subscriptions:
                subscription.close()

    def enter(self, subscription: "Subscription") -> None:
        """Begin to tell a reader."""
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
            if self._is_closed:
                subscription.close()

    def leave(self, subscription: "Subscription") -> None:
        """Tell it no more."""
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)


class Subscription(_Buffer):
    """A reader in this process; a context manager, used by one thread."""

    def __init__(self, feed: Feed, room: int) -> None:
        super().__init__(room)
        self._feed = feed
        self._wake: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self._feed.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.leave(self)
        self.close()

    def wake_by(self, wake: Callable[[], None]) -> None:
        """Have `wake`, which must not wait, called after each part."""
        self._wake = wake

    def offer(self, row: Row) -> None:
        """Keep a part, or that it was dropped."""
        super().offer(row)
        self._wake()

    def next(self, timeout_s: float) -> Event | Gap | None:
        """The next part, or that some were missed; `None` when nothing came in time."""
        return self.take(timeout_s)

    def rows_after(self, after: Cursor, limit: int = ROWS) -> list[Event] | None:
        """See `Reader`."""
        return self._feed.rows_after(after, min(limit, ROWS))

    def thumbnail(self, epoch: str, sequence: int) -> bytes | None:
        """See `Reader`."""
        return self._feed.thumbnail(epoch, sequence)


class FeedServer:
    """Feeds a child process through a socket; a context manager with a thread of its own.

    A child that reads slowly or not at all holds up this thread alone; one that dies ends it.
    """

    def __init__(self, feed: Feed, connection: socket.socket, room: int) -> None:
        self._feed = feed
        self._subscription = Subscription(feed, room)
        self._connection = connection
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._is_woken = False
        self._thread = threading.Thread(target=self._serve, name="atac-feed")

    @property
    def is_alive(self) -> bool:
        """Whether there is still somebody at the other end."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self._connection.setblocking(True)
        self._subscription.wake_by(self._wake)
        self._subscription.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._subscription.__exit__()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._wake()
        self._thread.join()
        self._connection.close()
        self._woken.close()
        self._waker.close()

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            with suppress(OSError):  # full: it is awake already
                self._waker.send(b"\0")

    def _serve(self) -> None:
        subscription, send_at = self._subscription, 0.0
        try:
            while not subscription.is_closed:
                rest_s = send_at - monotonic()
                heard = [self._connection, *([] if rest_s > 0 else [self._woken])]
                ready, _, _ = select(heard, [], [], rest_s if rest_s > 0 else None)
                if self._woken in ready:
                    self._woken.recv(65_536)
                    self._is_woken = False
                    self._push()
                    send_at = monotonic() + _PACE_S
                if self._connection in ready:
                    asked = _receive(self._connection)
                    if asked is None:
                        break
                    _send(self._connection, self._answer(asked))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not subscription.is_closed:
                _LOG.warning("a reader of the feed has gone: %s", error)
        finally:
            subscription.__exit__()

    def _push(self) -> None:
        rows, gap = self._subscription.take_all()
        for first in range(0, len(rows), ROWS):
            _send(self._connection, {"parts": rows[first : first + ROWS]})
        if gap is not None:
            _send(self._connection, {"gap": gap.after})

    def _answer(self, asked: dict[str, Any]) -> dict[str, object]:
        if "thumbnail" in asked:
            epoch, sequence = asked["thumbnail"]
            jpeg = self._feed.thumbnail(str(epoch), int(sequence))
            return {"thumbnail": jpeg and base64.b64encode(jpeg).decode()}
        epoch, sequence = asked["after"]
        limit = min(int(asked["limit"]), ROWS)
        return {"rows": self._feed.raw_rows_after((str(epoch), int(sequence)), limit)}


class FeedClient(_Buffer):
    """The child's end of `Feed.serve`; used by one thread."""

    def __init__(self, connection: socket.socket, *, room: int = _ROOM) -> None:
        super().__init__(room)
        self._connection = connection

    def next(self, timeout_s: float) -> Event | Gap | None:
        """The next part, or that some were missed; `None` when nothing came in time."""
        while (item := self.take(0)) is None and not self.is_closed:
            if not select([self._connection], [], [], timeout_s)[0]:
                return None
            self._hear()
        return item

    def rows_after(self, after: Cursor, limit: int = ROWS) -> list[Event] | None:
        """See `Reader`."""
        rows = self._ask({"after": after, "limit": limit}, "rows")
        return None if rows is None else [event_of(row) for row in rows]

    def thumbnail(self, epoch: str, sequence: int) -> bytes | None:
        """See `Reader`."""
        jpeg = self._ask({"thumbnail": (epoch, sequence)}, "thumbnail")
        return None if jpeg is None else base64.b64decode(jpeg)

    def _ask(self, question: dict[str, object], key: str) -> Any:
        try:
            _send(self._connection, question)
        except OSError:
            self.close()
        while not self.is_closed:
            heard = self._hear()
            if heard is not None and key in heard:
                return heard[key]
        return None

    def _hear(self) -> dict[str, Any] | None:
        """Take one frame: what is pushed is kept, an answer is given."""
        try:
            heard = _receive(self._connection)
        except (OSError, ValueError):
            heard = None
        if heard is None:
            self.close()
        elif "parts" in heard:
            for row in heard["parts"]:
                self.offer(row)
        elif "gap" in heard:
            epoch, sequence = heard["gap"]
            self.skip(Gap(after=(epoch, sequence)))
        else:
            return heard
        return None


def follow(
    reader: Reader, after: Cursor = START, *, stop: threading.Event | None = None
) -> Iterator[Event]:
    """Every part recorded after the one at `after`, once each, in the order of recording.

    Ends when the feed does, or `stop` is set. A reader that begins again after a part that the
    ledger no longer has may receive others twice.

    Args:
        reader: Of this process or of a child; nobody else reads from it meanwhile.
        after: The newest part that is known; `START` for all.
        stop: Ends it within a quarter of a second.

    Yields:
        Events without thumbnails.
    """
    stop = stop or threading.Event()
    position, is_behind = 0, True
    while not stop.is_set():
        if is_behind:
            asked = perf_counter()
            events = reader.rows_after(after)
            took_s = perf_counter() - asked
            for event in events or ():
                after = cursor(event)
                if event.position > position:
                    position = event.position
                    yield event
            if events is None and reader.is_closed:
                return
            is_behind = events is None or bool(events)
            if is_behind:
                stop.wait(_RETRY_S if events is None else rest_s(took_s))
            continue
        item = reader.next(0.25)
        if item is None and reader.is_closed:
            return
        if isinstance(item, Gap):
            is_behind = True
        elif item is not None and item.position > position:
            after, position = cursor(item), item.position
            yield item


def rest_s(took_s: float) -> float:
    """How long who catches up rests after a question that took so long."""
    return min(_REST * took_s, _REST_MAX_S)


def cursor(event: Event) -> Cursor:
    """Where an event stands in the feed."""
    return event.epoch, event.sequence


def to_json(event: Event) -> dict[str, Any]:
    """An event without its thumbnail, for another process."""
    content: dict[str, Any] = _adapter().dump_python(event, mode="json", exclude={"thumbnail"})
    return content


def from_json(content: dict[str, Any]) -> Event:
    """What `to_json` gave."""
    return _adapter().validate_python(content)


@cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Event)


def _send(connection: socket.socket, content: Mapping[str, object]) -> None:
    body = json.dumps(content, separators=(",", ":")).encode()
    connection.sendall(_HEAD.pack(len(body)) + body)


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next frame; `None` at the end."""
    head = _exactly(connection, _HEAD.size)
    if head is None:
        return None
    (size,) = _HEAD.unpack(head)
    if size > _FRAME_MAX:
        raise ValueError(f"a frame of {size} bytes")
    body = _exactly(connection, size)
    if body is None:
        return None
    content: dict[str, Any] = json.loads(body)
    return content


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        some = connection.recv(size - len(data))
        if not some:
            return None
        data += some
    return bytes(data)
