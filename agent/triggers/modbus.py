"""Parts announced by the registers of a PLC: a count that grows, perhaps a part id and a product.

There is no answer to the PLC; where it needs one, see the trigger `plc`. Without a count the
registers only say what the line makes.
"""

import threading
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from agent.ports import Announcement, Clock
from agent.settings_values import HostName, Milliseconds, Port
from agent.triggers.settings import WindowSettings
from engine.errors import TriggerError
from engine.spec import spec

if TYPE_CHECKING:
    from agent.plc.client import ModbusConnection

_LAST: Final = 65_535
_OFTEN_MS: Final = 5.0
_SELDOM_MS: Final = 100.0
Register = Annotated[int, Field(ge=0, le=_LAST)]


@spec
class ModbusSettings(WindowSettings):
    """The PLC, or what speaks for it, is the server.

    `count_at` is the holding register with the number of triggers so far; the part's id has
    `id_registers` registers from `id_at` on, two characters each, the first in the high byte;
    `product_at` is the register with the number of its product. The PLC writes the count last.
    `poll_ms` is the time from one reading to the next: a trigger is heard so much later, at most.
    Without `count_at`, which only `product_from` may be, the product is that of the whole line.
    """

    type: Literal["modbus"] = "modbus"
    host: HostName
    port: Port = 502
    unit: Annotated[int, Field(ge=0, le=255)] = 1
    count_at: Register | None = None
    id_at: Register | None = None
    id_registers: Annotated[int, Field(ge=1, le=64)] = 16
    product_at: Register | None = None
    poll_ms: Annotated[Milliseconds, Field(ge=1, le=10_000)] | None = None

    @property
    def names_products(self) -> bool:
        """Whether each announcement says what the part is."""
        return self.product_at is not None

    @property
    def counts_parts(self) -> bool:
        """Whether it announces parts; False: it only says what the line makes."""
        return self.count_at is not None

    @property
    def every_s(self) -> float:
        """From one reading to the next."""
        usual_ms = _OFTEN_MS if self.counts_parts else _SELDOM_MS
        return (self.poll_ms or usual_ms) / 1e3

    @model_validator(mode="after")
    def _says_something(self) -> "ModbusSettings":
        if self.count_at is None and self.product_at is None:
            raise ValueError("write count_at, the register that counts parts")
        return self


def open(settings: ModbusSettings, stop: threading.Event, clock: Clock) -> "ModbusTriggers":
    """The source that reads these registers."""
    return ModbusTriggers(settings, stop, clock)


class ModbusTriggers:
    """Reads the count, and what is said of a part whose count has come; `stop` ends its waits."""

    def __init__(self, settings: ModbusSettings, stop: threading.Event, clock: Clock) -> None:
        self._settings = settings
        self._stop = stop
        self._clock = clock
        self._watched = settings.product_at if settings.count_at is None else settings.count_at
        self._last: int | None = None
        self._connection: ModbusConnection | None = None

    def __enter__(self) -> Self:
        from agent.plc.client import ModbusConnection  # noqa: PLC0415 - no sockets for settings

        settings = self._settings
        connection = ModbusConnection(settings.host, settings.port, settings.unit)
        try:
            connection.__enter__()
            self._connection = connection
            if not settings.counts_parts:
                self._last = None  # a product is said again by each connection
            elif self._last is None:
                # What comes while there is no connection shows as a leap of the count.
                self._last = self._read(self._watched)
        except OSError as error:
            self.__exit__()
            raise self._error(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.__exit__()

    def read(self) -> Announcement | None:
        """The next part, or product; `None` when told to stop."""
        try:
            while not self._stop.is_set():
                value = self._read(self._watched)
                at = self._clock.now()
                if value != self._last:
                    self._last = value
                    return self._announcement(at, value)
                self._clock.wait(self._stop, self._settings.every_s)
        except OSError as error:
            raise self._error(error) from None
        return None

    def _announcement(self, at: float, value: int) -> Announcement:
        if not self._settings.counts_parts:
            return Announcement(at=at, is_trigger=False, product=str(value))
        part_id, product = self._id(), self._product()
        if self._read(self._watched) != value:  # it may all be the next part's already
            part_id = product = None
        return Announcement(at=at, count=value, part_id=part_id, product=product)

    def _id(self) -> str | None:
        if self._settings.id_at is None:
            return None
        from agent.plc.blocks import text  # noqa: PLC0415 - with the connection

        assert self._connection is not None, "entered first"
        words = self._connection.read(self._settings.id_at, self._settings.id_registers)
        return text(words) or None

    def _product(self) -> str | None:
        register = self._settings.product_at
        return None if register is None else str(self._read(register))

    def _read(self, register: int | None) -> int:
        assert self._connection is not None, "entered first"
        assert register is not None, "settings say so"
        return self._connection.read(register, 1)[0]

    def _error(self, error: OSError) -> TriggerError:
        return TriggerError(
            f"{self._settings.host}:{self._settings.port}: {error.strerror or error}"
        )
