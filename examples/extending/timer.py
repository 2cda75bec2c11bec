"""A trigger source that announces a part at equal intervals."""

from threading import Event
from typing import Literal, Self

from agent.ports import Announcement, Clock
from agent.settings_values import Seconds
from agent.triggers.settings import WindowSettings
from engine.spec import spec


@spec
class TimerSettings(WindowSettings):
    type: Literal["timer"] = "timer"
    every_s: Seconds = 1.0


class Timer:
    def __init__(self, settings: TimerSettings, stop: Event, clock: Clock) -> None:
        self.settings, self.stop, self.clock, self.count = settings, stop, clock, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self) -> Announcement | None:
        if self.clock.wait(self.stop, self.settings.every_s):
            return None
        self.count += 1
        return Announcement(at=self.clock.now(), part_id=f"timer-{self.count}")


open = Timer
