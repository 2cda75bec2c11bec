"""The child of a video camera: decodes frame by frame, also beyond damage."""

import heapq
import os
import stat
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import cv2

from agent.camera_child.process import SharedPixels
from agent.camera_child.wire import GoneError, Message, receive, send, why
from engine.image import MAX_PIXELS

_TRIES: Final = 4096
"""Packets that cannot be decoded, one after another, before the video counts as ended."""
_SPARE: Final = 256
"""Tries beyond the frames that the file announces."""
_AHEAD: Final = 8


def serve(connection: Connection, memory: int, **settings: Any) -> None:
    """Answer the agent's requests until it closes the connection."""
    video: _Video | None = None
    while True:
        request = receive(connection)
        try:
            if video is None:
                video = _Video(connection, SharedPixels(memory), **settings)
            told = video.start(request["number"]) if request["do"] == "start" else video.next()
        except OSError as error:
            told = {"gone": why(error)}
        send(connection, told)


class _Video:
    def __init__(self, connection: Connection, memory: SharedPixels, *, path: str) -> None:
        self._connection = connection
        self._memory = memory
        self._path = Path(path)
        self._number = 0  # of the next frame to give
        self._counted = 0  # the number after the largest that was grabbed
        self._grabs = 0
        self._offset = 0
        self._is_damaged = False
        self._has_ended = False
        self._ahead: list[tuple[int, int, Any]] = []
        self._order = count()
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise GoneError("is not a file")
        with open(path, "rb") as file:
            file.read(1)
        # Named so, a colon in a file's name is no protocol.
        self._capture = cv2.VideoCapture(f"file:{os.path.abspath(path)}", cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise GoneError("cannot be read: not a video, or damaged")
        width, height = self._get(cv2.CAP_PROP_FRAME_WIDTH), self._get(cv2.CAP_PROP_FRAME_HEIGHT)
        if width * height > MAX_PIXELS:
            raise GoneError(f"{width:g}×{height:g} pixels are more than the {MAX_PIXELS} allowed")
        self._announced = max(0, int(self._get(cv2.CAP_PROP_FRAME_COUNT)))

    def start(self, number: int) -> Message:
        """Continue with the frame of this number."""
        while self._counted < number and self._grabbed() is not None:
            pass
        self._number = number
        return {"rate": self._get(cv2.CAP_PROP_FPS), "announced": self._announced}

    def next(self) -> Message:
        """The next frame and its number, or that there is none."""
        while True:
            # Beyond damage frames may come in the wrong order: the first of some is the next.
            while not self._has_ended and len(self._ahead) <= (_AHEAD if self._is_damaged else 0):
                self._look_ahead()
            if not self._ahead:
                os.stat(self._path)
                return {"ended": True}
            number, _, bgr = heapq.heappop(self._ahead)
            if number >= self._number:
                break
        self._number = number + 1
        if bgr is None:
            return {"number": number, "failed": "cannot be decoded"}
        rgb = self._memory.pixels((*bgr.shape[:2], 3))
        cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=rgb)
        return {"number": number, "shape": rgb.shape}

    def _look_ahead(self) -> None:
        if (number := self._grabbed()) is None:
            self._has_ended = True
            return
        there, bgr = self._capture.retrieve()
        heapq.heappush(self._ahead, (number, next(self._order), bgr if there else None))

    def _grabbed(self) -> int | None:
        """Go to the next frame that can be decoded and give its number; `None` at the end."""
        left = self._announced - self._grabs + _SPARE if self._announced else _TRIES
        for _ in range(max(left, _SPARE)):
            send(self._connection, {"doing": "look"})
            self._grabs += 1
            if not self._capture.grab():
                self._is_damaged = True
                continue
            time = int(self._get(cv2.CAP_PROP_PTS))
            if not self._is_damaged:
                # Counted, as the times of a video without a steady rate have gaps of their own;
                # beyond damage the times tell how many frames are missing.
                self._offset = time - self._counted
            number = time - self._offset
            self._counted = max(self._counted, number) + 1
            return number
        return None

    def _get(self, key: int) -> float:
        return self._capture.get(key)
