"""An industrial camera, GigE Vision or USB3 Vision, by Aravis. A child process talks to it.

Aravis comes from the system's packages (gir1.2-aravis-0.8, python3-gi), so the child runs under the
system's Python; no package of pip is needed.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from agent.camera_child.device import found as looked_for
from agent.cameras.features import FeaturesCamera, FeaturesSettings
from agent.cameras.settings import Found
from agent.ports import CameraContext
from engine.spec import spec

_PYTHON: Final = "/usr/bin/python3"


@spec
class GenicamSettings(FeaturesSettings):
    """A camera that Aravis finds on the network or on USB."""

    type: Literal["genicam"] = "genicam"


def open(settings: GenicamSettings, context: CameraContext) -> "GenicamCamera":
    """The camera that `settings` describe, not entered yet."""
    return GenicamCamera(settings, context)


def found() -> list[Found]:
    """The cameras on network and USB; raises `CameraError` when nobody can look."""
    return [_found(each) for each in looked_for("genicam", GenicamCamera.looking(), _PYTHON)]


def _found(told: Mapping[str, Any]) -> Found:
    what = [
        f"{told['vendor']} {told['model']}",
        told["serial"] and f"serial {told['serial']}",
        told["address"],
        told["protocol"],
    ]
    settings: dict[str, Any] = {"type": "genicam", "device": told["serial"] or told["id"]}
    if told["features"].get("TriggerSource") == "Software":
        settings["trigger"] = {"type": "software"}
    return Found(title=", ".join(filter(None, what)), settings=settings, features=told["features"])


class GenicamCamera(FeaturesCamera):
    """A camera over Aravis."""

    kind = "genicam"
    python = _PYTHON
    max_memory = 1_000_000_000
