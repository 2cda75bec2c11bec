"""MQTT: the agent's one connection to its broker, and the sender that empties the outbox.

    ledger ── commit ──▶ wake ─┐
    publish_now ───────▶ wake ─┼──▶ events ──▶ sender thread ── window ──▶ paho ──▶ broker
    paho's thread ─ PUBACK, loss ─┘                 └── delivered, refused ──▶ ledger

The sender thread owns the connection and the window of unacknowledged messages; paho's callbacks
only put events into a queue. A message is delivered when the broker's acknowledgement says so,
with a reason code below 0x80. Each connection is a new paho client, so nothing waits inside paho.
"""

import json
import logging
import os
import queue
import random
import secrets
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.certificate import valid_until
from agent.ledger import Ledger
from agent.ledger_file import OutboxMessage
from agent.messages import Message, state, topic, utc
from agent.outbox import Outbox
from agent.requests import (
    REQUEST_MAX_BYTES,
    Asked,
    RequestError,
    Requests,
    request_json,
)
from agent.settings import Config
from agent.settings_file import read_text
from agent.sinks.mqtt.settings import Command, MqttSettings, TlsSettings
from engine.errors import BrokerError, ConfigurationError

_LOG: Final = logging.getLogger("atac_agent.mqtt")
_ANSWER_S: Final = 10.0
"""How long a broker may take to answer a connection, and to acknowledge a message twice that."""
_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 30.0
_RETRY_REFUSED_S: Final = 20.0
_STEADY_S: Final = 10.0
"""A connection that held so long was a good one: the next retry is quick again."""
_BRIEF_CONNECTIONS: Final = 3
_RIVAL_HINT: Final = (
    ", again and again; does another client use this id? Give each its own agent.id"
)
"""Not every broker says so when it ends a connection because its id has come again."""
_RESPONSES: Final = 100
_LARGEST_HEARD: Final = 4 * REQUEST_MAX_BYTES
_WAITING_REQUESTS: Final = 1000
"""Events that may wait before requests are passed over: nobody can fill the memory with them."""
_FAILURE: Final = 0x80
_PACKET_TOO_LARGE: Final = 0x95
_PACKET_OVERHEAD: Final = 32
"""More than a PUBLISH needs besides its texts and payload."""
_PROPERTY_OVERHEAD: Final = 5
_RECEIVE_MAXIMUM: Final = 65_535
_EVENTS: Final = (
    *("on_socket_open", "on_connect", "on_disconnect"),
    *("on_publish", "on_message", "on_subscribe"),
)
_PROPERTIES: Final[Callable[[int], Properties]] = Properties
"""paho leaves the type of its constructor out."""

_HINTS: Final = {
    0x84: "set mqtt.version: 3.1.1",
    0x85: "the broker wants another client id: change agent.id",
    0x86: "check mqtt.user and the password",
    0x87: "check mqtt.user, the password and the broker's access rules",
    0x8E: "another client uses this id: give each agent its own agent.id",
}
"""What to do about a reason code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatus:
    """How delivery stands. `delivered` and `refused` count this run's outbox messages."""

    connected: bool
    trouble: str | None
    delivered: int
    refused: int
    pending: int


@dataclass(frozen=True, slots=True)
class _Wake:
    """There may be something to send."""


@dataclass(frozen=True, slots=True)
class _Connected:
    window: int
    largest: int | None


@dataclass(frozen=True, slots=True)
class _Subscribed:
    pass


@dataclass(frozen=True, slots=True)
class _Lost:
    reason: str
    code: int
    is_refusal: bool


@dataclass(frozen=True, slots=True)
class _Acknowledged:
    mid: int
    code: int
    reason: str


_Event = _Wake | _Connected | _Subscribed | _Lost | _Acknowledged | Asked
_Events = queue.SimpleQueue[_Event]
_E = TypeVar("_E", _Connected, _Subscribed, _Lost)


@dataclass(frozen=True, slots=True, kw_only=True)
class _InFlight:
    """A published message that is not acknowledged; `id` is `None` outside the outbox."""

    id: int | None
    message: Message
    sent: float


class Publisher:
    """The sender; a context manager. Entering starts its thread and waits for nobody.

    Raises `ConfigurationError` when made from settings that cannot work. Leaving it sends what
    the outbox holds, for at most `drain_s`, then says `offline`.
    """

    def __init__(
        self,
        settings: MqttSettings,
        ledger: Ledger,
        agent_id: str,
        requests: Requests | None = None,
    ) -> None:
        check_settings(settings)
        self._settings = settings
        self._ledger = ledger
        self._agent_id = agent_id
        self._requests = requests if settings.commands and settings.version == "5" else None
        self._responses: deque[Message] = deque()
        self._events: _Events = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._now: dict[str, Message] = {}
        self._stopping = threading.Event()
        self._deadline = 0.0
        self._connected = False
        self._trouble: str | None = f"not yet connected to {_address(settings)}"
        self._is_trouble_said = False
        self._refusing: dict[str, str] = {}
        self._delivered = 0
        self._refused = 0
        self._outbox = Outbox(ledger)
        self._flight: dict[int, _InFlight] = {}
        # A daemon, as looking up a host's name cannot be interrupted.
        self._thread = threading.Thread(target=self._send, name="atac-mqtt-sender", daemon=True)

    def __enter__(self) -> Self:
        self._ledger.listen(self._wake)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        drain_s = self._settings.drain_s
        self._deadline = time.monotonic() + drain_s
        self._ledger.flush(drain_s)
        self._stopping.set()
        self._wake()
        self._thread.join(drain_s + 2 * _ANSWER_S)
        self._ledger.flush(drain_s)  # the marks of what was delivered
        self._ledger.listen(lambda: None)

    @property
    def is_alive(self) -> bool:
        """Whether the thread that sends is running."""
        return self._thread.is_alive()

    @property
    def status(self) -> BrokerStatus:
        """How delivery stands now."""
        with self._lock:
            trouble = self._trouble
            if trouble is None and self._refusing:
                trouble = "; ".join(
                    f"refuses {topic}: {reason}" for topic, reason in self._refusing.items()
                )
            return BrokerStatus(
                connected=self._connected,
                trouble=trouble,
                delivered=self._delivered,
                refused=self._refused,
                pending=self._ledger.pending,
            )

    def publish_now(self, message: Message) -> None:
        """Publish past the outbox; of several on one topic only the latest waits, in memory."""
        with self._lock:
            self._now[message.topic] = message
        self._wake()

    def _wake(self) -> None:
        self._events.put(_Wake())

    # ---- everything below runs in the sender thread

    def _send(self) -> None:
        try:
            self._keep_conversing()
        finally:
            with self._lock:
                self._connected = False
                if not self._stopping.is_set():
                    self._trouble = "the thread that sends has died: restart the agent"

    def _keep_conversing(self) -> None:
        retry_s, brief = _RETRY_FIRST_S, 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._converse()
            except BrokerError as error:
                is_brief = time.monotonic() - began < _STEADY_S
                brief = brief + 1 if self._connected and is_brief else 0
                retry_s = retry_s if is_brief else _RETRY_FIRST_S
                retry_s = max(retry_s, _RETRY_REFUSED_S) if error.is_refusal else retry_s
                hint = _RIVAL_HINT if brief >= _BRIEF_CONNECTIONS else ""
                self._disconnected(f"{error}{hint}")
            self._stopping.wait(retry_s * random.uniform(0.5, 1.0))
            retry_s = min(2 * retry_s, _RETRY_MAX_S)

    def _converse(self) -> None:
        """One connection, from its beginning to its loss (`BrokerError`) or the agent's stop."""
        offline = state(self._settings.topics, self._agent_id, online=False)
        link = _Link(
            self._settings,
            f"atac-{self._agent_id}",
            self._events,
            will=offline,
            largest_heard=_LARGEST_HEARD,
        )
        with link:
            self._now_connected()
            if self._requests is not None:
                request = topic(self._settings.topics, self._agent_id, "request")
                link.listen(request, self._events)
            while not self._is_done():
                self._fill(link)
                self._take(link)
            self._say_offline(link, offline)

    def _is_done(self) -> bool:
        if not self._stopping.is_set():
            return False
        is_drained = not (self._flight or self._now or self._responses or self._outbox.has_more())
        return is_drained or time.monotonic() > self._deadline

    def _fill(self, link: "_Link") -> None:
        """Publish until the window is full or nothing is left."""
        while len(self._flight) < link.window:
            with self._lock:
                topic = next(iter(self._now), None)
                message = self._now.pop(topic) if topic is not None else None
            number = None
            if message is None and self._responses:
                message = self._responses.popleft()
            if message is None:
                next_one = self._outbox.next()
                if next_one is None:
                    return
                number, message = next_one.id, next_one.message
            flying = _InFlight(id=number, message=message, sent=time.monotonic())
            mid = link.publish(message)
            if mid is None:
                reason = f"packet too large, the broker allows {link.largest} bytes"
                self._settle(flying, _PACKET_TOO_LARGE, reason)
            else:
                self._flight[mid] = flying

    def _take(self, link: "_Link") -> None:
        """Wait for events, then settle all that have come."""
        delivered = []
        event: _Event | None = self._next_event(timeout_s=1.0)
        while event is not None:
            match event:
                case _Acknowledged(mid, code, reason):
                    flying = self._flight.pop(mid, None)
                    if flying is not None and self._settle(flying, code, reason):
                        delivered.append(flying.id)
                case _Lost() as lost:
                    self._mark_delivered(delivered)
                    self._blame_the_largest(lost)
                    raise link.error(lost)
                case Asked() as asked if self._requests is not None:
                    answer = self._requests.answer(asked, self._outbox.replay)
                    if answer is not None and len(self._responses) < _RESPONSES:
                        self._responses.append(answer)
                case _:
                    pass
            event = self._next_event(timeout_s=0)
        self._mark_delivered(delivered)
        oldest = next(iter(self._flight.values()), None)
        if oldest is not None and time.monotonic() - oldest.sent > 2 * _ANSWER_S:
            raise BrokerError(f"{_address(self._settings)}: acknowledges nothing any more")

    def _next_event(self, *, timeout_s: float) -> _Event | None:
        try:
            return self._events.get(block=timeout_s > 0, timeout=timeout_s)
        except queue.Empty:
            return None

    def _settle(self, flying: _InFlight, code: int, reason: str) -> bool:
        """Note how one message ended; `True` for delivered."""
        topic = flying.message.topic
        is_delivered = code < _FAILURE
        if flying.id is not None:
            self._outbox.settled(flying.id)
        with self._lock:
            before = self._refusing.pop(topic, None)
            if not is_delivered:
                self._refusing[topic] = reason
            if flying.id is not None:
                self._delivered += is_delivered
                self._refused += not is_delivered
        if not is_delivered and before != reason:
            _LOG.warning("%s refuses %s: %s", _address(self._settings), topic, reason)
        if is_delivered and before is not None:
            _LOG.warning("%s accepts %s again", _address(self._settings), topic)
        if flying.id is not None and not is_delivered:
            self._ledger.mark_refused(flying.id, code)
        return is_delivered

    def _mark_delivered(self, ids: list[int | None]) -> None:
        outbox = [number for number in ids if number is not None]
        if outbox:
            self._ledger.mark_delivered(outbox)

    def _blame_the_largest(self, lost: _Lost) -> None:
        """A broker that hangs up on a large packet would do so for ever: refuse that message."""
        if lost.code == _PACKET_TOO_LARGE and self._flight:
            mid = max(self._flight, key=lambda mid: len(self._flight[mid].message.payload))
            self._settle(self._flight.pop(mid), lost.code, lost.reason)

    def _now_connected(self) -> None:
        """Presence first, then what was not acknowledged on the last connection."""
        self._outbox.connected(
            OutboxMessage(id=flying.id, message=flying.message)
            for flying in self._flight.values()
            if flying.id is not None
        )
        self._flight.clear()
        with self._lock:
            is_news, self._is_trouble_said = self._is_trouble_said, False
            self._connected, self._trouble = True, None
            online = state(self._settings.topics, self._agent_id, online=True)
            # The dictionary keeps the order of insertion.
            others = {topic: now for topic, now in self._now.items() if topic != online.topic}
            self._now = {online.topic: online, **others}
        _LOG.log(
            logging.WARNING if is_news else logging.INFO,
            "connected to %s",
            _address(self._settings),
        )

    def _disconnected(self, trouble: str) -> None:
        """Say what is wrong, once per change."""
        with self._lock:
            is_news = trouble != self._trouble
            self._connected, self._trouble = False, trouble
            self._is_trouble_said = True
        if is_news:
            _LOG.warning("no broker, alarms wait in the outbox: %s", trouble)

    def _say_offline(self, link: "_Link", offline: Message) -> None:
        """Within the window too; where the broker leaves it full, its will says `offline`."""
        until = time.monotonic() + 1.0
        while len(self._flight) >= link.window:
            self._take(link)
            if time.monotonic() > until:
                raise BrokerError(f"{_address(self._settings)}: acknowledges nothing any more")
        mid = link.publish(offline)
        until = time.monotonic() + 1.0
        while (left := until - time.monotonic()) > 0:
            event = self._next_event(timeout_s=left)
            if isinstance(event, _Lost) or (isinstance(event, _Acknowledged) and event.mid == mid):
                break
        with self._lock:
            self._connected, self._trouble = False, "stopped"


class Subscriber:
    """Hears every message on topics that match `topic_filter`; a context manager.

    `hear(topic, payload)` is called in a thread of its own. Entering waits until the broker has
    accepted the subscription and raises `BrokerError` when it does not.
    """

    def __init__(
        self, settings: MqttSettings, topic_filter: str, hear: Callable[[str, bytes], None]
    ) -> None:
        check_settings(settings)
        self._settings = settings
        self._filter = topic_filter
        self._hear = hear

    def __enter__(self) -> Self:
        name = f"atac-subscriber-{random.randrange(1 << 32):08x}"
        self._link = _Link(self._settings, name, queue.SimpleQueue())
        self._link.__enter__()
        try:
            self._link.subscribe(self._filter, self._hear)
        except BaseException:
            self._link.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._link.close()


def probe(settings: MqttSettings, agent_id: str) -> str:
    """Connect once, say nothing, and tell how it went; raises as `Publisher` would, or at once."""
    check_settings(settings)
    with _Link(settings, f"atac-{agent_id}-probe", queue.SimpleQueue()):
        security = "with TLS" if settings.tls else "without TLS"
        name = f"as {settings.user}" if settings.user else "without a user name"
        return f"{_address(settings)} answers MQTT {settings.version}, {security}, {name}"


def ask(
    settings: MqttSettings, agent_id: str, command: Command, **arguments: object
) -> dict[str, object]:
    """Send one request to a running agent and give its response.

    Raises `BrokerError` when there is none within ten seconds, `RequestError` when it refuses.
    """
    if settings.version != "5":
        remedy = "requests need MQTT 5"
        raise ConfigurationError("mqtt.version", settings.version, remedy)
    nonce = secrets.token_hex(8)
    expires = utc(time.time_ns() + round(2 * _ANSWER_S * 1e9))
    where = f"{topic(settings.topics, agent_id, 'response')}/{nonce}"
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with _Link(settings, f"atac-request-{nonce}", queue.SimpleQueue()) as link:
        link.subscribe(where, lambda _topic, payload: heard.put(payload))
        link.publish(
            Message(
                topic=topic(settings.topics, agent_id, "request"),
                payload=request_json(command, nonce, expires, **arguments),
                response_topic=where,
            )
        )
        try:
            told = json.loads(heard.get(timeout=_ANSWER_S))
        except queue.Empty:
            raise BrokerError(
                f"{_address(settings)}: {agent_id} does not answer; is {command} in its"
                " mqtt.commands, and may it read its topic request?"
            ) from None
    if not told["ok"]:
        raise RequestError(f"{agent_id} refuses: {told['error']}")
    result: dict[str, object] = told["result"]
    return result


def mqtt_settings(config: Config) -> MqttSettings:
    """The settings of the only sink."""
    for sink in config.sinks:
        if isinstance(sink, MqttSettings):
            return sink
    raise ConfigurationError("sinks", None, "names no broker; write mqtt.host")


def check_settings(settings: MqttSettings) -> None:
    """Raise `ConfigurationError` for settings that contradict each other or name missing files."""
    _password(settings)
    if settings.tls is not None:
        _tls_context(settings.tls)


class _Link:
    """One connection with a fresh paho client; what happens on it goes into `events`.

    Entering connects and waits for the broker's answer, or raises `BrokerError`. `window` and
    `largest` are then the broker's and our limits together.
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        events: _Events,
        will: Message | None = None,
        largest_heard: int | None = None,
    ) -> None:
        self._settings = settings
        self._largest_heard = largest_heard
        self._events = events
        self._is_v5 = settings.version == "5"
        self.window = 1
        self.largest: int | None = None
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if self._is_v5 else True,
            protocol=MQTTProtocolVersion.MQTTv5 if self._is_v5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self._client.connect_timeout = _ANSWER_S / 2
        self._client.max_inflight_messages_set(0)  # the window is the sender's
        self._client.on_socket_open = _without_delay
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        if will is not None:
            properties = self._properties(will, PacketTypes.WILLMESSAGE)
            self._client.will_set(will.topic, will.payload, will.qos, will.retain, properties)

    def __enter__(self) -> Self:
        try:
            self._connect()
            answer = self._await(_Connected)
        except BaseException:
            self.close()
            raise
        self.window, self.largest = answer.window, answer.largest
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error the broker shall publish the will, so there is no farewell.
        self.close(says_farewell=error is None)

    def close(self, *, says_farewell: bool = True) -> None:
        """End the connection and its thread; none of its events comes later."""
        if says_farewell and self._client.is_connected():
            self._client.disconnect()
            with suppress(BrokerError):
                self._await(_Lost, timeout_s=1.0)
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()
        # Client and link name each other: without this paho's sockets would wait for the collector.
        for event in _EVENTS:
            setattr(self._client, event, None)
        with suppress(queue.Empty):
            while True:
                self._events.get_nowait()

    def publish(self, message: Message) -> int | None:
        """Hand `message` to paho; returns its packet id, `None` if the broker's limit forbids it.

        When the connection has just gone, the event that says so comes instead of the
        acknowledgement.
        """
        if self.largest is not None and _size(message) > self.largest:
            return None
        return self._client.publish(
            message.topic,
            message.payload,
            message.qos,
            message.retain,
            self._properties(message, PacketTypes.PUBLISH),
        ).mid

    def subscribe(self, topic_filter: str, hear: Callable[[str, bytes], None]) -> None:
        """Hear a topic filter at QoS 1; raises `BrokerError` if the broker does not grant it."""

        def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
            hear(message.topic, bytes(message.payload))

        def on_subscribe(
            _client: Client,
            _data: object,
            _mid: int,
            codes: list[ReasonCode],
            _properties: Properties | None,
        ) -> None:
            if codes[0].is_failure:
                self._events.put(_Lost(f"refuses {topic_filter}: {codes[0]}", codes[0].value, True))
            else:
                self._events.put(_Subscribed())

        self._client.on_message = on_message
        self._client.on_subscribe = on_subscribe
        self._client.subscribe(topic_filter, qos=1)
        self._await(_Subscribed)

    def listen(self, request_topic: str, events: _Events) -> None:
        """Take requests into `events`; a broker that forbids it is no reason to stop sending."""

        def on_message(_client: Client, _data: object, message: MQTTMessage) -> None:
            if events.qsize() < _WAITING_REQUESTS:
                asked = Asked(
                    payload=bytes(message.payload[: REQUEST_MAX_BYTES + 1]),
                    response_topic=getattr(message.properties, "ResponseTopic", ""),
                    correlation=getattr(message.properties, "CorrelationData", None),
                    is_retained=message.retain,
                )
                events.put(asked)

        def on_subscribe(
            _client: Client,
            _data: object,
            _mid: int,
            codes: list[ReasonCode],
            _properties: Properties | None,
        ) -> None:
            if codes[0].is_failure:
                _LOG.warning("%s refuses %s: %s", _address(self._settings), request_topic, codes[0])

        self._client.on_message = on_message
        self._client.on_subscribe = on_subscribe
        self._client.subscribe(request_topic, qos=1)

    def error(self, lost: _Lost) -> BrokerError:
        """What to raise for the loss of this connection."""
        hint = f"; {_HINTS[lost.code]}" if lost.code in _HINTS else _expired_hint(self._settings)
        message = f"{_address(self._settings)}: {lost.reason}{hint}"
        return BrokerError(message, is_refusal=lost.is_refusal)

    def _connect(self) -> None:
        settings = self._settings
        try:
            password = _password(settings)
            if settings.user is not None:
                self._client.username_pw_set(settings.user, password)
            if settings.tls is not None:
                self._client.tls_set_context(_tls_context(settings.tls))
            self._client.connect(
                settings.host,
                _port(settings),
                settings.keepalive_s,
                properties=self._limits(),
            )
        except ssl.SSLError as error:
            reason = f"{_address(settings)}: {_tls_reason(error, settings.host)}"
            raise BrokerError(reason, is_refusal=True) from error
        except (OSError, ValueError) as error:
            raise BrokerError(f"{_address(settings)}: {_plain(error)}") from error
        except ConfigurationError as error:
            raise BrokerError(str(error), is_refusal=True) from error
        self._client.loop_start()

    def _await(self, kind: type[_E], timeout_s: float = _ANSWER_S) -> _E:
        """Wait for an event of one kind; raises `BrokerError` if the connection ends first."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise BrokerError(
                    f"{_address(self._settings)}: no answer within {timeout_s:g} s"
                ) from None
            if isinstance(event, kind):
                return event
            if isinstance(event, _Lost):
                raise self.error(event)

    def _limits(self) -> Properties | None:
        """What the broker shall not send us."""
        if not self._is_v5 or self._largest_heard is None:
            return None
        properties = _PROPERTIES(PacketTypes.CONNECT)
        properties.MaximumPacketSize = self._largest_heard
        return properties

    def _properties(self, message: Message, packet: int) -> Properties | None:
        if not self._is_v5:
            return None
        properties = _PROPERTIES(packet)
        properties.ContentType = message.content_type
        properties.PayloadFormatIndicator = int(not message.content_type.startswith("image/"))
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
            self._events.put(_Lost(f"refused the connection: {reason}", reason.value, True))
            return
        theirs = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
        largest = getattr(properties, "MaximumPacketSize", None)
        self._events.put(_Connected(min(self._settings.window, theirs), largest))

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            lost = _Lost(f"ended the connection: {reason}", reason.value, reason.value in _HINTS)
        else:
            lost = _Lost("the connection was lost", 0, False)
        self._events.put(lost)

    def _on_publish(
        self,
        _client: Client,
        _data: object,
        mid: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._events.put(_Acknowledged(mid, reason.value, str(reason)))


def _without_delay(_client: Client, _data: object, connection: Any) -> None:
    """Nagle's algorithm would hold back the end of each message: 40 ms with TLS."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _size(message: Message) -> int:
    """The size of the PUBLISH packet in bytes, or a little more."""
    texts = [
        message.topic,
        message.content_type,
        *(text for pair in message.properties for text in pair),
    ]
    size = len(message.payload) + sum(len(text.encode()) for text in texts)
    return size + _PACKET_OVERHEAD + _PROPERTY_OVERHEAD * len(message.properties)


def _expired_hint(settings: MqttSettings) -> str:
    """Not every broker says why it hangs up on an agent whose own certificate has expired."""
    file = settings.tls and settings.tls.certificate_file
    with suppress(OSError, ValueError):
        if file and valid_until(file) < datetime.now(UTC):
            return f"; its own certificate {file} has expired"
    return ""


def _port(settings: MqttSettings) -> int:
    return settings.port or (8883 if settings.tls else 1883)


def _address(settings: MqttSettings) -> str:
    return f"{settings.host}:{_port(settings)}"


def _plain(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _password(settings: MqttSettings) -> str | None:
    """The password, read anew for each connection so that it can be changed under the agent."""
    file, variable = settings.password_file, settings.password_variable
    if file is None and variable is None:
        return None
    if file is not None and variable is not None:
        remedy = "give either password_file or password_variable"
        raise ConfigurationError("mqtt.password_variable", variable, remedy)
    if settings.user is None:
        raise ConfigurationError("mqtt.user", None, "is missing beside the password; write it")
    if file is None:
        if (password := os.environ.get(str(variable))) is None:
            remedy = "there is no such environment variable; set it"
            raise ConfigurationError("mqtt.password_variable", variable, remedy)
        return password
    return read_text(file, key="mqtt.password_file").rstrip("\r\n")


def _tls_context(settings: TlsSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigurationError(
            "mqtt.tls.ca_file", str(settings.ca_file), f"holds no certificates ({_plain(error)})"
        ) from None
    if settings.certificate_file is not None:
        try:
            # A key that needs a pass phrase must not stop the agent to ask for it.
            context.load_cert_chain(settings.certificate_file, settings.key_file, lambda: "")
        except OSError as error:
            raise ConfigurationError(
                "mqtt.tls.certificate_file",
                str(settings.certificate_file),
                f"cannot be used with key_file {settings.key_file} ({_plain(error)})",
            ) from None
    elif settings.key_file is not None:
        remedy = "is a key without a certificate_file; give both"
        raise ConfigurationError("mqtt.tls.key_file", str(settings.key_file), remedy)
    return context


def _tls_reason(error: ssl.SSLError, host: str) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"no TLS here, or another kind of it ({error.reason or error})"
    match error.verify_code:
        case 62 | 64:  # the name, the address
            return f"its certificate is not for {host!r}: set mqtt.host to a name that it holds"
        case 10:
            return "its certificate has expired"
        case 18 | 19 | 20 | 21:  # self-signed, or an issuer that we do not have
            return f"its certificate is not from mqtt.tls.ca_file ({error.verify_message})"
        case _:
            return f"its certificate is not valid ({error.verify_message})"
