"""What happens now: the newest status, the newest parts, and who looks at them.

    agent ── status, live frames ──▶ Now ── versions ──▶ any number of browsers

Browsers are told of versions, not given a queue each: one that has gone or reads slowly holds
nothing, and misses only what is old.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agent.record.rows import Event
from agent.services.page.history import Filters, History, Row
from agent.shifts import shift_began_ns

STRIP: Final = 200
"""Scores on the line's screen."""
TILES: Final = 20
REJECTED: Final = 12
_LEASE_S: Final = 5.0
_QUICK: Final = 5.0
"""Parts a second of which nobody sees each one: the screen shows some, and Review has all."""
_PACE_S: Final = 0.2
_QUICK_PACE_S: Final = 1.0
_OLD_NS: Final = 5_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One of the newest parts."""

    number: int
    """Counts them in this process."""
    epoch: str
    sequence: int
    camera: str
    part_id: str | None
    state: str
    reason: str
    score: float | None
    threshold: float | None
    triggered_ns: int
    has_thumbnail: bool

    @property
    def id(self) -> str:
        """Names the part in addresses."""
        return f"{self.epoch}/{self.sequence}"


class Now:
    """The newest of everything; thread-safe."""

    def __init__(
        self,
        history: History,
        shifts: tuple[str, ...],
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history = history
        self._shifts = shifts
        self._clock = clock
        self._steady = steady
        self._lock = threading.Lock()
        self._number = 0
        self._newest: deque[Seen] = deque(maxlen=STRIP)
        self._tiles: deque[Seen] = deque(maxlen=TILES)
        self._pictured: deque[tuple[str, int]] = deque(maxlen=TILES)
        self._rejected: deque[Seen] = deque(maxlen=REJECTED)
        self._rejected_next: deque[Seen] = deque(maxlen=REJECTED)
        self._rejected_at = 0.0
        self._arrived: float | None = None
        self._shift_ns = 0
        self._shift: Counter[str] = Counter()

        self._later: deque[Event] = deque(maxlen=1000)
        """Parts that the newest status does not count yet."""
        self.status: dict[str, Any] | None = None
        self.version = 0
        self.is_quick = False
        """Whether more parts come than people can look at."""
        self._looked: float | None = None
        for row in reversed(history.parts(Filters(), STRIP)):
            self._keep(row, row.state)
        self._rejected.extend(self._rejected_next)
        self._rejected_next.clear()
        for row in reversed(history.parts(Filters(queue="ng"), REJECTED)):
            if row.id not in {seen.id for seen in self._rejected}:
                self._rejected.append(self._seen(row, row.state))
        self._rejected = deque(
            sorted(self._rejected, key=lambda seen: seen.triggered_ns), maxlen=REJECTED
        )

    @property
    def pace_s(self) -> float:
        """How often, at most, browsers are shown something new."""
        return _QUICK_PACE_S if self.is_quick else _PACE_S

    def told(self, status: dict[str, Any]) -> None:
        """The agent's status."""
        with self._lock:
            has_changed = self.status is None or any(
                status[name] != self.status[name] for name in status if name not in _CLOCKS
            )
            if self.status is not None and (took_ns := status["time_ns"] - self.status["time_ns"]):
                came = _triggers(status) - _triggers(self.status)
                self.is_quick = came * 1e9 > _QUICK * abs(took_ns)
            self.status = status
            self.version += has_changed
            while self._later and self._later[0].decided_ns <= status["time_ns"]:
                self._later.popleft()

    def add(self, event: Event) -> None:
        """A part that was recorded."""
        with self._lock:
            self._keep(event, event.state.value)
            self._arrived = self._steady()
            if event.triggered_ns >= self._shift_ns > 0:
                self._shift[event.state.value] += 1
                self._later.append(event)
            self.version += 1

    def newest(self, count: int, *, after: int = 0) -> list[Seen]:
        """The newest parts after the one of this number, the newest first."""
        with self._lock:
            found = [seen for seen in self._newest if seen.number > after]
        return found[::-1][:count]

    def pictured(self, epoch: str, sequence: int) -> None:
        """There is a live picture of this part, which may not have been added yet."""
        with self._lock:
            self._pictured.append((epoch, sequence))
            self._tiles.extend(
                seen
                for seen in self._newest
                if self.is_quick and (seen.epoch, seen.sequence) == (epoch, sequence)
            )

    def tiles(self) -> list[Seen]:
        """The newest parts to show, the newest first; of a quick line those with a live picture."""
        with self._lock:
            if self._tiles and (
                self._newest[-1].triggered_ns - self._tiles[-1].triggered_ns < _OLD_NS
            ):
                return list(self._tiles)[::-1]
            return list(self._newest)[: -TILES - 1 : -1]

    def rejected(self) -> list[Seen]:
        """The newest NG parts, the newest first; those of a quick line come one by one."""
        with self._lock:
            now = self._steady()
            while self._rejected_next and (
                not self.is_quick or now - self._rejected_at >= _QUICK_PACE_S
            ):
                self._rejected.append(self._rejected_next.popleft())
                self._rejected_at = now
            return list(self._rejected)[::-1]

    def cameras(self) -> list[str]:
        """The names of the cameras of this run and epoch; their places are their numbers."""
        return [] if self.status is None else list(self.status["cameras"])

    def since_last_s(self) -> float | None:
        """How long no part has come; `None`: there has been none."""
        with self._lock:
            if self._arrived is not None:
                return self._steady() - self._arrived
            if self._newest:
                return max(0.0, self._clock() - self._newest[-1].triggered_ns / 1e9)
            return None

    def look(self) -> None:
        """A browser that shows the line has taken what it was sent."""
        self._looked = self._steady()

    @property
    def is_watched(self) -> bool:
        """Whether a browser shows the line; one that takes nothing more does not."""
        return self._looked is not None and self._steady() - self._looked < _LEASE_S

    def counts(self) -> Counter[str]:
        """The parts of this ledger's epoch that have ended, by state, as the status has them."""
        counts: Counter[str] = Counter()
        for camera in (self.status or {"cameras": {}})["cameras"].values():
            counts.update(camera["counts"])
        return counts

    def shift(self) -> tuple[int, Counter[str]]:
        """When this shift began, and its parts by state, those that the status counts.

        Where all parts of the ledger are of this shift, they are the status's own.
        """
        began_ns = shift_began_ns(self._clock(), self._shifts)
        if began_ns != self._shift_ns:
            self._history.flush()
            counts = self._history.counts_since(began_ns)
            with self._lock:
                self._shift_ns, self._shift = began_ns, counts
                self._later.clear()
        is_young = self._history.begins_after(began_ns)
        with self._lock:
            if is_young and self.status is not None:
                return self._shift_ns, self.counts()
            return self._shift_ns, self._shift - Counter(each.state.value for each in self._later)

    def _keep(self, part: Event | Row, state: str) -> None:
        seen = self._seen(part, state)
        self._newest.append(seen)
        if not self.is_quick or (seen.epoch, seen.sequence) in self._pictured:
            self._tiles.append(seen)
        if seen.state == "NG":
            self._rejected_next.append(seen)

    def _seen(self, part: Event | Row, state: str) -> Seen:
        self._number += 1
        return Seen(
            number=self._number,
            epoch=part.epoch,
            sequence=part.sequence,
            camera=part.camera,
            part_id=part.part_id,
            state=state,
            reason=part.reason,
            score=part.score,
            threshold=part.threshold,
            triggered_ns=part.triggered_ns,
            has_thumbnail=part.has_thumbnail,
        )


def _triggers(status: dict[str, Any]) -> int:
    return sum(camera["triggers"] for camera in status["cameras"].values())


_CLOCKS: Final = {"time_ns", "uptime_s", "age_s", "in_hand_s", "latencies"}
"""What changes from one status to the next although nothing has happened."""
