"""What all kinds of cameras have in their settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from agent.part import FailSafe
from agent.settings_values import Milliseconds, Name, PartsPerMinute, Share, Shifts, Text
from agent.triggers.settings import TRIGGERS, AnyTriggerSettings, NamingSettings, WindowSettings
from engine.registry import Kinds
from engine.spec import spec

UNNAMED: Final = "main"
"""What a camera is called that was given no name."""


_NAME: Final = r"^[A-Za-z][A-Za-z0-9_]*$"
FeatureName = Annotated[str, StringConstraints(pattern=_NAME, max_length=128)]
FeatureValue = bool | int | float | Text


def _pairs(value: Any) -> Any:
    """One mapping, or a list of them where a feature is written more than once."""
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(each, Mapping) for each in several):
        if isinstance(value, tuple):  # what has been read already
            return value
        raise ValueError("should hold features with their values, such as ExposureTime: 4000")
    pairs = tuple(pair for each in several for pair in each.items())
    for name, given in pairs:
        if not re.fullmatch(_NAME, str(name)):
            raise ValueError(f"the name {name!r} should be of letters and digits, as ExposureTime")
        if not isinstance(given, bool | int | float | str):
            what = f"the value of {name} should be one number, text, true or false"
            raise ValueError(what)  # noqa: TRY004 - pydantic takes no other
    return pairs


Features = Annotated[tuple[tuple[FeatureName, FeatureValue], ...], BeforeValidator(_pairs)]
"""Features in the order in which they are written to the camera."""


@spec
class LineSettings:
    """What the line expects of a verdict.

    A part whose verdict is not there `deadline_ms` after its trigger ends as TIMEOUT. Without it
    `reject_distance_mm` and `belt_mm_per_s` give the deadline: the time that a part takes to the
    rejector; without these `parts_per_minute`: the next part's time. `reject_lead_ms` is what the
    rejector and the way to it need of that time. `fail_safe` says what becomes of
    a part without a frame, or that was not inspected in time or not at all (NO_FRAME, TIMEOUT,
    DROPPED): `reject` raises an alarm, `pass` does not; both are counted. When more than the share
    `max_dropped` of the parts of the last minute was DROPPED, the agent is degraded. At the end of
    each of the `shifts` the counts of trigger source, camera and agent are compared.
    """

    deadline_ms: Milliseconds | None = None
    reject_distance_mm: Annotated[float, Field(ge=1, le=1_000_000)] | None = None
    belt_mm_per_s: Annotated[float, Field(ge=0.1, le=100_000)] | None = None
    parts_per_minute: PartsPerMinute | None = None
    reject_lead_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0
    fail_safe: FailSafe = "reject"
    max_dropped: Share = 0.01
    shifts: Shifts = ("06:00", "14:00", "22:00")

    def __post_init__(self) -> None:
        if (self.reject_distance_mm is None) != (self.belt_mm_per_s is None):
            raise ValueError("reject_distance_mm and belt_mm_per_s go together; write both")
        due_s = self._due_s()
        if self.reject_lead_ms and (due_s is None or due_s <= self.reject_lead_ms / 1e3):
            raise ValueError("reject_lead_ms leaves no time for a verdict")

    @property
    def deadline_s(self) -> float | None:
        """The time from trigger to verdict that the line allows, in seconds."""
        due_s = self._due_s()
        return None if due_s is None else due_s - self.reject_lead_ms / 1e3

    def _due_s(self) -> float | None:
        if self.deadline_ms is not None:
            return self.deadline_ms / 1e3
        if self.reject_distance_mm is not None and self.belt_mm_per_s is not None:
            return self.reject_distance_mm / self.belt_mm_per_s
        if self.parts_per_minute is not None:
            return 60 / self.parts_per_minute
        return None


def _announcing(settings: AnyTriggerSettings) -> AnyTriggerSettings:
    problem = None
    if isinstance(settings, NamingSettings):
        problem = f"{settings.type} names parts and announces none; write it as part_ids"
    elif isinstance(settings, WindowSettings) and not settings.counts_parts:
        problem = "says what the line makes and announces no parts; write it as product_from"
    elif isinstance(settings, WindowSettings) and settings.min_ms < 0:
        problem = "min_ms should be at least 0: no frame comes before its trigger"
    if problem is not None:
        raise ValueError(problem)
    return settings


def _naming(settings: AnyTriggerSettings) -> AnyTriggerSettings:
    gives_ids = isinstance(settings, WindowSettings) and settings.counts_parts
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A device that is there: what it is, and what a configuration has to say to use it.

    A kind whose devices can be looked for has a function `found` beside its `open`; it gives a list
    of these, and raises `CameraError` when it cannot look.
    """

    title: str
    settings: Mapping[str, str | int | float | Mapping[str, str]]
    features: Mapping[str, str | int | float | bool] = field(default_factory=dict)


CAMERAS: Final = Kinds("agent.cameras", AnyCameraSettings, noun="camera")
