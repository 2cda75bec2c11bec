"""Images of a folder as a camera: one part each, in order, none skipped."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from agent.cameras.pace import Pace
from agent.cameras.settings import AnyCameraSettings
from agent.settings_values import AnyPath, PartsPerMinute
from engine.errors import CameraError, ImageError
from engine.frame import Frame
from engine.image import images_below, read_image
from engine.spec import spec

_LOOK_S: Final = 0.2
"""How often a watched folder is searched for new images."""


@spec
class FolderSettings(AnyCameraSettings):
    """All images below `path`, sorted by name.

    `after_last` says what follows the last image: the run ends, the folder is `watch`ed for new
    images, or all are shown again (`repeat`). `parts_per_minute` paces them; without it the next
    image is there as soon as it is wanted.
    """

    type: Literal["folder"] = "folder"
    path: AnyPath
    after_last: Literal["end", "watch", "repeat"] = "end"
    parts_per_minute: PartsPerMinute | None = None


def open(settings: FolderSettings, stop: threading.Event) -> "FolderCamera":
    """The camera that `settings` describe."""
    return FolderCamera(settings, stop)


class FolderCamera:
    """A triggered camera over a folder.

    Entered again after a `CameraError` it goes on where it was, with what the folder has then.
    """

    triggered: Final = True

    def __init__(self, settings: FolderSettings, stop: threading.Event | None = None) -> None:
        self._settings = settings
        self._stop = stop or threading.Event()
        per_minute = settings.parts_per_minute
        self._pace = Pace(60 / per_minute if per_minute else 0.0, self._stop)
        self._waiting: deque[Path] = deque()
        self._done: set[Path] = set()
        self._stamps: dict[Path, _Stamp] = {}
        self._names: dict[int, str] = {}
        self._number = 0

    def __enter__(self) -> Self:
        found = self._images()
        if not found and self._settings.after_last != "watch":
            raise CameraError(f"camera folder {self._settings.path} holds no images")
        if self._settings.after_last != "watch":
            self._waiting = deque(path for path in found if path not in self._done)
        self._pace.restart()
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self) -> Frame | None:
        """The next image; `None` after the last one, or when stopped.

        Raises `ImageError` for an image that cannot be used: it counts as a frame, and the next
        call goes on with the next image. Raises `CameraError` when the folder has gone.
        """
        if not self._pace.wait():
            return None
        path = self._next()
        if path is None:
            return None
        try:
            pixels = read_image(path)
        except ImageError as error:
            if not self._settings.path.is_dir():
                raise CameraError(f"camera folder {self._settings.path} has gone") from error
            self._finish(path)
            raise
        frame = Frame(pixels=pixels, number=self._number, captured_ns=time.time_ns())
        self._finish(path)
        return frame

    @property
    def silence_s(self) -> float | None:
        return None if self._settings.after_last == "watch" else self._pace.silence_s

    @property
    def is_live(self) -> bool:
        return False

    def renewed(self) -> "FolderCamera":
        camera = FolderCamera(self._settings, self._stop)
        camera._done = set(self._done)
        camera._names, camera._number = dict(self._names), self._number
        return camera

    def part_id(self, number: int) -> str:
        """The image's path inside the folder; known for the newest hundred frames."""
        return self._names.get(number, f"frame-{number:06d}")

    def _finish(self, path: Path) -> None:
        self._waiting.popleft()
        self._done.add(path)
        self._names[self._number] = path.relative_to(self._settings.path).as_posix()
        self._names.pop(self._number - 100, None)
        self._number += 1

    def _next(self) -> Path | None:
        """The image whose turn it is; it stays first in `_waiting` until it is finished."""
        if self._waiting:
            return self._waiting[0]
        match self._settings.after_last:
            case "end":
                return None
            case "repeat":
                self._done.clear()
                self._waiting = deque(self._images())
                if not self._waiting:
                    raise CameraError(f"camera folder {self._settings.path} holds no images")
            case "watch":
                while not self._waiting:
                    self._waiting.extend(self._arrived())
                    if not self._waiting and self._stop.wait(_LOOK_S):
                        return None
        return self._waiting[0]

    def _images(self) -> list[Path]:
        if not self._settings.path.is_dir():
            raise CameraError(f"camera folder {self._settings.path} is not there")
        return images_below(self._settings.path)

    def _arrived(self) -> list[Path]:
        """New images that have not changed since the last look: nobody is still writing them."""
        new = [path for path in self._images() if path not in self._done]
        before, self._stamps = self._stamps, {}
        for path in new:
            try:
                status = path.stat()
            except OSError:  # renamed or removed between the two looks
                continue
            self._stamps[path] = _Stamp(size=status.st_size, changed_ns=status.st_mtime_ns)
        return [path for path, stamp in self._stamps.items() if before.get(path) == stamp]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stamp:
    size: int
    changed_ns: int
