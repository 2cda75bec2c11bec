"""An industrial camera by its maker's GenTL producer, a `.cti` file, such as for CoaXPress.

harvesters loads the producer in a child process, as a faulty one ends the process that loads it.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from agent.camera_child.device import DeviceCamera
from agent.camera_child.device import found as looked_for
from agent.cameras.features import FeatureName, Features, feature, is_on
from agent.cameras.settings import AnyCameraSettings, Found
from agent.ports import CameraContext
from agent.settings_values import AnyPath, Text
from engine.errors import CameraError, ConfigurationError
from engine.spec import spec

_MEMORY: Final = 2_000_000_000
_VARIABLE: Final = "GENICAM_GENTL64_PATH"
"""Where makers' installers say that their producers are."""


@spec
class GentlSettings(AnyCameraSettings):
    """The camera `device` of `producer`: its serial number or id; without one the only one.

    `features`, `bits` and `trigger_count_chunk` are as of `genicam`.
    """

    type: Literal["gentl"] = "gentl"
    producer: AnyPath
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


def open(settings: GentlSettings, context: CameraContext) -> "GentlCamera":
    """The camera that `settings` describe, not entered yet; checks that harvesters is there."""
    from importlib.util import find_spec

    if find_spec("harvesters") is None:
        remedy = "needs harvesters; install it with: pip install 'atac-agent[gentl]'"
        raise ConfigurationError("camera.type", settings.type, remedy)
    return GentlCamera(settings, context)


def found() -> list[Found]:
    """The cameras of the producers that are installed; raises `CameraError`."""
    folders = [Path(each) for each in os.environ.get(_VARIABLE, "").split(os.pathsep) if each]
    producers = sorted(path for folder in folders for path in folder.glob("*.cti"))
    cameras: list[Found] = []
    for producer in producers:
        looking = _told(producer, None, None)
        try:
            there = looked_for("gentl", looking, None)
        except CameraError as error:
            raise CameraError(f"{producer}: {error}") from None
        cameras += [
            Found(
                title=f"{each['title']}, serial {each['serial']}",
                settings={
                    "type": "gentl",
                    "producer": str(producer),
                    "device": each["serial"] or each["id"],
                },
            )
            for each in there
        ]
    return cameras


def _told(producer: Path, device: str | None, features: Features | None) -> dict[str, Any]:
    return {
        "max_memory": _MEMORY,
        "producer": str(producer),
        "device": device,
        "features": features,
        "is_free_running": True,
        "trigger_count_chunk": None,
    }


class GentlCamera(DeviceCamera):
    """A camera of a GenTL producer; triggered where its features say so, else free-running."""

    kind = "gentl"

    def __init__(self, settings: GentlSettings, context: CameraContext) -> None:
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
        return _told(settings.producer, settings.device, settings.features) | {
            "is_free_running": not settings.is_triggered,
            "trigger_count_chunk": settings.trigger_count_chunk,
        }

    def renewed(self) -> "GentlCamera":
        camera = GentlCamera(self._settings, self.context)
        camera.number = self.number
        return camera
