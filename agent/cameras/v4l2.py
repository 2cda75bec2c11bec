"""A camera of Video4Linux2: a webcam, a frame grabber or a board's own camera, in a child process.

It runs freely. OpenCV reads it; nothing of this could be tried with a device here.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints

from agent.camera_child.device import DeviceCamera
from agent.cameras.settings import AnyCameraSettings, Found
from agent.ports import CameraContext
from agent.settings_values import AnyPath, Seconds
from engine.spec import spec

_MEMORY: Final = 2_000_000_000
_NAMES: Final = Path("/sys/class/video4linux")
_SIDE_MAX: Final = 32_768


@spec
class V4l2Settings(AnyCameraSettings):
    """The camera at `device`, asked for `width` × `height`, `rate` frames/s and `fourcc`.

    What it does not have it replaces by what is near. One that gives no frame for `silent_s` is
    opened again.
    """

    type: Literal["v4l2"] = "v4l2"
    device: AnyPath = Path("/dev/video0")
    width: Annotated[int, Field(ge=1, le=_SIDE_MAX)] | None = None
    height: Annotated[int, Field(ge=1, le=_SIDE_MAX)] | None = None
    rate: Annotated[float, Field(ge=0.01, le=10_000)] | None = None
    fourcc: Annotated[str, StringConstraints(pattern=r"^[A-Z0-9]{4}$", max_length=4)] | None = None
    silent_s: Seconds = 2.0


def open(settings: V4l2Settings, context: CameraContext) -> "V4l2Camera":
    """The camera that `settings` describe, not entered yet."""
    return V4l2Camera(settings, context)


def found() -> list[Found]:
    """The devices that the kernel has."""
    return [
        Found(
            title=f"{(place / 'name').read_text().strip()}, /dev/{place.name}",
            settings={"type": "v4l2", "device": f"/dev/{place.name}"},
        )
        for place in sorted(_NAMES.glob("video*"))
        if (place / "name").is_file()
    ]


class V4l2Camera(DeviceCamera):
    """A camera that runs freely; a scene that stands still may give equal pictures."""

    kind = "v4l2"
    is_live = False

    def __init__(self, settings: V4l2Settings, context: CameraContext) -> None:
        super().__init__(settings.name, context, what=f"camera {settings.device}", triggered=False)
        self._settings = settings

    def child_settings(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "max_memory": _MEMORY,
            "device": str(settings.device),
            "width": settings.width,
            "height": settings.height,
            "rate": settings.rate,
            "fourcc": settings.fourcc,
            "silent_s": settings.silent_s,
        }

    def renewed(self) -> "V4l2Camera":
        camera = V4l2Camera(self._settings, self.context)
        camera.number = self.number
        return camera
