"""What is sent to a broker."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One MQTT publication.

    `properties` are user properties; they and the last two, of requests and their responses, are
    sent on MQTT v5 only.
    """

    topic: str
    payload: bytes
    qos: Literal[0, 1] = 1
    retain: bool = False
    content_type: str = "application/json"
    properties: tuple[tuple[str, str], ...] = ()
    response_topic: str = ""
    correlation: bytes | None = None

    @property
    def is_text(self) -> bool:
        """Whether the payload is UTF-8."""
        return self.content_type.startswith(("text/", "application/json"))
