"""Parts announced on demand: `agent trigger`, a request, or a call of `fire` in this process."""

import queue
import threading
from typing import Final, Literal, Self

from agent.ports import Announcement, Clock
from agent.triggers.settings import WindowSettings
from engine.spec import spec

_LOOK_S: Final = 0.1


@spec
class SoftwareSettings(WindowSettings):
    """A part is announced when somebody asks for it."""

    type: Literal["software"] = "software"


def open(_settings: SoftwareSettings, stop: threading.Event, clock: Clock) -> "SoftwareTriggers":
    """The source that `fire` is called on."""
    return SoftwareTriggers(stop, clock)


class SoftwareTriggers:
    """Announces a part for each call of `fire`, by any thread; `stop` ends the wait for one."""

    def __init__(self, stop: threading.Event, clock: Clock) -> None:
        self._stop = stop
        self._clock = clock
        self._fired: queue.SimpleQueue[Announcement] = queue.SimpleQueue()

    def fire(
        self, part_id: str | None = None, *, count: int | None = None, is_trigger: bool = True
    ) -> None:
        """A part has arrived now; with `is_trigger` False the id of an earlier one."""
        self._fired.put(
            Announcement(at=self._clock.now(), part_id=part_id, count=count, is_trigger=is_trigger)
        )

    def read(self) -> Announcement | None:
        """The next part; `None` when told to stop."""
        while not self._stop.is_set():
            try:
                return self._fired.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...
