"""What all kinds of trigger sources have in their settings."""

from typing import Final

from engine.registry import Kinds
from engine.spec import spec


@spec
class AnyTriggerSettings:
    """A trigger source belongs to one camera."""

    type: str


TRIGGERS: Final = Kinds("agent.triggers", AnyTriggerSettings, noun="trigger")
