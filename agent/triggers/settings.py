"""What all kinds of trigger sources have in their settings."""

from typing import Annotated, Final

from pydantic import Field, model_validator

from agent.settings_values import Milliseconds, Name
from engine.registry import Kinds
from engine.spec import spec


@spec
class AnyTriggerSettings:
    """A trigger source belongs to one camera."""

    type: str


@spec
class WindowSettings(AnyTriggerSettings):
    """A source that announces parts before their frames.

    The frame of a part comes `min_ms` to `max_ms` after it was announced. Parts whose frame does
    not end as NO_FRAME, and a frame that comes at another time is given to none. Of a source of
    `part_ids` it is the time from an id to its part; below 0 the part comes first.
    """

    type: str
    min_ms: Annotated[float, Field(ge=-86_400_000, le=86_400_000)] = 0.0
    max_ms: Milliseconds = 1000.0

    @model_validator(mode="after")
    def _is_a_window(self) -> "WindowSettings":
        if self.min_ms >= self.max_ms:
            raise ValueError("min_ms should be less than max_ms")
        return self

    @property
    def names_products(self) -> bool:
        """Whether each announcement says what the part is."""
        return False

    @property
    def counts_parts(self) -> bool:
        """Whether it announces parts; False: it only says what the line makes."""
        return True


@spec
class SinkTriggerSettings(WindowSettings):
    """A source that is the receiver of a sink, by its name."""

    sink: Name


@spec
class NamingSettings(WindowSettings):
    """A source that names parts and announces none: it stands as `part_ids` only."""


TRIGGERS: Final = Kinds("agent.triggers", AnyTriggerSettings, noun="trigger")
