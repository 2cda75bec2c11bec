"""The Sparkplug B sink: the agent is an edge node, each of its cameras a device.

    connect ─▶ will: NDEATH(bdSeq) ─▶ commands subscribed ─▶ NBIRTH, DBIRTH each ─▶ NDATA, DDATA
                                                                 ▲── rebirth asked for ──┘

Sparkplug sends at QoS 0: a receipt means that a message was handed to the connection, not that
anybody has it. What was recorded while there was no connection is sent later, as historical. Who
must not miss a part takes the MQTT sink, whose deliveries are acknowledged.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal

from agent.mqtt.link import Acknowledged, Heard, Link, Lost, address
from agent.mqtt.message import Message
from agent.mqtt.security import check_settings
from agent.part import Part
from agent.ports import Receipt
from agent.record.rows import Delivery, Event
from agent.requests import Requests, Tally
from agent.sinks.mqtt.requests import Budget
from agent.sinks.sparkplug import metrics
from agent.sinks.sparkplug.payload import DataType, Metric, booleans, encoded
from agent.sinks.sparkplug.settings import SparkplugSettings
from agent.station.status import Status
from engine.errors import BrokerError

_LOG: Final = logging.getLogger("atac_agent.sparkplug")
_ITEM: Final = "part"
_NUMBERS: Final = 256
"""`seq` and `bdSeq` count up to 255, and from 0 again."""
_LARGEST_HEARD: Final = 16_384
_MOST_HEARD: Final = 10
_REBIRTH_S: Final = 1.0
"""From one birth to the next, however often one is asked for."""
_FAREWELL_S: Final = 1.0
_HOST_S: Final = 2.0
"""How long to wait for the retained word of the primary host."""
_LOOK_S: Final = 0.1
_EARLY_S: Final = 0.1
_PER_S: Final = 20.0
_BURST: Final = 50.0
_PAUSE_S: Final = 0.02


class SparkplugSink:
    """Tells a plant's namespace of the agent, its cameras and their parts.

    Args:
        settings: The broker, and who the agent is there.
        agent_id: Whose events these are; the edge node's name unless another is set.
        is_alarm: Whether an ended part has to be looked after.

    Raises:
        ConfigurationError: The settings cannot work.
    """

    def __init__(
        self, settings: SparkplugSettings, *, agent_id: str, is_alarm: Callable[[Part], bool]
    ) -> None:
        check_settings(settings)
        self.name: Final = settings.name
        self._settings = settings
        self._node = settings.node or agent_id
        self._client_id = f"atac-{agent_id}-sparkplug"
        self._is_alarm = is_alarm
        self._commands = Tally()
        self._budget = Budget(_PER_S, _BURST)
        self._heard: deque[Heard] = deque(maxlen=_MOST_HEARD)
        self._states: deque[Heard] = deque(maxlen=_MOST_HEARD)
        self._link: Link | None = None
        self._lost: BrokerError | None = None
        self._began_ns = 0
        self._bd_seq = -1
        self._seq = 0
        self._born: frozenset[str] | None = None  # the devices of the birth; `None` before it
        self._born_at = 0.0
        self._is_rebirth_due = False
        self._waits_for_host = False
        self._host_said_at = 0.0
        self._status: Status | None = None
        self._told: dict[str | None, metrics.Values] = {}
        self._told_at = 0.0
        self._newest: dict[str, Event] = {}
        self._ready: deque[tuple[Delivery, Event]] = deque()
        self._flight: dict[int, int] = {}

    def items(self, part: Part) -> tuple[str, ...]:
        """Every part, or alarms alone."""
        return (_ITEM,) if self._settings.parts == "all" or self._is_alarm(part) else ()

    def listen(self, _requests: Requests, _replay: Callable[[str, int, int], int]) -> Tally:
        """Rebirth is all that a host may ask, and it comes over the sink's own connection."""
        return self._commands

    def connect(self) -> int:
        """Connect with the next will, subscribe to commands, then tell that the node is there.

        While the primary host is away the connection stays, and each call waits for its word again.
        """
        self._ready.clear()
        self._flight.clear()
        self._lost = self._born = None
        self._is_rebirth_due = False
        link = self._link or self._opened()
        self._await_host(link)
        self._began_ns = time.time_ns()
        if self._status is not None:
            self._bear(self._status)
        return link.window

    def _opened(self) -> Link:
        """A connection that hears commands, and the primary host where there is one."""
        self._heard.clear()
        self._states.clear()
        before, self._bd_seq = self._bd_seq, (self._bd_seq + 1) % _NUMBERS
        link = Link(
            self._settings,
            self._client_id,
            window=self._settings.window,
            will=self._death(),
            leaves_will=True,
            largest_heard=_LARGEST_HEARD,
            most_heard=_MOST_HEARD,
            hear=self._hear,
        )
        try:
            link.__enter__()
        except BrokerError:
            self._bd_seq = self._bd_seq if link.has_asked else before
            raise
        self._link = link
        for topic_filter in (self._topic("NCMD"), self._topic("DCMD", "+")):
            link.subscribe(topic_filter)
        if self._settings.primary_host is not None:
            link.subscribe(self._host_topic)
        return link

    def send(self, delivery: Delivery, event: Event) -> Receipt | None:
        """Send one part, once the node has been born."""
        self._connected()
        if self._born is not None and event.camera not in self._born:
            return Receipt(delivery=delivery.id, refused=f"there is no camera {event.camera} now")
        self._ready.append((delivery, event))
        self._publish_parts()
        return None

    def receipts(self, timeout_s: float) -> Sequence[Receipt]:
        """What has been handed to the connection; obeys what hosts have asked meanwhile."""
        link = self._connected()
        receipts = []
        for event in link.acknowledged(timeout_s):
            match event:
                case Acknowledged(mid):
                    if (delivery := self._flight.pop(mid, None)) is not None:
                        receipts.append(Receipt(delivery=delivery))
                case Lost() as lost:
                    self._lost = link.error(lost)
        if self._lost is None:
            self._obey(link)
        if self._lost is not None and not receipts:
            raise self._lost
        return receipts

    def report(self, status: Status) -> None:
        """Tell what has changed, every `health_s` seconds and at once when a fault does."""
        self._connected()
        before, self._status = self._status, status
        if self._is_rebirth_due:
            return  # all of it comes with the birth
        if self._born is None or self._born != frozenset(status.cameras):
            self._bear(status)
            return
        is_due = status.uptime_s - self._told_at >= self._settings.health_s - _EARLY_S
        is_news = before is None or before.faults != status.faults
        if is_due or is_news or status.is_last:
            self._tell(status)

    def disconnect(self, *, is_stopping: bool) -> None:
        """Leave with a death; a broker that is not told publishes the will."""
        if self._waits_for_host and not is_stopping:
            return
        link, self._link = self._link, None
        if link is not None:
            link.close(says_farewell=is_stopping and self._has_died(link))
        self._born = None

    # ---- births, data, death

    def _bear(self, status: Status) -> None:
        """The birth of the node and of all devices: every metric that there will be."""
        link, now = self._connected(), _now_ms()
        self._seq = 0
        self._told = {None: metrics.node(status)}
        control = (
            Metric(name="bdSeq", datatype=DataType.INT64, value=self._bd_seq, time_ms=now),
            Metric(name=metrics.REBIRTH, datatype=DataType.BOOLEAN, value=False, time_ms=now),
        )
        self._say(link, "NBIRTH", None, (*control, *metrics.at(self._told[None], now)))
        for name, camera in status.cameras.items():
            self._told[name] = metrics.camera(camera)
            values = {**self._told[name], **metrics.part(self._newest.get(name))}
            self._say(link, "DBIRTH", name, metrics.at(values, now))
        self._born = frozenset(status.cameras)
        self._born_at, self._told_at = time.monotonic(), status.uptime_s
        self._is_rebirth_due = False
        self._publish_parts()

    def _tell(self, status: Status) -> None:
        link, now = self._connected(), _now_ms()
        self._told_at = status.uptime_s
        current: dict[str | None, metrics.Values] = {None: metrics.node(status)}
        current |= {name: metrics.camera(each) for name, each in status.cameras.items()}
        for device, values in current.items():
            if news := metrics.changed(values, self._told[device]):
                kind = "NDATA" if device is None else "DDATA"
                self._say(link, kind, device, metrics.at(news, now))
        self._told = current

    def _publish_parts(self) -> None:
        link = self._connected()
        while self._born is not None and self._ready and not self._is_rebirth_due:
            delivery, event = self._ready.popleft()
            before = self._newest.get(event.camera)
            is_newest = before is None or event.position > before.position
            is_historical = event.decided_ns < self._began_ns or not is_newest
            if is_newest:
                self._newest[event.camera] = event
            values = metrics.at(
                metrics.part(event), event.decided_ns // 1_000_000, is_historical=is_historical
            )
            self._flight[self._say(link, "DDATA", event.camera, values)] = delivery.id

    def _say(self, link: Link, kind: str, device: str | None, told: tuple[Metric, ...]) -> int:
        """Publish the next message of this session."""
        has_types = kind.endswith("BIRTH") or self._settings.types_in_data
        payload = encoded(told, time_ms=_now_ms(), seq=self._seq, has_types=has_types)
        self._seq = (self._seq + 1) % _NUMBERS
        return link.publish(_message(self._topic(kind, device), payload, qos=0))

    def _death(self) -> Message:
        now = _now_ms()
        number = Metric(name="bdSeq", datatype=DataType.INT64, value=self._bd_seq, time_ms=now)
        return _message(self._topic("NDEATH"), encoded((number,), time_ms=now, seq=None), qos=1)

    def _has_died(self, link: Link) -> bool:
        """Say that the devices go, and the node; whether the broker has heard it."""
        for device in sorted(self._born or ()):
            self._say(link, "DDEATH", device, ())
        mid, until = link.publish(self._death()), time.monotonic() + _FAREWELL_S
        while (left := until - time.monotonic()) > 0:
            for event in link.acknowledged(left):
                if isinstance(event, Lost):
                    return False
                if event.mid == mid:
                    return True
        return False

    def _topic(self, kind: str, device: str | None = None) -> str:
        levels = ["spBv1.0", self._settings.group, kind, self._node]
        levels += [] if device is None else [device if device == "+" else as_level(device)]
        return "/".join(levels)

    # ---- what hosts say

    def _await_host(self, link: Link) -> None:
        """Go on only while the primary host is online, where there is one."""
        if self._settings.primary_host is None:
            return
        self._waits_for_host = False
        until = time.monotonic() + _HOST_S
        while time.monotonic() < until:
            for event in link.acknowledged(0.05):
                if isinstance(event, Lost):
                    raise link.error(event)
            while self._states:
                if self._is_online(self._states.popleft()):
                    return
        self._waits_for_host = True
        raise self._host_is_away()

    @property
    def _host_topic(self) -> str:
        return f"spBv1.0/STATE/{self._settings.primary_host}"

    def _is_online(self, heard: Heard) -> bool | None:
        """What the primary host says of itself; `None` where that is nothing."""
        try:
            said = json.loads(heard.payload)
            online, at = said["online"], said["timestamp"]
        except (ValueError, KeyError, TypeError, RecursionError):
            online = at = None
        is_number = isinstance(at, int | float) and not isinstance(at, bool)
        # What is older than what it said before is a will that came late, or forged.
        if not isinstance(online, bool) or not is_number or at < self._host_said_at:
            self._commands.refused += 1
            return None
        self._host_said_at = at
        return online

    def _host_is_away(self) -> BrokerError:
        where = address(self._settings)
        said = f"{where}: the primary host {self._settings.primary_host} is not online"
        return BrokerError(said, retry_s=_LOOK_S)

    def _hear(self, heard: Heard) -> None:
        """In paho's thread: keep it within the budget; above it nothing is read for a moment."""
        if heard.topic == self._host_topic and len(heard.payload) <= _LARGEST_HEARD:
            self._states.append(heard)  # no flood of commands may push it out
        elif self._budget.take(0) and len(heard.payload) <= _LARGEST_HEARD:
            self._heard.append(heard)
        else:
            self._commands.refused += 1
            time.sleep(_PAUSE_S)

    def _obey(self, link: Link) -> None:
        while self._states:
            if self._is_online(self._states.popleft()) is False:
                self._lost = self._host_is_away()
                link.close(says_farewell=self._has_died(link))
                self._link = None
                return
        while self._heard:
            if _asks_for_rebirth(self._heard.popleft(), self._topic("NCMD")):
                self._commands.accepted += 1
                self._is_rebirth_due = True
            else:
                self._commands.refused += 1
        is_early = time.monotonic() - self._born_at < _REBIRTH_S
        if self._is_rebirth_due and self._born is not None and self._status and not is_early:
            self._bear(self._status)

    def _connected(self) -> Link:
        if self._lost is not None:
            raise self._lost
        if self._link is None:
            raise BrokerError(f"{address(self._settings)}: not connected")
        return self._link


def _asks_for_rebirth(heard: Heard, topic: str) -> bool:
    try:
        asked = booleans(heard.payload)
    except ValueError as error:
        _LOG.info("sparkplug: a command cannot be read: %s", error)
        return False
    return not heard.is_unreadable and heard.topic == topic and asked.get(metrics.REBIRTH, False)


def _message(topic: str, payload: bytes, *, qos: Literal[0, 1]) -> Message:
    return Message(topic=topic, payload=payload, qos=qos, content_type="application/protobuf")


def as_level(name: str) -> str:
    """A camera's name as a level of a topic, where some characters have a meaning."""
    return "".join(f"%{ord(c):02X}" if c in "%/+#" else c for c in name)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
