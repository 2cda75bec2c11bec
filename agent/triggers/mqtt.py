"""Parts announced by messages on a topic, such as the gateway of a PLC or of a scanner sends.

A message is a part that is there now. It may name the part and carry a count: as its payload, in a
JSON object, or in user properties of MQTT 5. What a broker has kept from earlier announces nothing.
While the agent is not connected it hears no message; with a count, the next one tells how many
parts were missed.
"""

import json
import logging
import queue
import secrets
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, model_validator

from agent.mqtt.settings import BrokerSettings
from agent.ports import Announcement, Clock
from agent.settings_values import Name, Text
from agent.triggers.part_id import as_count, as_part_id
from agent.triggers.settings import WindowSettings
from engine.errors import BrokerError, TriggerError
from engine.spec import spec

if TYPE_CHECKING:
    from agent.mqtt.link import Heard

_LOG: Final = logging.getLogger("atac_agent.trigger")
_LOOK_S: Final = 0.1
_LARGEST_HEARD: Final = 16_384
"""A broker sends no larger packet, in bytes."""
_ROOM: Final = 1000
"""Announcements that may wait to be read; no line makes parts so fast."""


def _topic_filter(text: str) -> str:
    levels = text.split("/")
    last = {"+", "#"} if len(levels) > 1 else {"+"}
    if any(set(one) & set("+#") and one != "+" for one in levels[:-1]) or (
        set(levels[-1]) & set("+#") and levels[-1] not in last
    ):
        raise ValueError("is no topic; + stands for a whole level, and # for the last ones")
    return text


@spec
class MqttTriggerSettings(WindowSettings, BrokerSettings):
    """Each message on `topic` announces a part; `+` and `#` in it stand for levels.

    With `payload: text` the payload is the part id, with `json` it is an object whose keys
    `part_id_key` and `count_key` are taken, with `none` it is not read. A user property named by
    `part_id_property` or `count_property` is taken in its place. With `product_key` the object also
    says which of the `products` the part is.
    """

    place: ClassVar[str] = "trigger"

    type: Literal["mqtt"] = "mqtt"
    topic: Annotated[Text, AfterValidator(_topic_filter)]
    payload: Literal["text", "json", "none"] = "text"
    part_id_key: Name = "part_id"
    count_key: Name = "count"
    part_id_property: Name | None = None
    count_property: Name | None = None
    product_key: Name | None = None

    @property
    def names_products(self) -> bool:
        """Whether each announcement says what the part is."""
        return self.product_key is not None

    @model_validator(mode="after")
    def _has_object(self) -> "MqttTriggerSettings":
        if self.product_key is not None and self.payload != "json":
            raise ValueError("product_key is a key of a JSON object; write payload: json")
        return self

    @model_validator(mode="after")
    def _has_properties(self) -> "MqttTriggerSettings":
        if self.version != "5" and (self.part_id_property or self.count_property):
            raise ValueError("user properties need version: 5; write it, or remove the property")
        return self


def open(settings: MqttTriggerSettings, stop: threading.Event, clock: Clock) -> "MqttTriggers":
    """The source; raises `ConfigurationError` for files that cannot be used."""
    from agent.mqtt.security import check_settings  # noqa: PLC0415 - only where it is used

    check_settings(settings)
    return MqttTriggers(settings, stop, clock)


class MqttTriggers:
    """Announces a part for each message, on a connection of its own."""

    def __init__(self, settings: MqttTriggerSettings, stop: threading.Event, clock: Clock) -> None:
        self._settings = settings
        self._stop = stop
        self._clock = clock
        self._name = f"atac-trigger-{secrets.token_hex(8)}"
        self._heard: queue.Queue[Announcement] = queue.Queue(_ROOM)
        self._is_flooded = False
        self._has_complained = False
        self._connected = ExitStack()

    def __enter__(self) -> Self:
        from agent.mqtt.link import Link  # noqa: PLC0415 - paho

        self._heard, self._is_flooded = queue.Queue(_ROOM), False
        link = Link(self._settings, self._name, largest_heard=_LARGEST_HEARD, hear=self._hear)
        try:
            with ExitStack() as connecting:
                connecting.enter_context(link)
                link.subscribe(self._settings.topic, takes_retained=False)
                self._connected = connecting.pop_all()
        except BrokerError as error:
            raise TriggerError(str(error)) from error
        self._link = link
        return self

    def __exit__(self, *_: object) -> None:
        self._connected.close()

    def read(self) -> Announcement | None:
        """The next part; `None` when told to stop."""
        while not self._stop.is_set():
            try:
                return self._heard.get(timeout=_LOOK_S)
            except queue.Empty:
                pass
            if self._is_flooded:
                raise TriggerError(f"more than {_ROOM} messages came at once; some were not heard")
            if (lost := self._link.lost()) is not None:
                raise TriggerError(str(lost)) from lost
        return None

    # ---- in the connection's thread

    def _hear(self, heard: "Heard") -> None:
        at = self._clock.now()
        # A broker of MQTT 3.1.1 cannot be asked to leave out what it has kept, but marks it.
        if heard.is_unreadable or (heard.is_retained and self._settings.version != "5"):
            return
        part_id, count, product = self._told(heard)
        announcement = Announcement(at=at, part_id=part_id, count=count, product=product)
        try:
            self._heard.put_nowait(announcement)
        except queue.Full:
            self._is_flooded = True

    def _told(self, heard: "Heard") -> tuple[str | None, int | None, str | None]:
        """Part id, count and product of a message; one that cannot be read has none."""
        settings, properties = self._settings, dict(heard.properties)
        found: dict[str, object] = {}
        if settings.payload == "text":
            found[settings.part_id_key] = heard.payload
        elif settings.payload == "json":
            found = self._object(heard.payload)
        for key, name in (
            (settings.part_id_key, settings.part_id_property),
            (settings.count_key, settings.count_property),
        ):
            if name is not None:
                found[key] = properties.get(name)
        told = found.get(settings.part_id_key)
        part_id, count = as_part_id(told), as_count(found.get(settings.count_key))
        if part_id is None and told not in (None, "", b""):
            self._complain("holds no part id that can be used")
        product = None if settings.product_key is None else found.get(settings.product_key)
        return part_id, count, as_part_id(product)

    def _object(self, payload: bytes) -> dict[str, object]:
        try:
            found = json.loads(payload)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
        self._complain("is no JSON object")
        return {}

    def _complain(self, what: str) -> None:
        """Once in a run: the part itself will show that it has no id."""
        if not self._has_complained:
            self._has_complained = True
            _LOG.warning("trigger: a message on %s %s", self._settings.topic, what)
