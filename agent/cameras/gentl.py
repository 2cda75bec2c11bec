"""An industrial camera by its maker's GenTL producer, a `.cti` file, such as for CoaXPress.

harvesters loads the producer in a child process, as a faulty one ends the process that loads it.
"""

import os
from pathlib import Path
from typing import Any, Final, Literal

from agent.camera_child.device import DeviceCamera
from agent.camera_child.device import found as looked_for
from agent.cameras.features import Features, FeaturesSettings
from agent.cameras.settings import Found
from agent.ports import CameraContext
from agent.settings_values import AnyPath
from engine.errors import CameraError, ConfigurationError
from engine.extras import install
from engine.spec import spec

_MEMORY: Final = 2_000_000_000
_VARIABLE: Final = "GENICAM_GENTL64_PATH"
"""Where makers' installers say that their producers are."""


@spec
class GentlSettings(FeaturesSettings):
    """The camera `device` of `producer`."""

    type: Literal["gentl"] = "gentl"
    producer: AnyPath


def open(settings: GentlSettings, context: CameraContext) -> "GentlCamera":
    """The camera that `settings` describe, not entered yet; checks that harvesters is there."""
    from importlib.util import find_spec

    if find_spec("harvesters") is None:
        remedy = f"needs harvesters; install it with: {install('gentl')}"
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
