"""A Basler camera by pylon, the maker's own software, in a child process.

`genicam` serves Basler's GigE and USB3 cameras too and needs nothing of Basler's; this is for what
only pylon can do. pylon is proprietary.
"""

from typing import Any, Final, Literal

from agent.camera_child.device import DeviceCamera
from agent.camera_child.device import found as looked_for
from agent.cameras.features import Features, FeaturesSettings
from agent.cameras.settings import Found
from agent.ports import CameraContext
from engine.errors import ConfigurationError
from engine.extras import install
from engine.spec import spec

_MEMORY: Final = 4_000_000_000


@spec
class BaslerSettings(FeaturesSettings):
    """A camera that pylon finds."""

    type: Literal["basler"] = "basler"


def open(settings: BaslerSettings, context: CameraContext) -> "BaslerCamera":
    """The camera that `settings` describe, not entered yet; checks that pylon is there."""
    from importlib.util import find_spec

    if find_spec("pypylon") is None:
        remedy = f"needs pypylon; install it with: {install('basler')}"
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
