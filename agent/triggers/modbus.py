"""Parts announced by the registers of a PLC: a count that grows, and perhaps a part id.

There is no answer to the PLC; where it needs one, see the trigger `plc`.
"""

import threading
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field

from agent.ports import Announcement, Clock
from agent.settings_values import HostName, Milliseconds, Port
from agent.triggers.settings import WindowSettings
from engine.errors import TriggerError
from engine.spec import spec

if TYPE_CHECKING:
    from agent.plc.client import ModbusConnection

_LAST: Final = 65_535
Register = Annotated[int, Field(ge=0, le=_LAST)]


@spec
class ModbusSettings(WindowSettings):
    """The PLC, or what speaks for it, is the server.

    `count_at` is the holding register with the number of triggers so far; the part's id has
    `id_registers` registers from `id_at` on, two characters each, the first in the high byte. The
    PLC writes the id first, then the count. `poll_ms` is the time from one reading to the next: a
    trigger is heard so much later, at most.
    """

    type: Literal["modbus"] = "modbus"
    host: HostName
    port: Port = 502
    unit: Annotated[int, Field(ge=0, le=255)] = 1
    count_at: Register
    id_at: Register | None = None
    id_registers: Annotated[int, Field(ge=1, le=64)] = 16
    poll_ms: Annotated[Milliseconds, Field(ge=1, le=10_000)] = 5.0


def open(settings: ModbusSettings, stop: threading.Event, clock: Clock) -> "ModbusTriggers":
    """The source that reads these registers."""
    return ModbusTriggers(settings, stop, clock)


class ModbusTriggers:
    """Reads the count, and the id of a part whose count has come; `stop` ends its waits."""

    def __init__(self, settings: ModbusSettings, stop: threading.Event, clock: Clock) -> None:
        self._settings = settings
        self._stop = stop
        self._clock = clock
        self._count: int | None = None
        self._connection: ModbusConnection | None = None

    def __enter__(self) -> Self:
        from agent.plc.client import ModbusConnection  # noqa: PLC0415 - no sockets for settings

        settings = self._settings
        connection = ModbusConnection(settings.host, settings.port, settings.unit)
        try:
            connection.__enter__()
            self._connection = connection
            # What came while there was no connection shows as a leap of the count.
            if self._count is None:
                self._count = self._read(settings.count_at)
        except OSError as error:
            self.__exit__()
            raise self._error(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.__exit__()

    def read(self) -> Announcement | None:
        """The next part; `None` when told to stop."""
        assert self._connection is not None, "entered first"
        try:
            while not self._stop.is_set():
                count = self._read(self._settings.count_at)
                at = self._clock.now()
                if count != self._count:
                    self._count = count
                    return Announcement(at=at, count=count, part_id=self._id_of(count))
                self._clock.wait(self._stop, self._settings.poll_ms / 1e3)
        except OSError as error:
            raise self._error(error) from None
        return None

    def _id_of(self, count: int) -> str | None:
        """The id in the registers, unless it may be that of the next part already."""
        if self._settings.id_at is None or self._connection is None:
            return None
        from agent.plc.blocks import text  # noqa: PLC0415 - with the connection

        words = self._connection.read(self._settings.id_at, self._settings.id_registers)
        return (text(words) or None) if self._read(self._settings.count_at) == count else None

    def _read(self, register: int) -> int:
        assert self._connection is not None, "entered first"
        return self._connection.read(register, 1)[0]

    def _error(self, error: OSError) -> TriggerError:
        return TriggerError(
            f"{self._settings.host}:{self._settings.port}: {error.strerror or error}"
        )
