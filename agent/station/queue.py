"""The bounded queue between cameras and workers: the cameras' parts in turns."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from agent.part import Part

_ROOM: Final = 2
_BURST: Final = 8


class PartQueue:
    """Where each camera's thread leaves its parts and workers take them, the cameras in turns.

    Of the cameras that have parts waiting the one that was served longest ago is next: cameras
    that always have some get equal shares, and nobody's part waits for more than one of each other
    camera, and those of its own.
    """

    def __init__(self, cameras: Iterable[str]) -> None:
        # In the order of their turns, next first.
        self._waiting: dict[str, deque[Part]] = {camera: deque() for camera in cameras}
        self._open = set(self._waiting)
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        # One for each, so that a part that is taken does not wake all cameras.
        self._room = {camera: threading.Condition(lock) for camera in self._waiting}

    def put(self, part: Part) -> Part | None:
        """Leave `part` when less than two wait; gives it back if nobody will take it any more."""
        camera = part.camera
        with self._changed:
            self._room[camera].wait_for(
                lambda: camera not in self._open or len(self._waiting[camera]) < _ROOM
            )
            return self._leave(part)

    def replace(self, part: Part) -> Part | None:
        """Leave `part` at once; gives back the one that it displaces, as the newest wins."""
        with self._changed:
            waiting = self._waiting[part.camera]
            displaced = waiting.pop() if waiting and part.camera in self._open else None
            return self._leave(part) or displaced

    def offer(self, part: Part) -> Part | None:
        """Leave `part` at once; gives it back when eight others of its camera wait."""
        with self._changed:
            if len(self._waiting[part.camera]) >= _BURST:
                return part
            return self._leave(part)

    def _leave(self, part: Part) -> Part | None:
        if part.camera not in self._open:
            return part
        self._waiting[part.camera].append(part)
        self._changed.notify_all()
        return None

    def end(self, camera: str) -> None:
        """Nothing more will come of `camera`; what waits can still be taken."""
        with self._changed:
            self._open.discard(camera)
            self._room[camera].notify_all()
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come of any camera."""
        for camera in tuple(self._waiting):
            self.end(camera)

    def __iter__(self) -> Iterator[Part]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open or any(self._waiting.values()))
                turn = next((camera for camera, some in self._waiting.items() if some), None)
                if turn is None:
                    return
                self._waiting[turn] = waiting = self._waiting.pop(turn)
                part = waiting.popleft()
                self._room[turn].notify_all()
            yield part
