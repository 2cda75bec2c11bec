"""A video file as a camera. A child process decodes it."""

import logging
from typing import Any, Final, Literal

from agent.camera_child.camera import ChildCamera
from agent.camera_child.wire import Message
from agent.cameras.pace import Pace
from agent.cameras.settings import AnyCameraSettings
from agent.ports import CameraContext
from agent.settings_values import AnyPath
from engine.errors import FrameLostError, ImageError
from engine.frame import Frame
from engine.spec import spec

_LOG: Final = logging.getLogger("atac_agent.camera")
_MOST_MISSING: Final = 10_000
_MEMORY: Final = 1_500_000_000
_ENDS_EXACTLY: Final = frozenset({".avi", ".m4v", ".mov", ".mp4"})
"""Files of these kinds hold the number of their frames; of others it is an estimate."""


@spec
class VideoSettings(AnyCameraSettings):
    """The frames of the video file `path`, each one a part.

    With `realtime` they come at the video's own rate, as from a camera that nobody can stop:
    frames that arrive while the agent is busy end as DROPPED. Without it every frame waits for
    its inspection.
    """

    type: Literal["video"] = "video"
    path: AnyPath
    realtime: bool = True


def open(settings: VideoSettings, context: CameraContext) -> "VideoCamera":
    """The camera that `settings` describe, not entered yet."""
    return VideoCamera(settings, context)


class VideoCamera(ChildCamera):
    """A camera over a video file; free-running in real time, else triggered.

    Frames are numbered by their place in the video. Those that damage has taken are lost frames.
    After a `CameraError` it continues where it was.
    """

    kind = "video"

    def __init__(self, settings: VideoSettings, context: CameraContext) -> None:
        super().__init__(context, what=f"video {settings.path}")
        self._settings = settings
        self.triggered = not settings.realtime
        self._announced = 0
        self._lost_until = 0
        self._held: Message | None = None

    def child_settings(self) -> dict[str, Any]:
        return {"path": str(self._settings.path), "max_memory": _MEMORY}

    def connect(self) -> None:
        self._held, self._lost_until = None, 0
        told = self.ask({"do": "start", "number": self.number})
        rate = told["rate"] if told else 1.0
        if self._settings.realtime and not 0 < rate < 10_000:
            raise self.gone("has no frame rate; set realtime: false")
        self._announced = told["announced"] if told else 0
        self.pace = Pace(1 / rate if self._settings.realtime else 0.0, self.context)

    def read(self) -> Frame | None:
        """The next frame; `None` after the last one, or when stopped.

        Raises `FrameLostError` for each frame that the video lacks.
        """
        if not self.pace.wait():
            return None
        if (told := self._held) is None:
            told = self._held = self.ask({"do": "next"})
            if told is None:
                return None
            self._lost_until = self._end() if "ended" in told else told["number"]
        path, name = str(self._settings.path), f"frame {self.number}"
        if self.number < self._lost_until:
            self.count()
            raise FrameLostError(path, f"{name} is missing: the video is damaged there")
        self._held = None
        if "ended" in told:
            self.number = 0  # entered again, it is shown again
            return None
        if "failed" in told:
            self.count()
            raise ImageError(path, f"{name} {told['failed']}")
        return self.frame(self.picture(told))

    def renewed(self) -> "VideoCamera":
        camera = VideoCamera(self._settings, self.context)
        camera.number = self.number
        return camera

    def _end(self) -> int:
        """The number after the last frame that there should be; says what is missing."""
        if self.number >= self._announced:
            return self.number
        _LOG.warning(
            "video %s ended after %d of its %d frames: it may be cut short",
            self._settings.path,
            self.number,
            self._announced,
        )
        is_exact = self._settings.path.suffix.lower() in _ENDS_EXACTLY
        missing = self._announced - self.number
        return self._announced if is_exact and missing <= _MOST_MISSING else self.number
