"""A Basler camera by pylon, the maker's own software, in a child process.

`genicam` serves Basler's GigE and USB3 cameras too and needs nothing of Basler's; this is for what
only pylon can do. pylon is proprietary.
"""

from typing import Literal

from agent.camera_child.device import found as looked_for
from agent.cameras.features import FeaturesCamera, FeaturesSettings
from agent.cameras.settings import Found
from agent.ports import CameraContext
from engine.errors import ConfigurationError
from engine.extras import install
from engine.spec import spec


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
        for each in looked_for("basler", BaslerCamera.looking(), None)
    ]


class BaslerCamera(FeaturesCamera):
    """A camera of pylon."""

    kind = "basler"
    max_memory = 4_000_000_000
