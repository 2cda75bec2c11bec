"""What all kinds of cameras have in their settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator

from agent.part import FailSafe
from agent.settings_values import Milliseconds, Name, PartsPerMinute, Share
from agent.triggers.settings import TRIGGERS, AnyTriggerSettings, NamingSettings, WindowSettings
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


def _announcing(settings: AnyTriggerSettings) -> AnyTriggerSettings:
    problem = None
    if isinstance(settings, NamingSettings):
        problem = f"{settings.type} names parts and announces none; write it as part_ids"
    elif isinstance(settings, WindowSettings) and settings.min_ms < 0:
        problem = "min_ms should be at least 0: no frame comes before its trigger"
    if problem is not None:
        raise ValueError(problem)
    return settings


def _naming(settings: AnyTriggerSettings) -> AnyTriggerSettings:
    gives_ids = isinstance(settings, WindowSettings)
    if not gives_ids:
        raise ValueError(f"{settings.type} gives no part ids; write another type")
    return settings


@spec
class AnyCameraSettings:
    """Every part and every message names its camera by its `name`.

    `line` stands in place of the configuration's own `line` for the parts of this camera.
    `trigger` announces its parts; without one every frame is a part. `part_ids` names them, where
    ids come from a source of their own, such as a bar-code reader.
    """

    type: str
    name: Name = UNNAMED
    line: LineSettings | None = None
    trigger: Annotated[AnyTriggerSettings, TRIGGERS, AfterValidator(_announcing)] | None = None
    part_ids: Annotated[AnyTriggerSettings, TRIGGERS, AfterValidator(_naming)] | None = None

    @property
    def folder(self) -> Path | None:
        """The folder whose files are parts, where that is what the camera shows."""
        return None

    @property
    def written_to(self) -> Mapping[str, Path]:
        """Where the camera writes to, by key."""
        return {}


CAMERAS: Final = Kinds("agent.cameras", AnyCameraSettings, noun="camera")
