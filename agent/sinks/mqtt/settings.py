"""The settings of the MQTT sink."""

import string
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from agent.settings_values import AnyPath, HostName, Name, Port, Seconds, Text
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
]
TOPIC_TEMPLATE: Final = "atac/{agent}/{what}"


@spec
class TlsSettings:
    """How the broker proves itself, and the agent to it. Without `ca_file`: the system's CAs."""

    ca_file: AnyPath | None = None
    certificate_file: AnyPath | None = None
    key_file: AnyPath | None = None


def as_text(value: object) -> object:
    """YAML reads `version: 5` as a number."""
    return str(value) if isinstance(value, int | float) else value


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


def check_path(path: str) -> str:
    """The path of a websocket, if it is one; raises `ValueError` else."""
    if path[0] != "/" or set(path) & set(" #"):
        raise ValueError("write a path that starts with /, such as /mqtt")
    return path


@spec
class BrokerSettings(AnySinkSettings):
    """A broker and how to talk to it, whatever is said.

    The password is the content of `password_file` or of the environment variable
    `password_variable`. `port` is 1883, or 8883 with TLS, unless given; over websockets, whose
    address has a `path`, it is 80 or 443. `window` bounds the messages that wait for an
    acknowledgement.
    """

    host: HostName
    port: Port | None = None
    version: Annotated[Literal["5", "3.1.1"], BeforeValidator(as_text)] = "5"
    transport: Literal["tcp", "websockets"] = "tcp"
    path: Annotated[Text, AfterValidator(check_path)] = "/mqtt"
    user: Text | None = None
    password_file: AnyPath | None = None
    password_variable: Text | None = None
    tls: TlsSettings | None = None
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30
    window: Annotated[int, Field(ge=1, le=65_535)] = 20

    @property
    def qos(self) -> Literal[0, 1]:
        """The highest QoS that is asked of the broker."""
        return 1


@spec
class MqttSettings(BrokerSettings):
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
