"""Part ids from a bar-code reader at a serial port, or at USB as one.

A code names a part and announces none: a code that cannot be read must cost the part its id, and
not its inspection. So this source stands as `part_ids`, beside the trigger.
"""

import re
import threading
from collections import deque
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field

from agent.ports import Announcement, Clock
from agent.settings_values import AnyPath, Name
from agent.triggers.part_id import PART_ID_MAX, as_part_id
from agent.triggers.settings import NamingSettings
from engine.errors import ConfigurationError, TriggerError
from engine.extras import install
from engine.spec import spec

if TYPE_CHECKING:
    pass

_LOOK_S: Final = 0.1
_LONGEST: Final = 4 * PART_ID_MAX
"""Bytes without an end: no reader sends so long a code."""
_ENDS: Final = re.compile(rb"[\r\n\x02\x03]+")
"""Readers end a code with CR, LF or both, or put it between STX and ETX."""
_GS: Final = (b"\x1d", "␝".encode())
"""What separates the fields of a GS1 code, and how it can be seen."""


@spec
class SerialSettings(NamingSettings):
    """A reader at `device`; `no_read` is what it sends where it finds no code."""

    type: Literal["serial"] = "serial"
    device: AnyPath
    baud: Annotated[int, Field(ge=50, le=4_000_000)] = 9600
    parity: Literal["none", "even", "odd"] = "none"
    no_read: Name = "NOREAD"


def open(settings: SerialSettings, stop: threading.Event, clock: Clock) -> "SerialIds":
    """The source; raises `ConfigurationError` where pyserial is missing."""
    try:
        import serial  # noqa: F401, PLC0415 - an optional package
    except ImportError:
        remedy = f"needs pyserial; install it with: {install('serial')}"
        raise ConfigurationError("part_ids.type", settings.type, remedy) from None
    return SerialIds(settings, stop, clock)


class SerialIds:
    """Gives the id in each line of text, at the time of its end."""

    def __init__(self, settings: SerialSettings, stop: threading.Event, clock: Clock) -> None:
        self._settings = settings
        self._stop = stop
        self._clock = clock
        self._begun = b""
        self._read: deque[Announcement] = deque()

    def __enter__(self) -> Self:
        import serial  # noqa: PLC0415 - an optional package

        settings = self._settings
        self._begun, self._read = b"", deque()
        try:
            self._port: serial.Serial = serial.Serial(
                str(settings.device),
                settings.baud,
                parity=settings.parity[0].upper(),
                timeout=_LOOK_S,
                exclusive=True,
            )
            # What waits there was read before the agent looked.
            self._port.reset_input_buffer()
        except (OSError, ValueError) as error:
            raise TriggerError(f"{settings.device}: {_plain(error)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._port.close()

    def read(self) -> Announcement | None:
        """The next id; `None` when told to stop."""
        while not self._stop.is_set():
            if self._read:
                return self._read.popleft()
            self._receive()
        return None

    def _receive(self) -> None:
        try:
            self._begun += self._port.read(max(1, self._port.in_waiting))
        except OSError as error:  # pyserial's own derive from it
            raise TriggerError(f"{self._settings.device}: {_plain(error)}") from error
        at = self._clock.now()
        *lines, self._begun = _ENDS.split(self._begun)
        for line in lines:
            part_id = as_part_id(line.replace(*_GS))
            if part_id is not None and part_id != self._settings.no_read:
                self._read.append(Announcement(at=at, part_id=part_id, is_trigger=False))
        if len(self._begun) > _LONGEST:
            problem = f"{len(self._begun)} bytes came without a line end; check baud and parity"
            raise TriggerError(f"{self._settings.device}: {problem}")


def _plain(error: Exception) -> str:
    """What a port's error says, in a few words; pyserial puts errors into errors."""
    match getattr(error, "errno", None):
        case 2 | 19 | 6:  # no such file, no such device
            return "there is no such port; is the reader connected?"
        case 13:
            return "may not be opened; add the agent's user to the group dialout"
        case 11 | 16:
            return "is used by another program"
    text = str(error)
    if "disconnected" in text or "Input/output error" in text:
        return "the reader was disconnected"
    return text.splitlines()[0] if text else type(error).__name__
