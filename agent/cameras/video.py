"""A video file as a camera."""

import logging
import threading
import time
from typing import Final, Literal, Self

import cv2
import numpy as np

from agent.cameras.pace import Pace
from agent.cameras.settings import AnyCameraSettings
from agent.settings_values import AnyPath
from engine.errors import CameraError
from engine.frame import Frame
from engine.spec import spec

_LOG: Final = logging.getLogger("atac_agent.camera")


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


def open(settings: VideoSettings, stop: threading.Event) -> "VideoCamera":
    """The camera that `settings` describe."""
    return VideoCamera(settings, stop)


class VideoCamera:
    """A camera over a video file; free-running in real time, else triggered."""

    def __init__(self, settings: VideoSettings, stop: threading.Event | None = None) -> None:
        self._settings = settings
        self._stop = stop or threading.Event()
        self._capture: cv2.VideoCapture | None = None
        self._pace = Pace(0.0, self._stop)
        self._number = 0

    @property
    def triggered(self) -> bool:
        return not self._settings.realtime

    def __enter__(self) -> Self:
        path = self._settings.path
        if not path.is_file():
            raise CameraError(f"video {path} is not there")
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        rate = capture.get(cv2.CAP_PROP_FPS)
        if not capture.isOpened():
            raise CameraError(f"video {path} cannot be read: not a video, or damaged")
        if self._settings.realtime and not 0 < rate < 10_000:
            capture.release()
            raise CameraError(f"video {path} has no frame rate; set camera.realtime: false")
        self._capture = capture
        self._pace = Pace(1 / rate if self._settings.realtime else 0.0, self._stop)
        self._number = 0
        return self

    def __exit__(self, *_: object) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def read(self) -> Frame | None:
        """The next frame; `None` after the last one, or when stopped."""
        assert self._capture is not None, "read() outside the with block"
        if not self._pace.wait():
            return None
        there, bgr = self._capture.read()
        if not there:
            announced = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
            if self._number < announced:
                _LOG.warning(
                    "video %s ended after %d of its %d frames: it may be cut short",
                    self._settings.path,
                    self._number,
                    announced,
                )
            return None
        pixels = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        frame = Frame(pixels=pixels, number=self._number, captured_ns=time.time_ns())
        self._number += 1
        return frame

    @property
    def silence_s(self) -> float:
        return self._pace.silence_s

    @property
    def is_live(self) -> bool:
        return False

    def renewed(self) -> "VideoCamera":
        return VideoCamera(self._settings, self._stop)

    def part_id(self, number: int) -> str:
        """`frame-000012`: the frame's place in the video."""
        return f"frame-{number:06d}"
