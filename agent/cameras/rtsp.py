"""A network camera by RTSP, decoded by OpenCV's FFmpeg in a child process.

Such a camera runs freely and has no trigger input: its exposure cannot be tied to a part. The
address holds no password: it would be seen in messages and process lists.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator

from agent.camera_child.device import DeviceCamera
from agent.cameras.settings import AnyCameraSettings
from agent.ports import CameraContext
from agent.secret import read_secret
from agent.settings_values import AnyPath, Seconds, Text
from engine.errors import ConfigurationError
from engine.spec import spec

_MEMORY: Final = 2_000_000_000


def _address(text: str) -> str:
    if not text.lower().startswith(("rtsp://", "rtsps://")) or set(text) & set(" \\"):
        raise ValueError("write an address that starts with rtsp:// or rtsps://")
    if "@" in text:
        raise ValueError("write the address without user and password; they have keys of their own")
    return text


@spec
class RtspSettings(AnyCameraSettings):
    """The stream at `url`, by TCP unless `transport` says `udp`.

    The password of `user` is the content of `password_file` or of the environment variable
    `password_variable`. A camera that does not answer within `open_s`, or gives no frame for
    `silent_s`, is opened again.
    """

    type: Literal["rtsp"] = "rtsp"
    url: Annotated[Text, AfterValidator(_address)]
    transport: Literal["tcp", "udp"] = "tcp"
    user: Text | None = None
    password_file: AnyPath | None = None
    password_variable: Text | None = None
    open_s: Seconds = 5.0
    silent_s: Seconds = 2.0


def open(settings: RtspSettings, context: CameraContext) -> "RtspCamera":
    """The camera that `settings` describe, not entered yet."""
    _password(settings)
    return RtspCamera(settings, context)


def _password(settings: RtspSettings) -> str | None:
    """Read again for each connection, so that it can change while the agent runs."""
    key = f"camera {settings.name}"
    found = read_secret(
        f"{key}.password", file=settings.password_file, variable=settings.password_variable
    )
    if found is not None and settings.user is None:
        raise ConfigurationError(f"{key}.user", None, "is missing beside the password; write it")
    return found


class RtspCamera(DeviceCamera):
    """A camera that runs freely; a scene that stands still may give equal pictures."""

    kind = "rtsp"
    is_live = False

    def __init__(self, settings: RtspSettings, context: CameraContext) -> None:
        host = settings.url.partition("://")[2].partition("/")[0]
        super().__init__(
            settings.name, context, what=f"camera {settings.name} at {host}", triggered=False
        )
        self._settings = settings

    def child_settings(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "max_memory": _MEMORY,
            "url": settings.url,
            "transport": settings.transport,
            "user": settings.user,
            "password": _password(settings),
            "open_s": settings.open_s,
            "silent_s": settings.silent_s,
        }

    def renewed(self) -> "RtspCamera":
        camera = RtspCamera(self._settings, self.context)
        camera.number = self.number
        return camera
