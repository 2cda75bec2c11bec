"""One connection to an MQTT broker; paho is imported here and nowhere else.

    caller ── publish ──▶ paho ──▶ broker
    caller ◀── events ◀── paho's thread ◀── acknowledgements, loss, messages

paho's callbacks only put events into a queue. Each connection is a new paho client, so nothing
waits inside paho.
"""

import logging
import queue
import random
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.mqtt.message import Message
from agent.mqtt.security import (
    check_settings,
    expired_hint,
    password,
    plain,
    tls_context,
    tls_reason,
)
from agent.mqtt.settings import BrokerSettings
from engine.errors import BrokerError, ConfigurationError

_LOG: Final = logging.getLogger("atac_agent.mqtt")
ANSWER_S: Final = 10.0
"""How long a broker may take to answer a connection."""
FAILURE: Final = 0x80
"""Reason codes from here on are refusals."""
_PACKET_OVERHEAD: Final = 32
"""More than a PUBLISH needs besides its texts and payload."""
_PROPERTY_OVERHEAD: Final = 5
_RECEIVE_MAXIMUM: Final = 65_535
_TEXT_MAX_BYTES: Final = 65_535
_PAYLOAD_MAX_BYTES: Final = 268_000_000
_EVENTS: Final = (
    *("on_socket_open", "on_connect", "on_disconnect"),
    *("on_publish", "on_message", "on_subscribe"),
)
_PROPERTIES: Final[Callable[[int], Properties]] = Properties
"""paho leaves the type of its constructor out."""
_NO_ANSWER: Final = " before it was made: TLS on one side only, or set {place}.version: 3.1.1"
_WITH_WILL: Final = 0x04
_NO_RETAIN: Final = 0x9A
_NO_QOS: Final = 0x9B
_HINTS: Final = {
    0x84: "set {place}.version: 3.1.1",
    0x85: "the broker wants another client id: change agent.id",
    0x86: "check {place}.user and the password",
    0x87: "check {place}.user, the password and the broker's access rules",
    0x8E: "another client uses this id: give each agent its own agent.id",
    _NO_QOS: "let the broker take QoS 1, or set mqtt.max_qos: 0 and do without acknowledgements",
}
"""What to do about a reason code; `{place}` is where the settings stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A message from the broker. `is_unreadable`: paho could not parse the packet.

    `properties` are its user properties.
    """

    topic: str = ""
    payload: bytes = b""
    response_topic: str = ""
    correlation: bytes | None = None
    is_retained: bool = False
    is_unreadable: bool = False
    properties: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The broker's answer to a publication."""

    mid: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Connected:
    window: int
    largest: int | None
    keeps_retained: bool


@dataclass(frozen=True, slots=True)
class _Subscribed:
    pass


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection has ended."""

    reason: str
    code: int
    is_refusal: bool


_Event = _Connected | _Subscribed | Lost | Acknowledged
_E = TypeVar("_E", _Connected, _Subscribed, Lost)


class RetainError(BrokerError):
    """The broker takes no will that is to be kept, or hangs up at one without a reason."""


class Link:
    """One connection with a fresh paho client; a context manager.

    Entering connects and waits for the broker's answer, or raises `BrokerError`. `window` and
    `largest` are then the broker's and our limits together, and `keeps_retained` says whether it
    keeps messages for those who subscribe later; where not, none is sent as such.

    Args:
        settings: The broker and how to talk to it.
        client_id: The name of this client at the broker.
        window: How many publications may wait for their acknowledgement, if the broker lets them.
        will: What the broker publishes when this connection breaks.
        leaves_will: It publishes that also after a farewell, as far as MQTT 5 can say so.
        largest_heard: The largest packet that the broker may send, in bytes.
        most_heard: How many messages it may send before they are acknowledged.
        hear: Gets messages, in paho's thread; while it waits nothing more is read.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        *,
        window: int = 20,
        will: Message | None = None,
        leaves_will: bool = False,
        largest_heard: int | None = None,
        most_heard: int | None = None,
        hear: Callable[[Heard], None] = lambda _heard: None,
    ) -> None:
        self._settings = settings
        self._largest_heard = largest_heard
        self._most_heard = most_heard
        self._hear = hear
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._is_v5 = settings.version == "5"
        self.window = window
        self.largest: int | None = None
        self.keeps_retained = True
        self._will = will
        self._leaves_will = leaves_will
        self.has_asked = False
        """Whether a CONNECT has been sent."""
        self._has_connected = False
        self._client = _TolerantClient(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if self._is_v5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if self._is_v5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            transport=settings.transport,
        )
        self._client.ws_set_options(settings.path)
        self._client.unreadable = lambda: hear(Heard(is_unreadable=True))
        self._client.considered = lambda *answer: self._events.put(Acknowledged(*answer))
        self._client.connect_timeout = ANSWER_S / 2
        self._client.max_inflight_messages_set(0)  # the window is the caller's
        self._client.on_socket_open = _without_delay
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        if will is not None:
            properties = self._properties(will, PacketTypes.WILLMESSAGE)
            qos = min(will.qos, settings.qos)
            self._client.will_set(will.topic, will.payload, qos, will.retain, properties)

    def __enter__(self) -> Self:
        try:
            self._connect()
            self.has_asked = True
            answer = self._await(_Connected)
        except BaseException:
            self.close()
            raise
        self.window, self.largest = answer.window, answer.largest
        self.keeps_retained = answer.keeps_retained
        return self

    def __exit__(self, *error: object) -> None:
        # After an error the broker shall publish the will, so there is no farewell.
        self.close(says_farewell=error[0] is None)

    def close(self, *, says_farewell: bool = True) -> None:
        """End the connection and its thread; none of its events comes later."""
        if says_farewell and self._client.is_connected():
            has_code = self._is_v5 and self._leaves_will
            self._client.disconnect(
                ReasonCode(PacketTypes.DISCONNECT, identifier=_WITH_WILL) if has_code else None
            )
            with suppress(BrokerError):
                self._await(Lost, timeout_s=1.0)
        if (connection := _socket_of(self._client.socket())) is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()
        # Client and link name each other: without this paho's sockets would wait for the collector.
        for event in _EVENTS:
            setattr(self._client, event, None)
        self._client.unreadable = lambda: None
        self._client.considered = lambda *_: None

    def check(self, message: Message) -> None:
        """Raise `ValueError` for what no broker would take: it would hang up, each time again."""
        if not message.topic or set(message.topic) & set("+#"):
            raise ValueError(f"{message.topic[:80]!r} is no topic for a message")
        for text in _texts(message):
            if not text.isprintable() or len(text.encode()) > _TEXT_MAX_BYTES:
                raise ValueError(f"{text[:80]!r} cannot be sent as a text of MQTT")
        if message.qos not in {0, 1}:
            raise ValueError(f"there is no QoS {message.qos} here")
        if len(message.payload) > _PAYLOAD_MAX_BYTES:
            raise ValueError(f"{len(message.payload)} bytes are more than a packet holds")

    def publish(self, message: Message) -> int:
        """Hand `message` to paho; returns its packet id.

        When the connection has just gone, `acknowledged` raises in place of the acknowledgement.
        """
        return self._client.publish(
            message.topic,
            message.payload,
            min(message.qos, self._settings.qos),
            message.retain and self.keeps_retained,
            self._properties(message, PacketTypes.PUBLISH),
        ).mid

    def may_write(self, topic: str) -> str | None:
        """Why the broker would take no message on `topic`; `None` when it would. Nobody hears it.

        At QoS 2 a broker says whether it takes a message before it gives it to others, which it
        does only once it is told to. MQTT 3.1.1 has no way to say so.
        """
        mid = self._client.publish(topic, b"", qos=2).mid
        until = time.monotonic() + ANSWER_S
        while (left := until - time.monotonic()) > 0:
            for event in self.acknowledged(left):
                if isinstance(event, Lost):
                    raise self.error(event)
                if event.mid == mid:
                    return event.reason if event.code >= FAILURE else None
        raise BrokerError(f"{address(self._settings)}: no answer within {ANSWER_S:g} s")

    def allows(self, message: Message) -> bool:
        """Whether the broker takes a packet of this size; it would hang up on a larger one."""
        return self.largest is None or _size(message) <= self.largest

    def acknowledged(self, timeout_s: float) -> list[Acknowledged | Lost]:
        """Wait for acknowledgements, and give all that have come, at last perhaps the loss."""
        found: list[Acknowledged | Lost] = []
        while not (found and isinstance(found[-1], Lost)):
            try:
                event = self._events.get(block=timeout_s > 0, timeout=timeout_s)
            except queue.Empty:
                break
            if isinstance(event, Acknowledged | Lost):
                found.append(event)
            timeout_s = 0
        return found

    def lost(self) -> BrokerError | None:
        """Why the connection has ended, for those who only listen; `None` while it stands."""
        for event in self.acknowledged(0):
            if isinstance(event, Lost):
                return self.error(event)
        return None

    def subscribe(self, topic_filter: str, *, takes_retained: bool = True) -> None:
        """Hear a topic filter at QoS 1; raises `BrokerError` if the broker does not grant it.

        What the broker has kept can be left out with MQTT 5; with 3.1.1 it comes and is marked.
        """

        def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
            heard = Heard(
                topic=message.topic,
                payload=bytes(message.payload),
                response_topic=getattr(message.properties, "ResponseTopic", ""),
                correlation=getattr(message.properties, "CorrelationData", None),
                is_retained=message.retain,
                properties=tuple(getattr(message.properties, "UserProperty", ())),
            )
            self._hear(heard)

        def on_subscribe(
            _client: Client,
            _data: object,
            _mid: int,
            codes: list[ReasonCode],
            _properties: Properties | None,
        ) -> None:
            if codes[0].is_failure:
                self._events.put(Lost(f"refuses {topic_filter}: {codes[0]}", codes[0].value, True))
            else:
                self._events.put(_Subscribed())

        self._client.on_message = on_message
        self._client.on_subscribe = on_subscribe
        if takes_retained or not self._is_v5:
            self._client.subscribe(topic_filter, qos=self._settings.qos)
        else:
            # The broker keeps what it has, and what comes says whether it is to be kept.
            options = SubscribeOptions(
                qos=self._settings.qos, retainAsPublished=True, retainHandling=2
            )
            self._client.subscribe(topic_filter, options=options)
        self._await(_Subscribed)

    def error(self, lost: Lost) -> BrokerError:
        """What to raise for the loss of this connection."""
        place = self._settings.place
        hint = f"; {_HINTS[lost.code]}" if lost.code in _HINTS else expired_hint(self._settings)
        if not hint and self._is_v5 and not self._has_connected and not lost.is_refusal:
            hint = _NO_ANSWER
        message = f"{address(self._settings)}: {lost.reason}{hint.replace('{place}', place)}"
        # MQTT 3.1.1 has no words for it.
        is_silent = not self._is_v5 and not lost.is_refusal and not self._has_connected
        if self._will is not None and self._will.retain and (lost.code == _NO_RETAIN or is_silent):
            return RetainError(message, is_refusal=lost.is_refusal)
        return BrokerError(message, is_refusal=lost.is_refusal)

    def _connect(self) -> None:
        settings = self._settings
        try:
            word = password(settings)
            if settings.user is not None:
                self._client.username_pw_set(settings.user, word)
            if settings.tls is not None:
                self._client.tls_set_context(tls_context(settings.tls, settings.place))
            self._client.connect(
                settings.host, _port(settings), settings.keepalive_s, properties=self._limits()
            )
        except ssl.SSLError as error:
            reason = f"{address(settings)}: {tls_reason(error, settings)}"
            raise BrokerError(reason, is_refusal=True) from error
        except (OSError, ValueError) as error:
            raise BrokerError(f"{address(settings)}: {plain(error)}") from error
        except ConfigurationError as error:
            raise BrokerError(str(error), is_refusal=True) from error
        self._client.loop_start()

    def _await(self, kind: type[_E], timeout_s: float = ANSWER_S) -> _E:
        """Wait for an event of one kind; raises `BrokerError` if the connection ends first."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                is_old = self._is_v5 and not self._has_connected
                older = f"; is it one of MQTT 3.1.1? Then set {self._settings.place}.version: 3.1.1"
                hint = older if is_old else ""
                raise BrokerError(
                    f"{address(self._settings)}: no answer within {timeout_s:g} s{hint}"
                ) from None
            if isinstance(event, kind):
                return event
            if isinstance(event, Lost):
                raise self.error(event)

    def _limits(self) -> Properties | None:
        """What the broker shall not send us."""
        if not self._is_v5 or self._largest_heard is None:
            return None
        properties = _PROPERTIES(PacketTypes.CONNECT)
        properties.MaximumPacketSize = self._largest_heard
        if self._most_heard is not None:
            properties.ReceiveMaximum = self._most_heard
        return properties

    def _properties(self, message: Message, packet: int) -> Properties | None:
        if not self._is_v5:
            return None
        properties = _PROPERTIES(packet)
        properties.ContentType = message.content_type
        properties.PayloadFormatIndicator = int(message.is_text)
        if message.properties:
            properties.UserProperty = list(message.properties)
        if message.response_topic:
            properties.ResponseTopic = message.response_topic
        if message.correlation is not None:
            properties.CorrelationData = message.correlation
        return properties

    # ---- paho's callbacks: in its thread and under its locks, so they only enqueue

    def _on_connect(
        self,
        _client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._events.put(Lost(f"refused the connection: {reason}", reason.value, True))
            return
        theirs = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
        largest = getattr(properties, "MaximumPacketSize", None)
        if self._settings.qos > getattr(properties, "MaximumQoS", 1):
            self._events.put(Lost("takes no message with QoS 1", _NO_QOS, True))
            return
        keeps_retained = bool(getattr(properties, "RetainAvailable", 1))
        self._has_connected = True
        window = min(self.window, theirs)
        self._events.put(_Connected(window, largest, keeps_retained))

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            lost = Lost(f"ended the connection: {reason}", reason.value, reason.value in _HINTS)
        else:
            lost = Lost("the connection was lost", 0, False)
        self._events.put(lost)

    def _on_publish(
        self,
        _client: Client,
        _data: object,
        mid: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._events.put(Acknowledged(mid, reason.value, str(reason)))


class Subscriber:
    """Hears every message on topics that match `topic_filter`; a context manager.

    `hear(topic, payload)` is called in a thread of its own. Entering waits until the broker has
    accepted the subscription and raises `BrokerError` when it does not.
    """

    def __init__(
        self, settings: BrokerSettings, topic_filter: str, hear: Callable[[str, bytes], None]
    ) -> None:
        check_settings(settings)
        self._settings = settings
        self._filter = topic_filter
        self._hear = hear

    def __enter__(self) -> Self:
        name = f"atac-subscriber-{random.randrange(1 << 32):08x}"
        self._link = Link(
            self._settings, name, hear=lambda heard: self._hear(heard.topic, heard.payload)
        )
        self._link.__enter__()
        try:
            self._link.subscribe(self._filter)
        except BaseException:
            self._link.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()


def address(settings: BrokerSettings) -> str:
    """Host and port."""
    return f"{settings.host}:{_port(settings)}"


class _TolerantClient(Client):
    """A PUBLISH that paho cannot parse costs that message, not the connection.

    Without this each reconnection would get a retained one again, and end at once. Any other packet
    that it cannot parse ends the connection, where paho's thread would end and say nothing.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.unreadable: Callable[[], None] = lambda: None
        self.considered: Callable[[int, int, str], None] = lambda *_: None

    def _packet_handle(self) -> MQTTErrorCode:
        try:
            return super()._packet_handle()
        except Exception as error:  # noqa: BLE001 - whatever paho makes of such a packet
            _LOG.warning("a packet of the broker cannot be parsed: %s", plain(error))
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _handle_pubrec(self) -> MQTTErrorCode:
        # Only `may_write` asks at QoS 2, and goes no further.
        packet = self._in_packet["packet"]
        code = packet[2] if len(packet) > 2 else 0
        reason = ReasonCode(PacketTypes.PUBREC, identifier=code)
        self.considered(int.from_bytes(packet[:2], "big"), code, str(reason))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            return super()._handle_publish()
        except MalformedPacket:
            self.unreadable()
            qos, packet = self._in_packet["command"] >> 1 & 3, self._in_packet["packet"]
            after_topic = 2 + int.from_bytes(packet[:2], "big")
            if qos == 1 and len(packet) >= after_topic + 2:
                mid = int.from_bytes(packet[after_topic : after_topic + 2], "big")
                return self._send_puback(mid)
            return MQTTErrorCode.MQTT_ERR_SUCCESS


def _without_delay(_client: Client, _data: object, connection: Any) -> None:
    """Nagle's algorithm would hold back the end of each message: 40 ms with TLS."""
    if (inner := _socket_of(connection)) is not None:
        inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _socket_of(connection: Any) -> socket.socket | None:
    """The socket of a connection, or below that of a websocket."""
    inner = getattr(connection, "_socket", connection)
    return inner if isinstance(inner, socket.socket) else None


def _texts(message: Message) -> list[str]:
    """All texts of a publication but its payload."""
    pairs = (text for pair in message.properties for text in pair)
    return [message.topic, message.content_type, message.response_topic, *pairs]


def _size(message: Message) -> int:
    """The size of the PUBLISH packet in bytes, or a little more."""
    size = len(message.payload) + len(message.correlation or b"")
    size += sum(len(text.encode()) for text in _texts(message))
    return size + _PACKET_OVERHEAD + _PROPERTY_OVERHEAD * len(message.properties)


def _port(settings: BrokerSettings) -> int:
    plain, encrypted = (80, 443) if settings.transport == "websockets" else (1883, 8883)
    return settings.port or (encrypted if settings.tls else plain)
