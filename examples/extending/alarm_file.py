"""A sink that appends a line to a file for each alarm."""

from collections.abc import Callable, Sequence
from typing import Literal

from agent.part import Part
from agent.ports import Receipt
from agent.record.rows import Delivery, Event
from agent.settings_values import AnyPath, Name
from agent.sinks.settings import AnySinkSettings
from engine.errors import SinkError
from engine.spec import spec


@spec
class AlarmFileSettings(AnySinkSettings):
    type: Literal["alarm_file"] = "alarm_file"
    name: Name = "alarm_file"
    path: AnyPath


class AlarmFile:
    def __init__(
        self, settings: AlarmFileSettings, *, agent_id: str, is_alarm: Callable[[Part], bool]
    ) -> None:
        self.name, self.path, self.is_alarm = settings.name, settings.path, is_alarm

    def items(self, part: Part) -> tuple[str, ...]:
        return ("alarm",) if self.is_alarm(part) else ()

    def connect(self) -> int:
        return 1

    def send(self, delivery: Delivery, event: Event) -> Receipt:
        try:
            with self.path.open("a") as file:
                file.write(f"{event.id} {event.state}\n")
        except OSError as error:
            raise SinkError(str(error)) from error
        return Receipt(delivery=delivery.id)

    def receipts(self, timeout_s: float) -> Sequence[Receipt]:
        return ()

    def report(self, status: object) -> None: ...

    def disconnect(self, *, is_stopping: bool) -> None: ...


open = AlarmFile
