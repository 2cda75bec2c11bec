"""A service that writes into a file how many parts have ended."""

from threading import Event, Thread
from typing import Literal, Self

from agent.ports import Watched
from agent.services.settings import AnyServiceSettings
from agent.settings_values import AnyPath
from engine.spec import spec


@spec
class StatusFileSettings(AnyServiceSettings):
    type: Literal["status_file"] = "status_file"
    path: AnyPath


class StatusFile(Thread):
    def __init__(self, settings: StatusFileSettings, watched: Watched) -> None:
        super().__init__(name="status-file", daemon=True)
        self.settings, self.watched, self.leaving = settings, watched, Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.join()

    def run(self) -> None:
        status = None
        while not self.leaving.is_set():
            status = self.watched.newer(status, timeout_s=0.2) or status
            if status is not None:
                self.settings.path.write_text(f"{status.ended} parts\n")


open = StatusFile
