"""A camera's features in a configuration: their SFNC names and the values to be written."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import BeforeValidator, Field, StringConstraints

from agent.camera_child.device import DeviceCamera
from agent.cameras.settings import AnyCameraSettings
from agent.ports import CameraContext
from agent.settings_values import Text
from engine.spec import spec

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


def feature(features: Features, name: str) -> FeatureValue | None:
    """The value that `name` is given last; `None`: none."""
    return dict(features).get(name)


def is_on(value: FeatureValue | None) -> bool:
    """Whether an enumeration of On and Off is on; YAML takes these words for true and false."""
    return value is True or value == "On"


@spec
class FeaturesSettings(AnyCameraSettings):
    """A camera with features by SFNC names.

    `device` is its serial number, address or id; without one it is the only one. `features` are
    written in this order before it starts, read back and compared. `bits` says how many of the
    lower bits of a pixel count, where it has more than eight. With `TriggerMode: On` every frame
    is a part; with `TriggerSource: Software` beside it the camera exposes when a part is
    announced. `trigger_count_chunk` names the chunk in which the camera counts its triggers.
    """

    device: Text | None = None
    features: Features = ()
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    trigger_count_chunk: FeatureName | None = None

    def __post_init__(self) -> None:
        if self.is_fired and self.trigger is None:
            raise ValueError(
                "TriggerSource: Software needs a trigger that announces parts; write one below "
                "trigger, or TriggerMode: Off"
            )

    @property
    def is_triggered(self) -> bool:
        """Whether the camera waits for something before each frame."""
        return is_on(feature(self.features, "TriggerMode"))

    @property
    def is_fired(self) -> bool:
        """Whether it waits for the agent."""
        return self.is_triggered and feature(self.features, "TriggerSource") == "Software"


class FeaturesCamera(DeviceCamera):
    """A camera with features; triggered where they say so, else free-running.

    Args:
        settings: Which camera, and its features.
        context: What it is opened with.
    """

    max_memory: ClassVar[int]
    """The bytes that its child may take."""

    def __init__(self, settings: FeaturesSettings, context: CameraContext) -> None:
        super().__init__(
            settings.name,
            context,
            what=f"camera {settings.device or settings.name}",
            triggered=settings.is_triggered,
            fires=settings.is_fired,
            bits=settings.bits,
        )
        self._settings = settings

    @classmethod
    def looking(cls) -> dict[str, Any]:
        """What a child is told that shall say which cameras there are."""
        return {
            "max_memory": cls.max_memory,
            "device": None,
            "features": None,
            "is_free_running": True,
            "trigger_count_chunk": None,
        }

    def child_settings(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "max_memory": self.max_memory,
            "device": settings.device,
            "features": settings.features,
            "is_free_running": not settings.is_triggered,
            "trigger_count_chunk": settings.trigger_count_chunk,
        }

    def renewed(self) -> Self:
        camera = type(self)(self._settings, self.context)
        camera.number = self.number
        return camera
