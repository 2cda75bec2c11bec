"""Where frames come from. Each module holds one kind of camera and its settings."""

import threading
from types import TracebackType
from typing import Annotated, Protocol, Self

from pydantic import Field

from agent.cameras.conveyor import ConveyorCamera, ConveyorSettings
from agent.cameras.folder import FolderCamera, FolderSettings
from agent.cameras.video import VideoCamera, VideoSettings
from engine.frame import Frame

CameraSettings = Annotated[
    FolderSettings | VideoSettings | ConveyorSettings, Field(discriminator="type")
]


class Camera(Protocol):
    """A source of frames; a context manager.

    Making one touches nothing. Entering connects and raises `CameraError` when the camera is not
    ready; after any `CameraError` it is left and may be entered again. `read` is called from one
    thread. Frames are RGB or mono, uint8; their numbers count from 0 and a gap means that the
    camera lost some. After re-entry they may start again.
    """

    @property
    def triggered(self) -> bool:
        """True: every frame is a part that waits for its inspection, as behind a trigger.

        False: the camera runs freely; the newest frame wins, and those skipped end as DROPPED.
        """
        ...

    @property
    def silence_s(self) -> float | None:
        """When `read` takes longer, something is wrong; `None`: parts come when they come.

        `read` is then left where it is, and the line goes on with a `renewed` camera.
        """
        ...

    @property
    def is_live(self) -> bool:
        """Whether its pictures have a sensor's noise: one that comes twice was not taken twice."""
        ...

    def renewed(self) -> "Camera":
        """A camera, not entered, that goes on where this one is and shares nothing with it."""
        ...

    def read(self) -> Frame | None:
        """The next frame, waited for; `None` when the source has ended or is told to stop.

        Raises `ImageError` when the next part's picture cannot be used (it has taken a frame
        number; the camera goes on), `CameraError` when the camera has gone.
        """
        ...

    def part_id(self, number: int) -> str:
        """What the part in the recent frame `number` is called."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_camera(settings: CameraSettings, stop: threading.Event | None = None) -> Camera:
    """The camera that `settings` describe, not entered yet; `stop` ends its waits."""
    match settings:
        case FolderSettings():
            return FolderCamera(settings, stop)
        case VideoSettings():
            return VideoCamera(settings, stop)
        case ConveyorSettings():
            return ConveyorCamera(settings, stop)
