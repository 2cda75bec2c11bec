"""An industrial camera by its maker's GenTL producer, a `.cti` file, such as for CoaXPress.

harvesters loads the producer in a child process, as a faulty one ends the process that loads it.
"""

import os
from pathlib import Path
from typing import Any, Final, Literal

from agent.camera_child.device import found as looked_for
from agent.cameras.features import FeaturesCamera, FeaturesSettings
from agent.cameras.settings import Found
from agent.ports import CameraContext
from agent.settings_values import AnyPath
from engine.errors import CameraError, ConfigurationError
from engine.extras import install
from engine.spec import spec

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
        looking = GentlCamera.looking() | {"producer": str(producer)}
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


class GentlCamera(FeaturesCamera):
    """A camera of a GenTL producer."""

    kind = "gentl"
    max_memory = 2_000_000_000

    def __init__(self, settings: GentlSettings, context: CameraContext) -> None:
        super().__init__(settings, context)
        self._producer = settings.producer

    def child_settings(self) -> dict[str, Any]:
        return super().child_settings() | {"producer": str(self._producer)}
