"""Where a broker is and how to talk to it."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from agent.settings_values import AnyPath, HostName, Port, Text
from engine.spec import spec


@spec
class TlsSettings:
    """How the broker proves itself, and the agent to it. Without `ca_file`: the system's CAs."""

    ca_file: AnyPath | None = None
    certificate_file: AnyPath | None = None
    key_file: AnyPath | None = None


def as_text(value: object) -> object:
    """YAML reads `version: 5` as a number."""
    return str(value) if isinstance(value, int | float) else value


def check_path(path: str) -> str:
    """The path of a websocket, if it is one; raises `ValueError` else."""
    if path[0] != "/" or set(path) & set(" #"):
        raise ValueError("write a path that starts with /, such as /mqtt")
    return path


@spec
class BrokerSettings:
    """A broker and how to talk to it, whatever is said.

    The password is the content of `password_file` or of the environment variable
    `password_variable`. `port` is 1883, or 8883 with TLS, unless given; over websockets, whose
    address has a `path`, it is 80 or 443. Errors name a key of these settings below `place`.
    """

    place: ClassVar[str] = "mqtt"

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

    @property
    def qos(self) -> Literal[0, 1]:
        """The highest QoS that is asked of the broker."""
        return 1
