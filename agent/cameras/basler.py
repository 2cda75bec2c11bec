"""A Basler camera by pylon, the maker's own software, in a child process.

`genicam` serves Basler's GigE and USB3 cameras too and needs nothing of Basler's; this is for what
only pylon can do. pylon is proprietary.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from agent.camera_child.device import DeviceCamera
from agent.camera_child.device import found as looked_for
from agent.cameras.features import FeatureName, Features, feature, is_on
from agent.cameras.settings import AnyCameraSettings, Found
from agent.ports import CameraContext
from agent.settings_values import Text
from engine.errors import ConfigurationError
from engine.spec import spec

_MEMORY: Final = 4_000_000_000


@spec
class BaslerSettings(AnyCameraSettings):
    """The camera with the serial number `device`; without one the only one.

    `features`, `bits` and `trigger_count_chunk` are as of `genicam`.
    """

    type: Literal["basler"] = "basler"
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


def open(settings: BaslerSettings, context: CameraContext) -> "BaslerCamera":
    """The camera that `settings` describe, not entered yet; checks that pylon is there."""
    from importlib.util import find_spec

    if find_spec("pypylon") is None:
        remedy = "needs pypylon; install it with: pip install 'atac-agent[basler]'"
        raise ConfigurationError("camera.type", settings.type, remedy)
    return BaslerCamera(settings, context)


def found() -> list[Found]:
    """The cameras that pylon finds; none where it is not installed. Raises `CameraError`."""
    from importlib.util import find_spec

    if find_spec("pypylon") is None:
        return []
    return [
        Found(
            title=f"{each['title']}, serial {each['serial']}",
            settings={"type": "basler", "device": each["serial"]},
        )
        for each in looked_for("basler", _told(None, None), None)
    ]


def _told(device: str | None, features: Features | None) -> dict[str, Any]:
    return {
        "max_memory": _MEMORY,
        "device": device,
        "features": features,
        "is_free_running": True,
        "trigger_count_chunk": None,
    }


class BaslerCamera(DeviceCamera):
    """A camera of pylon; triggered where its features say so, else free-running."""

    kind = "basler"

    def __init__(self, settings: BaslerSettings, context: CameraContext) -> None:
        super().__init__(
            settings.name,
            context,
            what=f"camera {settings.device or settings.name}",
            triggered=settings.is_triggered,
            fires=settings.is_fired,
            bits=settings.bits,
        )
        self._settings = settings

    def child_settings(self) -> dict[str, Any]:
        settings = self._settings
        return _told(settings.device, settings.features) | {
            "is_free_running": not settings.is_triggered,
            "trigger_count_chunk": settings.trigger_count_chunk,
        }

    def renewed(self) -> "BaslerCamera":
        camera = BaslerCamera(self._settings, self.context)
        camera.number = self.number
        return camera
