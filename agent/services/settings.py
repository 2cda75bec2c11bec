"""What all kinds of services have in their settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from engine.registry import Kinds
from engine.spec import spec


@spec
class AnyServiceSettings:
    """A service is named by its type alone."""

    type: str

    @property
    def written_to(self) -> Mapping[str, Path]:
        """Where the service writes to, by key."""
        return {}


SERVICES: Final = Kinds("agent.services", AnyServiceSettings, noun="service")
