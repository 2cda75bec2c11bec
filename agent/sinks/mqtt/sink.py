"""The MQTT sink: events become publications, and a PUBACK is a receipt.

    send, report ──▶ ready ── within the broker's Receive Maximum ──▶ link ──▶ broker
    receipts ◀── settled ◀── PUBACK with a reason code ◀── link

A message is delivered when the broker's acknowledgement says so, with a reason code below 0x80.
Requests come over a connection of their own (`agent/sinks/mqtt/requests.py`): nothing that
strangers may send reaches this one.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.mqtt.link import FAILURE, Acknowledged, Link, Lost, RetainError, address
from agent.mqtt.message import Message
from agent.mqtt.security import check_settings
from agent.part import Part
from agent.ports import Receipt
from agent.record.rows import THUMBNAIL, Delivery, Event
from agent.requests import Requests
from agent.sinks.mqtt.messages import Topics, delivered, fleet, health, state
from agent.sinks.mqtt.requests import MqttRequests
from agent.sinks.mqtt.settings import MqttSettings
from agent.station.status import FleetStatus, Status
from engine.errors import BrokerError

_LOG: Final = logging.getLogger("atac_agent.mqtt")
_NOT_KEPT: Final = (
    "the broker keeps no retained messages; who connects later does not hear whether the agent is "
    "online"
)
_PACKET_TOO_LARGE: Final = 0x95
_FAREWELL_S: Final = 1.0
_STEADY_S: Final = 10.0
_BRIEF_CONNECTIONS: Final = 3
_SAME_ID_HINT: Final = ", repeatedly; does another client use this id? Give each its own agent.id"
"""Not every broker says so when it ends a connection because its id has come again."""
_EARLY_S: Final = 0.1
"""What is looked at once a second is due so much early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A message to be published; `delivery` is `None` for what the ledger does not hold."""

    delivery: int | None
    message: Message


class MqttSink:
    """Publishes alarms, thumbnails, verdicts, presence and health.

    Args:
        settings: The broker and how to talk to it.
        agent_id: Whose messages these are.
        is_alarm: Whether an ended part is to be looked after.

    Raises:
        ConfigurationError: The settings cannot work.
    """

    def __init__(
        self, settings: MqttSettings, *, agent_id: str, is_alarm: Callable[[Part], bool]
    ) -> None:
        check_settings(settings)
        self.name: Final = settings.name
        self._settings = settings
        self._topics = Topics(agent_id=agent_id, template=settings.topics)
        self._client_id = f"atac-{agent_id}"
        self._is_alarm = is_alarm
        self._link: Link | None = None
        self._began = 0.0
        self._brief = 0
        self._lost: BrokerError | None = None
        self._ready: deque[_Ready] = deque()
        self._flight: dict[int, _Ready] = {}
        self._keeps_retained = True
        self._told: Status | None = None
        self._told_fleet: tuple[tuple[str, ...], FleetStatus] | None = None

    def items(self, part: Part) -> tuple[str, ...]:
        """An alarm with its thumbnail, and every verdict where that is configured."""
        return (
            *(("alarm", THUMBNAIL) if self._is_alarm(part) else ()),
            *(("verdict",) if self._settings.every_part else ()),
        )

    def listen(self, requests: Requests, replay: Callable[[str, int, int], int]) -> MqttRequests:
        """What takes requests, on a connection of its own."""
        return MqttRequests(self._settings, self._topics, requests, replay)

    def connect(self) -> int:
        """Connect, and say `online` before anything else."""
        self._ready.clear()
        self._flight.clear()
        self._lost = self._told_fleet = None
        offline = state(self._topics, online=False)
        link = self._linked(offline)
        try:
            link.__enter__()
        except RetainError:
            link = self._linked(replace(offline, retain=False))
            link.__enter__()
            link.keeps_retained = False
        if not link.keeps_retained and self._keeps_retained:
            _LOG.warning("%s: %s", self.name, _NOT_KEPT)
        self._keeps_retained = link.keeps_retained
        self._link, self._began = link, time.monotonic()
        if self._settings.home_assistant:
            from agent.sinks.mqtt.home_assistant import discovery  # noqa: PLC0415 - few want it

            self._say(discovery(self._topics))
        self._say(state(self._topics, online=True))
        return link.window

    def send(self, delivery: Delivery, event: Event) -> Receipt | None:
        """Publish one item as soon as the broker's Receive Maximum lets it."""
        link = self._connected()
        message = delivered(self._topics, delivery, event)
        link.check(message)
        if not link.allows(message):
            reason = f"packet too large, the broker allows {link.largest} bytes"
            return Receipt(delivery=delivery.id, refused=reason, code=_PACKET_TOO_LARGE)
        self._ready.append(_Ready(delivery=delivery.id, message=message))
        self._publish()
        return None

    def receipts(self, timeout_s: float) -> Sequence[Receipt]:
        """What the broker has acknowledged."""
        link = self._connected()
        receipts = []
        for event in link.acknowledged(timeout_s):
            match event:
                case Acknowledged(mid, code, reason):
                    flying = self._flight.pop(mid, None)
                    if flying is not None and flying.delivery is not None:
                        refused = reason if code >= FAILURE else None
                        receipts.append(
                            Receipt(delivery=flying.delivery, refused=refused, code=code)
                        )
                case Lost() as lost:
                    self._lost = self._error(link, lost)
                    receipts += self._blame_the_largest(lost)
        if self._lost is not None and not receipts:
            raise self._lost
        if self._lost is None:
            self._publish()
        return receipts

    def report(self, status: Status) -> None:
        """Health every `health_s` seconds, and at once when a fault comes or goes.

        What became of a desired state is said once for each connection and change.
        """
        self._connected()
        if status.fleet is not None:
            bundles = tuple(one.bundle_id for one in status.products.values())
            told = bundles or (status.bundle_id,), status.fleet
            if self._told_fleet != told:
                self._told_fleet = told
                self._say(fleet(self._topics, status))
        before = self._told
        if (
            before is None
            or status.uptime_s - before.uptime_s >= self._settings.health_s - _EARLY_S
            or status.faults != before.faults
            or status.is_last
        ):
            self._told = status
            self._say(health(self._topics, self.name, status, before))

    def disconnect(self, *, is_stopping: bool) -> None:
        """Leave; a broker that is not told publishes the will."""
        link, self._link = self._link, None
        if link is None:
            return
        says_farewell = is_stopping and self._says_offline(link)
        link.close(says_farewell=says_farewell)

    def _says_offline(self, link: Link) -> bool:
        """Within the window too; where the broker leaves it full, its will says `offline`."""
        offline = _Ready(delivery=None, message=state(self._topics, online=False))
        self._ready.append(offline)
        until = time.monotonic() + _FAREWELL_S
        while offline in self._ready or offline in self._flight.values():
            left = until - time.monotonic()
            if left <= 0:
                return False
            self._link = link
            try:
                self._publish()
                self.receipts(left)
            except BrokerError:
                return False
            finally:
                self._link = None
        return True

    def _say(self, message: Message) -> None:
        """Publish past the ledger, before what it holds; of each topic only the latest waits."""
        others = [one for one in self._ready if one.message.topic != message.topic]
        self._ready = deque([_Ready(delivery=None, message=message), *others])
        self._publish()

    def _publish(self) -> None:
        """Publish what is ready, within the window."""
        link = self._connected()
        while self._ready and len(self._flight) < link.window:
            one = self._ready.popleft()
            self._flight[link.publish(one.message)] = one

    def _linked(self, will: Message) -> Link:
        return Link(self._settings, self._client_id, window=self._settings.window, will=will)

    def _connected(self) -> Link:
        if self._lost is not None:
            raise self._lost
        if self._link is None:
            raise BrokerError(f"{address(self._settings)}: not connected")
        return self._link

    def _error(self, link: Link, lost: Lost) -> BrokerError:
        is_brief = time.monotonic() - self._began < _STEADY_S
        self._brief = self._brief + 1 if is_brief else 0
        error = link.error(lost)
        hint = _SAME_ID_HINT if self._brief >= _BRIEF_CONNECTIONS else ""
        return BrokerError(f"{error}{hint}", is_refusal=error.is_refusal)

    def _blame_the_largest(self, lost: Lost) -> list[Receipt]:
        """A broker that hangs up on a large packet would do so for ever: refuse that one."""
        flying = [one for one in self._flight.values() if one.delivery is not None]
        if lost.code != _PACKET_TOO_LARGE or not flying:
            return []
        largest = max(flying, key=lambda one: len(one.message.payload))
        assert largest.delivery is not None
        return [Receipt(delivery=largest.delivery, refused=lost.reason, code=lost.code)]
