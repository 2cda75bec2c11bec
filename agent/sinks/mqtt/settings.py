"""The settings of the MQTT sink."""

import string
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from agent.mqtt.settings import BrokerSettings
from agent.settings_values import Name, Seconds, Text
from agent.sinks.settings import AnySinkSettings
from engine.spec import spec

Command = Literal[
    "ping",
    "replay",
    "threshold",
    "set_threshold",
    "pause",
    "resume",
    "label",
    "promote",
    "rollback",
    "trigger",
    "product",
    "switch_product",
]
TOPIC_TEMPLATE: Final = "atac/{agent}/{what}"


def check_template(template: str) -> str:
    """The template of all topics, if it gives usable ones; raises `ValueError` else."""
    try:
        parsed = {each[1:] for each in string.Formatter().parse(template) if each[1] is not None}
    except ValueError:
        parsed = set()
    what, agent = ("what", "", None), ("agent", "", None)
    if not {what} <= parsed <= {what, agent} or template[0] == "$" or set(template) & set("+#"):
        raise ValueError("write topic levels with {what} and, if need be, {agent}; no wildcards")
    return template


@spec
class BrokerSinkSettings(AnySinkSettings, BrokerSettings):
    """A broker as a receiver; `window` bounds the messages that wait for an acknowledgement."""

    window: Annotated[int, Field(ge=1, le=65_535)] = 20


@spec
class MqttSettings(BrokerSinkSettings):
    """The broker, the topics, and what is said on them.

    `commands` are those that others may give, over MQTT 5 only. With a `max_qos` of 0 a message
    counts as delivered when it was handed to the connection, as nobody acknowledges it.
    """

    type: Literal["mqtt"] = "mqtt"
    name: Name = "mqtt"
    topics: Annotated[Text, AfterValidator(check_template)] = TOPIC_TEMPLATE
    max_qos: Literal[0, 1] = 1
    every_part: bool = False
    health_s: Annotated[Seconds, Field(le=3600)] = 5.0
    commands: tuple[Command, ...] = ("ping", "replay")
    home_assistant: bool = False

    @property
    def qos(self) -> Literal[0, 1]:
        """The highest QoS that is asked of the broker."""
        return self.max_qos
