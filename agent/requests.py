"""Requests over MQTT 5: what the agent answers, and what it refuses.

A request is a JSON object on the topic `request`, with a response topic below the agent's own
`response`. It names its command, a nonce that is used once, and when it expires. Only commands of
`mqtt.commands` are obeyed; everything else is refused and counted. No request names a file, a
host or code. Described by `agent/schemas/request.schema.json` and `response.schema.json`.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, get_args

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from agent.ledger import Ledger
from agent.messages import Message, Origin, response, software
from agent.sinks.mqtt.settings import Command
from agent.station.threshold import Threshold
from engine.errors import AtacError
from engine.spec import spec

COMMANDS: Final[tuple[Command, ...]] = get_args(Command)
REQUEST_MAX_BYTES: Final = 4096
_LIFE_S: Final = 300
"""No request may stay valid for longer: its nonce has to be remembered so long."""
_NONCES: Final = 10_000
_TOPIC_MAX: Final = 256

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{8,64}$")]
Expiry = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]
Sequence = Annotated[int, Field(ge=1, lt=1 << 63)]
Epoch = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]


class RequestError(AtacError):
    """A request that the agent does not obey; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it came, before anybody has looked at it."""

    payload: bytes
    response_topic: str
    correlation: bytes | None
    is_retained: bool


@spec
class Plain:
    """A command without arguments."""

    command: Literal["ping", "threshold", "pause", "resume"]
    nonce: Nonce
    expires: Expiry


@spec
class Replay:
    """Send the messages of these parts again; of the running epoch unless another is named."""

    command: Literal["replay"]
    nonce: Nonce
    expires: Expiry
    first: Sequence
    last: Sequence
    epoch: Epoch | None = None


@spec
class Label:
    """An operator's word on a part: was it good, whatever the verdict?"""

    command: Literal["label"]
    nonce: Nonce
    expires: Expiry
    id: Annotated[str, StringConstraints(max_length=200)]
    label: Literal["good", "defective"]


@spec
class SetThreshold:
    """Use another threshold from the next part on, `null` for the calibration's; `by` asks so."""

    command: Literal["set_threshold"]
    nonce: Nonce
    expires: Expiry
    threshold: float | None
    by: Annotated[str, StringConstraints(min_length=1, max_length=100)]


Request = Plain | Replay | Label | SetThreshold
_REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(
    Annotated[Request, Field(discriminator="command")]
)


class Requests:
    """Answers requests; `paused` is what pause and resume set. Used by the sender's thread.

    `replay(epoch, first, last)` has a range sent again and says how many messages that are.
    """

    def __init__(
        self,
        origin: Origin,
        ledger: Ledger,
        *,
        allowed: tuple[Command, ...],
        threshold: Threshold,
        paused: threading.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._origin = origin
        self._ledger = ledger
        self._allowed = allowed
        self._threshold = threshold
        self._paused = paused
        self._now = now
        self._nonces: dict[str, float] = {}
        self._forgotten = 0.0
        self.accepted = 0
        self.refused = 0

    def answer(self, asked: Asked, replay: Callable[[str, int, int], int]) -> Message | None:
        """The response to a request; `None` where there is no topic that it could go to."""
        told: dict[str, object] = {"command": None, "nonce": None}
        try:
            request = self._checked(asked, told)
            result = self._obey(request, replay)
        except RequestError as error:
            self.refused += 1
            told |= {"ok": False, "error": str(error), "result": None}
        else:
            self.accepted += 1
            told |= {"ok": True, "error": None, "result": result}
        if not self._may_answer_to(asked.response_topic):
            return None
        return response(self._origin, time.time_ns(), asked.response_topic, asked.correlation, told)

    def _may_answer_to(self, topic: str) -> bool:
        """Only below the agent's own topic: nobody shall make it speak elsewhere."""
        own = self._origin.topic("response")
        is_below = topic == own or topic.startswith(f"{own}/")
        return is_below and not set(topic) & set("+#\0") and len(topic) <= _TOPIC_MAX

    def _checked(self, asked: Asked, told: dict[str, object]) -> Request:
        if len(asked.payload) > REQUEST_MAX_BYTES:
            raise RequestError(f"is larger than {REQUEST_MAX_BYTES} bytes")
        if asked.is_retained:
            raise RequestError("is a retained message")
        if not self._may_answer_to(asked.response_topic):
            raise RequestError("has no response topic below this agent's")
        try:
            request = _REQUEST.validate_json(asked.payload, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise RequestError(f"{where or 'request'}: {first['msg']}"[:200]) from None
        told |= {"command": request.command, "nonce": request.nonce}
        if request.command not in self._allowed:
            raise RequestError(f"{request.command} is not in mqtt.commands")
        self._check_fresh(request.nonce, request.expires)
        return request

    def _check_fresh(self, nonce: str, expires: str) -> None:
        now = self._now()
        try:
            until = datetime.fromisoformat(expires).timestamp()
        except ValueError:
            raise RequestError("expires: is no time") from None
        if until <= now:
            raise RequestError("has expired; or the clocks differ")
        if until > now + _LIFE_S:
            raise RequestError(f"expires more than {_LIFE_S} s from now; or the clocks differ")
        if until <= self._forgotten:
            raise RequestError("may have been made before: the agent's clock was set back")
        # A clock that is set back must not make a request valid again whose nonce is forgotten.
        self._forgotten = max(
            [self._forgotten, *(end for end in self._nonces.values() if end <= now)]
        )
        self._nonces = {known: end for known, end in self._nonces.items() if end > now}
        if nonce in self._nonces:
            raise RequestError("its nonce has been used")
        if len(self._nonces) >= _NONCES:
            raise RequestError("too many requests")
        self._nonces[nonce] = until

    def _obey(
        self, request: Request, replay: Callable[[str, int, int], int]
    ) -> Mapping[str, object]:
        match request:
            case Replay():
                if request.last < request.first:
                    raise RequestError("last: is before first")
                epoch = request.epoch or self._origin.epoch
                return {"epoch": epoch, "messages": replay(epoch, request.first, request.last)}
            case Label():
                return self._label(request)
            case Plain(command="threshold"):
                return self._thresholds()
            case SetThreshold():
                return self._set_threshold(request)
            case Plain(command="pause"):
                self._paused.set()
            case Plain(command="resume"):
                self._paused.clear()
        return {"software": software(), "paused": self._paused.is_set()}

    def _thresholds(self) -> Mapping[str, object]:
        both = self._threshold.both
        return {"threshold": both.in_force, "calibrated": both.calibrated}

    def _set_threshold(self, request: SetThreshold) -> Mapping[str, object]:
        if not self._threshold.change(request.threshold, by=request.by, nonce=request.nonce):
            raise RequestError("the ledger cannot be written, so the threshold stays as it is")
        return self._thresholds()

    def _label(self, request: Label) -> Mapping[str, object]:
        agent, _, rest = request.id.partition(":")
        epoch, _, sequence = rest.partition(":")
        is_number = sequence.isascii() and sequence.isdecimal() and len(sequence) < 19
        if agent != self._origin.agent_id or not is_number:
            raise RequestError("id: is no part of this agent")
        if not self._ledger.label(epoch, int(sequence), request.label):
            raise RequestError("id: is not in the ledger, or the ledger cannot be written")
        return {"id": request.id, "label": request.label}


def request_json(command: Command, nonce: str, expires: str, **arguments: object) -> bytes:
    """A request, as a client sends it."""
    content = {"command": command, "nonce": nonce, "expires": expires, **arguments}
    return json.dumps(content).encode()
