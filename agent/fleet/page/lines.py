"""What each line of a fleet has said last, and what is wrong with it.

How a line is follows from what its agent says, or from its silence. The worst comes first: silent,
faulty, a bundle that was not taken, drift and what else should be looked at; then lines that change
and lines that are well.
"""

import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final

from agent.ports import Clock

_SILENT_S: Final = 60.0
_CLOCK_OFF_S: Final = 300.0
_HOUR_S: Final = 3600.0
_STEP_S: Final = 300.0
_OLD_PROMISE_DAYS: Final = 180
_DRIFT: Final = "drift"
_NOT_TAKEN: Final = frozenset({"refused", "rolled back"})
_CHANGING: Final = frozenset({"pulling", "calibrating", "shadowing", "on trial"})
_FOREIGN_MAX: Final = 10_000
"""Lines that are on a broker and not in the plan; more are not shown."""


class Condition(IntEnum):
    """How a line is, the worst first."""

    SILENT = 0
    FAULT = 1
    NOT_TAKEN = 2
    WATCH = 3
    CHANGING = 4
    WELL = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One bundle of a line with products, as it is shown."""

    place: str
    bundle: str | None = None
    desired: str | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line as it is shown; `None` is what is not known."""

    agent: str
    site: str
    condition: Condition
    reasons: tuple[str, ...] = ()
    bundle: str | None = None
    desired: str | None = None
    serial: int | None = None
    state: str | None = None
    changed: int | None = None
    judged: int | None = None
    promise: float | None = None
    promise_days: int | None = None
    is_drifting: bool = False
    parts_per_minute: float | None = None
    ng: float | None = None
    products: tuple[Product, ...] = ()

    @property
    def order(self) -> tuple[int, str, str]:
        """The worst first."""
        return self.condition, self.site, self.agent


@dataclass(slots=True, kw_only=True)
class _Heard:
    """What came of one line; `fleet` is what its broker keeps.

    `counts` has all parts and NG ones of the last hour's healths.
    """

    site: str
    is_offline: bool = False
    fleet: Mapping[str, Any] | None = None
    health: Mapping[str, Any] | None = None
    at: float = 0.0
    clock_off_s: float = 0.0
    counts: deque[tuple[float, str, int, int]] = field(default_factory=lambda: deque(maxlen=13))


class Lines:
    """All lines of a fleet; thread-safe.

    Args:
        planned: Those that there should be.
        clock: Says how old a message is.
    """

    def __init__(self, planned: Iterable[str], clock: Clock) -> None:
        self._planned = frozenset(planned)
        self._clock = clock
        self._began = clock.now()
        self._heard: dict[str, _Heard] = {}
        self._lock = threading.Lock()

    def hear(self, site: str, agent: str, what: str, payload: bytes) -> None:
        """Take a message of a line: `state`, `fleet` or `health`; what is none is left alone."""
        with self._lock:
            is_known = agent in self._heard or agent in self._planned
            if not is_known and len(self._heard) >= _FOREIGN_MAX:
                return
            if what == "state":
                line = self._heard.setdefault(agent, _Heard(site=site))
                line.site, line.is_offline = site, payload == b"offline"
                return
            try:
                health = json.loads(payload)
                if what == "fleet":
                    kept = {
                        "bundle_id": health["bundle_id"],
                        "bundles": _mapping(health.get("bundles")),
                        "fleet": _mapping(health["fleet"]),
                    }
                    line = self._heard.setdefault(agent, _Heard(site=site))
                    line.site, line.fleet = site, kept
                    return
                ended = sum(health["counts"].values())
                snapshot = str(health["epoch"]), ended, int(health["counts"]["NG"])
                said = datetime.fromisoformat(health["time"]).timestamp()
            except (ValueError, KeyError, TypeError, AttributeError):
                return
            now = self._clock.now()
            line = self._heard.setdefault(agent, _Heard(site=site))
            line.site, line.health, line.at = site, health, now
            line.clock_off_s = said - self._clock.utc_ns() / 1e9
            if not line.counts or now - line.counts[-1][0] >= _STEP_S:
                line.counts.append((now, *snapshot))

    def all(self) -> list[Line]:
        """Every line, the worst first."""
        with self._lock:
            now = self._clock.now()
            today = datetime.fromtimestamp(self._clock.utc_ns() / 1e9, UTC)
            names = self._planned | self._heard.keys()
            lines = [self._line(name, self._heard.get(name), now, today) for name in names]
        return sorted(lines, key=lambda line: line.order)

    def _line(self, agent: str, heard: _Heard | None, now: float, today: datetime) -> Line:
        silence = self._silence(heard, now)
        health = None if heard is None else heard.health or heard.fleet
        if heard is None or health is None:
            site = "" if heard is None else heard.site
            return Line(
                agent=agent, site=site, condition=Condition.SILENT, reasons=(silence or "",)
            )
        # What the broker keeps came with the change, and health perhaps before it.
        kept = heard.fleet if heard.fleet is not None and health.get("fleet") else health
        fleet = _mapping(kept.get("fleet"))
        promise = _mapping(fleet.get("promise"))
        made_at = promise.get("calibrated_at")
        days = None if made_at is None else max(0, (today - _moment(made_at)).days)
        faults = [str(reason) for reason in health.get("reasons", ())]
        drift = [reason for reason in faults if reason.startswith(_DRIFT)]
        watched = [*drift, *_watched(heard, days, promise)]
        state = fleet.get("state")
        not_taken = state in _NOT_TAKEN
        rate = None if silence is not None else health.get("parts_per_second")
        others = [reason for reason in faults if reason not in drift]
        if silence is not None:
            condition, reasons = Condition.SILENT, [silence]
        elif others:
            condition, reasons = Condition.FAULT, others
        elif not_taken:
            condition, reasons = Condition.NOT_TAKEN, [str(fleet.get("reason") or state)]
        elif watched:
            condition, reasons = Condition.WATCH, watched
        elif state in _CHANGING:
            condition, reasons = Condition.CHANGING, [str(state)]
        else:
            condition, reasons = Condition.WELL, []
        return Line(
            agent=agent,
            site=heard.site,
            condition=condition,
            reasons=tuple(reasons),
            bundle=kept.get("bundle_id"),
            desired=fleet.get("bundle"),
            serial=fleet.get("serial"),
            state=state,
            changed=fleet.get("changed_verdicts"),
            judged=fleet.get("judged"),
            promise=promise.get("max_false_reject"),
            promise_days=days,
            is_drifting=bool(drift),
            parts_per_minute=None if rate is None else 60.0 * float(rate),
            ng=None if heard.health is None else _ng(heard.health, heard.counts, now),
            products=tuple(_products(_mapping(kept.get("bundles")), fleet)),
        )

    def _silence(self, heard: _Heard | None, now: float) -> str | None:
        if heard is not None and heard.is_offline:
            return "offline: its broker says so"
        if heard is not None and heard.health is not None:
            silent_s = now - heard.at
            return f"silent for {_span(silent_s)}" if silent_s > _SILENT_S else None
        if now - self._began < _SILENT_S:
            return "nothing heard yet"
        return "nothing heard; is its agent on another broker?"


def _products(in_force: Mapping[str, Any], fleet: Mapping[str, Any]) -> Iterator[Product]:
    told = _mapping(fleet.get("products"))
    for place in sorted({**in_force, **told}):
        desired = _mapping(told.get(place))
        yield Product(
            place=place,
            bundle=in_force.get(place),
            desired=desired.get("bundle"),
            state=desired.get("state"),
        )


def _watched(heard: _Heard, days: int | None, promise: Mapping[str, Any]) -> list[str]:
    found = []
    if abs(heard.clock_off_s) > _CLOCK_OFF_S:
        side = "ahead" if heard.clock_off_s > 0 else "behind"
        found.append(f"its clock is {_span(abs(heard.clock_off_s))} {side}")
    if promise.get("is_proved") is False:
        found.append("too few good parts for its promise")
    if days is not None and days > _OLD_PROMISE_DAYS:
        found.append(f"its promise is {days} days old")
    return found


def _ng(
    health: Mapping[str, Any], counts: Iterable[tuple[float, str, int, int]], now: float
) -> float | None:
    """The share of NG parts since the oldest health of the last hour; of all, where that is new."""
    ended, ng = int(sum(health["counts"].values())), int(health["counts"]["NG"])
    for at, epoch, before, before_ng in counts:
        if now - at <= _HOUR_S and epoch == health["epoch"] and ended > before:
            return max(0.0, (ng - before_ng) / (ended - before))
    return ng / ended if ended else None


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _moment(text: object) -> datetime:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.now(UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
