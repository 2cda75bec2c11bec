"""What all kinds of cameras have in their settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from agent.part import FailSafe
from agent.settings_values import Milliseconds, Name, PartsPerMinute, Share
from agent.triggers.settings import TRIGGERS, AnyTriggerSettings
from engine.registry import Kinds
from engine.spec import spec

UNNAMED: Final = "main"
"""What a camera is called that was given no name."""


@spec
class LineSettings:
    """What the line expects of a verdict.

    A part whose verdict is not there `deadline_ms` after its frame ends as TIMEOUT; without it
    `parts_per_minute` gives the deadline: the next part's time. `fail_safe` says what becomes of
    a part without a frame, or that was not inspected in time or not at all (NO_FRAME, TIMEOUT,
    DROPPED): `reject` raises an alarm, `pass` does not; both are counted. When more than the share
    `max_dropped` of the parts of the last minute was DROPPED, the agent is degraded.
    """

    deadline_ms: Milliseconds | None = None
    parts_per_minute: PartsPerMinute | None = None
    fail_safe: FailSafe = "reject"
    max_dropped: Share = 0.01

    @property
    def deadline_s(self) -> float | None:
        """The time from frame to verdict that the line allows, in seconds."""
        if self.deadline_ms is not None:
            return self.deadline_ms / 1e3
        if self.parts_per_minute is not None:
            return 60 / self.parts_per_minute
        return None


@spec
class AnyCameraSettings:
    """Every part and every message names its camera by its `name`.

    `line` stands in place of the configuration's own `line` for the parts of this camera.
    `trigger` announces its parts; without one every frame is a part.
    """

    type: str
    name: Name = UNNAMED
    line: LineSettings | None = None
    trigger: Annotated[AnyTriggerSettings, TRIGGERS] | None = None

    @property
    def folder(self) -> Path | None:
        """The folder whose files are parts, where that is what the camera shows."""
        return None

    @property
    def written_to(self) -> Mapping[str, Path]:
        """Where the camera writes to, by key."""
        return {}


CAMERAS: Final = Kinds("agent.cameras", AnyCameraSettings, noun="camera")
