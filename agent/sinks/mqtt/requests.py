"""Requests over MQTT 5: read, checked and answered on a connection of their own.

    broker ──▶ link ── budget ──▶ queue ──▶ thread ──▶ agent/requests.py
                 └─ beyond it: busy            └──▶ response

A request is a JSON object on the topic `request`, with a response topic below the agent's own
`response`. It names its command, a nonce that is used once, and when it expires. Only commands of
`mqtt.commands` are obeyed; everything else is refused and counted. Whatever strangers send, and
whatever becomes of this connection, alarms go their own way. Described by
`agent/schemas/request.schema.json` and `response.schema.json`.
"""

import heapq
import json
import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from agent.mqtt.link import ANSWER_S, Acknowledged, Heard, Link, address
from agent.mqtt.message import Message
from agent.record.rows import utc
from agent.requests import RequestError, Requests
from agent.settings_values import Name, Text
from agent.sinks.mqtt.messages import Topics, response
from agent.sinks.mqtt.settings import Command, MqttSettings
from engine.bundle import Sha256
from engine.errors import BrokerError, ConfigurationError
from engine.spec import spec

_LOG: Final = logging.getLogger("atac_agent.mqtt")
COMMANDS: Final[tuple[Command, ...]] = get_args(Command)
REQUEST_MAX_BYTES: Final = 4096
_LARGEST_HEARD: Final = 4 * REQUEST_MAX_BYTES
_MOST_HEARD: Final = 10
"""Requests that the broker may send before they are acknowledged."""
_LIFE_S: Final = 300
"""No request may stay valid for longer: its nonce has to be remembered so long."""
_NONCES: Final = 10_000
_TOPIC_MAX: Final = 256
_ROOM: Final = 100
_PER_S: Final = 20.0
_BURST: Final = 100.0
_BYTES_PER_S: Final = 100_000.0
_BUSY_PER_S: Final = 5.0
_PAUSE_S: Final = 0.02
"""How long nothing is read after a request beyond the budget: the broker has to wait."""
_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 30.0
_ASK_AGAIN_S: Final = 2.0
_READ_ONLY: Final = frozenset({"ping", "threshold", "product"})
"""Nothing comes of obeying these twice, so their nonces need not outlive the run."""

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{8,64}$")]
Expiry = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]
Sequence = Annotated[int, Field(ge=1, lt=1 << 63)]
Epoch = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
By = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Why = Annotated[str, StringConstraints(max_length=500)]
PartId = Annotated[Text, StringConstraints(max_length=128)]
Replay = Callable[[str, int, int], int]


@spec
class PlainRequest:
    """A command without arguments."""

    command: Literal["ping", "threshold", "pause", "resume", "product"]
    nonce: Nonce
    expires: Expiry


@spec
class ReplayRequest:
    """Send the messages of these parts again; of the running epoch unless another is named."""

    command: Literal["replay"]
    nonce: Nonce
    expires: Expiry
    first: Sequence
    last: Sequence
    epoch: Epoch | None = None


@spec
class LabelRequest:
    """An operator's word on a part: was it good, whatever the verdict?"""

    command: Literal["label"]
    nonce: Nonce
    expires: Expiry
    id: Annotated[str, StringConstraints(max_length=200)]
    label: Literal["good", "defective"]


@spec
class ThresholdRequest:
    """Use another threshold from the next part on, `null` for the calibration's; `by` asks so.

    One outside the scores of the calibration needs `force`. `camera` is one with a bundle of its
    own.
    """

    command: Literal["set_threshold"]
    nonce: Nonce
    expires: Expiry
    threshold: float | None
    by: By
    why: Why = ""
    force: bool = False
    camera: Name | None = None


@spec
class PromoteRequest:
    """Inspect with the bundle of this id, which lies beside the one in force.

    On a line with products it is that of `product`, and of `camera` where it has its own.
    """

    command: Literal["promote"]
    nonce: Nonce
    expires: Expiry
    bundle_id: Sha256
    by: By
    why: Why = ""
    product: Name | None = None
    camera: Name | None = None


@spec
class RollbackRequest:
    """Inspect with the bundle that was in force before; `product` and `camera` as for promote."""

    command: Literal["rollback"]
    nonce: Nonce
    expires: Expiry
    by: By
    why: Why = ""
    product: Name | None = None
    camera: Name | None = None


@spec
class TriggerRequest:
    """Announce a part; at the only camera with the trigger `software` unless one is named."""

    command: Literal["trigger"]
    nonce: Nonce
    expires: Expiry
    camera: Name | None = None
    part_id: PartId | None = None


@spec
class ProductRequest:
    """Take the parts that begin from now on for this product."""

    command: Literal["switch_product"]
    nonce: Nonce
    expires: Expiry
    product: Name
    by: By
    why: Why = ""


Request = (
    PlainRequest
    | ReplayRequest
    | LabelRequest
    | ThresholdRequest
    | PromoteRequest
    | RollbackRequest
    | TriggerRequest
    | ProductRequest
)
_REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(
    Annotated[Request, Field(discriminator="command")]
)


_OBJECT: Final = TypeAdapter(dict[str, Any])
_NONCE: Final = TypeAdapter(Nonce)


class Budget:
    """A number of requests and bytes per second, after a burst; in constant time and memory."""

    def __init__(
        self,
        per_s: float,
        burst: float,
        bytes_per_s: float = float("inf"),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates = (per_s, bytes_per_s)
        self._most = (burst, bytes_per_s / per_s * burst)
        self._left = self._most
        self._now = now
        self._at = now()

    def take(self, size: int) -> bool:
        """Whether one more request of `size` bytes is within the budget."""
        now = self._now()
        passed, self._at = now - self._at, now
        left = [
            min(most, had + passed * rate)
            for most, had, rate in zip(self._most, self._left, self._rates, strict=True)
        ]
        is_within = left[0] >= 1 and left[1] >= size
        self._left = (left[0] - 1, left[1] - size) if is_within else (left[0], left[1])
        return is_within


def _nonce_of(payload: bytes) -> str | None:
    """The nonce of a request that is not valid, if it has a valid one."""
    with suppress(ValidationError):
        return _NONCE.validate_python(_OBJECT.validate_json(payload).get("nonce"))
    return None


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "union_tag_invalid":
        return f"command '{first['ctx']['tag']}' is not known; write {', '.join(COMMANDS)}"
    if first["type"] == "union_tag_not_found":
        return f"command is missing; write {', '.join(COMMANDS)}"
    where = ".".join(str(step) for step in first["loc"])
    return f"{where or 'request'}: {first['msg']}"


class MqttRequests:
    """Takes requests in a thread of its own; a context manager. Does nothing on MQTT 3.1.1.

    A broker that forbids it, or goes away, is said once and tried again.

    Args:
        settings: The broker, and which commands are allowed.
        topics: The agent's.
        requests: What obeys.
        replay: Has a range of an epoch sent again and says how many messages that are.
        now: UTC in seconds since 1970.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topics: Topics,
        requests: Requests,
        replay: Replay,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._requests = requests
        self._replay = replay
        self._now = now
        self._nonces: set[str] = set()
        self._expiring: list[tuple[float, str]] = []
        self._forgotten = 0.0
        self._budget = Budget(_PER_S, _BURST, _BYTES_PER_S)
        self._busy = Budget(_BUSY_PER_S, _BUSY_PER_S)
        self._queue: queue.Queue[tuple[Heard, bool]] = queue.Queue(_ROOM)
        self._is_connected = False
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"atac-requests-{settings.name}", daemon=True
        )
        self.accepted = 0
        self.refused = 0

    def __enter__(self) -> Self:
        if self._settings.commands and self._settings.version == "5":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(2 * ANSWER_S)

    # ---- in the thread that answers

    def _run(self) -> None:
        retry_s, said = _RETRY_FIRST_S, ""
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._serve()
            except BrokerError as error:
                # That the broker is away is said by the sink already.
                level = logging.WARNING if self._is_connected else logging.INFO
                if str(error) != said:
                    _LOG.log(level, "no requests are taken: %s", error)
                said = str(error)
            except Exception:  # noqa: BLE001 - the thread goes on
                _LOG.exception("requests: an error that nobody expected")
            if time.monotonic() - began > _RETRY_MAX_S:
                retry_s, said = _RETRY_FIRST_S, ""
            self._stop.wait(retry_s * random.uniform(0.5, 1.0))
            retry_s = min(2 * retry_s, _RETRY_MAX_S)

    def _serve(self) -> None:
        """One connection, to its end (`BrokerError`) or the agent's stop."""
        link = Link(
            self._settings,
            f"atac-{self._topics.agent_id}-requests",
            window=self._settings.window,
            largest_heard=_LARGEST_HEARD,
            most_heard=_MOST_HEARD,
            hear=self._hear,
        )
        unacknowledged: set[int] = set()
        self._is_connected = False
        with link:
            self._is_connected = True
            link.subscribe(self._topics.of("request"), takes_retained=False)
            while not self._stop.is_set():
                is_full = len(unacknowledged) >= link.window
                for event in link.acknowledged(1.0 if is_full else 0.0):
                    if not isinstance(event, Acknowledged):
                        raise link.error(event)
                    unacknowledged.discard(event.mid)
                answer = None if is_full else self._next_answer()
                if answer is not None and link.allows(answer):
                    unacknowledged.add(link.publish(answer))

    def _next_answer(self) -> Message | None:
        try:
            heard, is_busy = self._queue.get(timeout=0.1)
        except queue.Empty:
            return None
        return self.answer(heard, is_busy=is_busy)

    def answer(self, heard: Heard, *, is_busy: bool = False) -> Message | None:
        """The response to a request; `None` where there is no topic that it could go to."""
        answer: dict[str, object] = {"command": None, "nonce": None}
        try:
            request = self._checked(heard, answer, is_busy=is_busy)
            result = self._obey(request)
        except RequestError as error:
            self.refused += 1
            answer |= {"ok": False, "error": str(error), "result": None}
        else:
            self.accepted += 1
            answer |= {"ok": True, "error": None, "result": result}
        if not self._may_answer_to(heard.response_topic):
            return None
        return response(
            self._topics,
            epoch=self._requests.epoch,
            now_ns=time.time_ns(),
            about=Message(topic=heard.response_topic, payload=b"", correlation=heard.correlation),
            answer=answer,
        )

    # ---- in paho's thread

    def _hear(self, heard: Heard) -> None:
        """Take a request within the budget; above it some are answered `busy`, and all wait."""
        is_within = self._budget.take(len(heard.payload) + len(heard.correlation or b""))
        is_kept = (is_within or self._busy.take(0)) and not heard.is_unreadable
        if is_kept:
            try:
                self._queue.put_nowait((heard, not is_within))
            except queue.Full:
                is_kept = False
        if not is_kept:
            self.refused += 1
        if not is_within:
            self._stop.wait(_PAUSE_S)

    # ---- what is asked

    def _may_answer_to(self, topic: str) -> bool:
        """Only below the agent's own topic: nobody shall make it speak elsewhere."""
        own = self._topics.of("response")
        is_below = topic == own or topic.startswith(f"{own}/")
        is_topic = topic.isprintable() and not set(topic) & set("+#")
        return is_below and is_topic and len(topic) <= _TOPIC_MAX

    def _checked(self, heard: Heard, answer: dict[str, object], *, is_busy: bool) -> Request:
        if len(heard.payload) > REQUEST_MAX_BYTES:
            raise RequestError(f"is larger than {REQUEST_MAX_BYTES} bytes")
        if heard.is_retained:
            raise RequestError("is a retained message")
        if not self._may_answer_to(heard.response_topic):
            raise RequestError("has no response topic below this agent's")
        try:
            request = _REQUEST.validate_json(heard.payload, strict=True)
        except ValidationError as error:
            answer["nonce"] = _nonce_of(heard.payload)
            raise RequestError(_in_words(error)[:200]) from None
        answer |= {"command": request.command, "nonce": request.nonce}
        if is_busy:
            raise RequestError("busy: too many requests; ask again later")
        if request.command not in self._settings.commands:
            raise RequestError(f"{request.command} is not in mqtt.commands")
        self._check_fresh(request)
        return request

    def _check_fresh(self, request: Request) -> None:
        nonce, now = request.nonce, self._now()
        try:
            until = datetime.fromisoformat(request.expires).timestamp()
        except ValueError:
            raise RequestError("expires: is no time") from None
        if until <= now:
            raise RequestError("has expired; or the clocks differ")
        if until > now + _LIFE_S:
            raise RequestError(f"expires more than {_LIFE_S} s from now; or the clocks differ")
        if until <= self._forgotten:
            raise RequestError("may have been made before: the agent's clock was set back")
        # A clock that is set back must not make a request valid again whose nonce is forgotten.
        while self._expiring and self._expiring[0][0] <= now:
            end, old = heapq.heappop(self._expiring)
            self._forgotten = max(self._forgotten, end)
            self._nonces.discard(old)
        if nonce in self._nonces:
            raise RequestError("its nonce has been used")
        if len(self._nonces) >= _NONCES:
            raise RequestError("busy: too many requests; ask again later")
        self._nonces.add(nonce)
        heapq.heappush(self._expiring, (until, nonce))
        if request.command not in _READ_ONLY:
            self._requests.use_once(nonce, until_ns=round(until * 1e9), now_ns=round(now * 1e9))

    def _obey(self, request: Request) -> Mapping[str, object]:
        asked = self._requests
        match request:
            case ReplayRequest():
                if request.last < request.first:
                    raise RequestError("last: is before first")
                epoch = request.epoch or asked.epoch
                return {
                    "epoch": epoch,
                    "messages": self._replay(epoch, request.first, request.last),
                }
            case LabelRequest():
                return asked.label(request.id, request.label)
            case ThresholdRequest():
                return asked.set_threshold(
                    request.threshold,
                    by=request.by,
                    nonce=request.nonce,
                    why=request.why,
                    force=request.force,
                    camera=request.camera,
                )
            case PromoteRequest():
                return asked.promote(
                    request.bundle_id,
                    by=request.by,
                    why=request.why,
                    nonce=request.nonce,
                    product=request.product,
                    camera=request.camera,
                )
            case RollbackRequest():
                return asked.rollback(
                    by=request.by,
                    why=request.why,
                    nonce=request.nonce,
                    product=request.product,
                    camera=request.camera,
                )
            case TriggerRequest():
                return asked.trigger(request.camera, request.part_id)
            case ProductRequest():
                return asked.switch(
                    request.product, by=request.by, why=request.why, nonce=request.nonce
                )
            case PlainRequest(command="product"):
                return asked.product()
            case PlainRequest(command="threshold"):
                return asked.thresholds()
            case PlainRequest(command="pause"):
                return asked.pause()
            case PlainRequest(command="resume"):
                return asked.resume()
            case _:
                return asked.ping()


def request_json(command: Command, nonce: str, expires: str, **arguments: object) -> bytes:
    """A request, as a client sends it."""
    content = {"command": command, "nonce": nonce, "expires": expires, **arguments}
    return json.dumps(content).encode()


def ask(
    settings: MqttSettings,
    agent_id: str,
    command: Command,
    *,
    within_s: float = ANSWER_S,
    **arguments: object,
) -> dict[str, object]:
    """Send one request to a running agent and give its response.

    Args:
        settings: The broker.
        agent_id: Who is asked.
        command: What for.
        within_s: How long to wait for the response.
        arguments: The command's.

    Raises:
        BrokerError: There is no response in time.
        RequestError: The agent refuses.
    """
    if settings.version != "5":
        raise ConfigurationError("mqtt.version", settings.version, "requests need MQTT 5")
    nonce = secrets.token_hex(8)
    topics = Topics(agent_id=agent_id, template=settings.topics)
    where = f"{topics.of('response')}/{nonce}"
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    request = request_json(
        command, nonce, utc(time.time_ns() + round(2 * within_s * 1e9)), **arguments
    )
    message = Message(topic=topics.of("request"), payload=request, response_topic=where)
    answer: dict[str, Any] | None = None
    with Link(settings, f"atac-request-{nonce}", hear=lambda one: heard.put(one.payload)) as link:
        link.subscribe(where)
        until = time.monotonic() + within_s
        while answer is None and (left := until - time.monotonic()) > 0:
            # Again and again, as an agent that has just started may not listen yet; it obeys once.
            link.publish(message)
            with suppress(queue.Empty):
                answer = json.loads(heard.get(timeout=min(left, _ASK_AGAIN_S)))
    if answer is None:
        raise BrokerError(
            f"{address(settings)}: {agent_id} does not answer; is {command} in its"
            " mqtt.commands, and may it read its topic request?"
        )
    if not answer["ok"]:
        raise RequestError(f"{agent_id} refuses: {answer['error']}")
    result: dict[str, object] = answer["result"]
    return result
