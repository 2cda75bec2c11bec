"""What all kinds of services have in their settings."""

from typing import Final

from engine.registry import Kinds
from engine.spec import spec


@spec
class AnyServiceSettings:
    """A service is named by its type alone."""

    type: str


SERVICES: Final = Kinds("agent.services", AnyServiceSettings, noun="service")
