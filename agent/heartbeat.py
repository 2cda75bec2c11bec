"""What the agent tells systemd: that it has started, that it gets on, that it is stopping.

The protocol of `Type=notify`: datagrams to the socket that `NOTIFY_SOCKET` names. Where nobody
asked for it, nothing is sent. With `WatchdogSec` a sign of life is due within `WATCHDOG_USEC`;
it is given only while parts get through, so that an agent that hangs is killed and started anew.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import Final, Self

_LOG: Final = logging.getLogger("atac_agent.line")


class Progress:
    """Since when each lane has had the same part in hand; read by other threads."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def begin(self) -> None:
        """The calling thread takes a part in hand."""
        self._since[threading.get_ident()] = monotonic()

    def end(self) -> None:
        """The part has its verdict, and the verdict is on its way to the ledger."""
        del self._since[threading.get_ident()]

    def in_hand_s(self) -> float:
        """For how many seconds the oldest part has been in hand; 0 while there is none."""
        # A copy: the lanes go on meanwhile.
        since = tuple(self._since.values())
        return monotonic() - min(since) if since else 0.0


class Heartbeat:
    """Tells systemd `READY=1` on entry and `STOPPING=1` on leaving; a context manager.

    In between a thread of its own sends `WATCHDOG=1`, four times as often as is asked for, while
    `is_well(seconds)` holds: nothing has been stuck for so long, half of the time that is allowed.
    """

    def __init__(
        self, is_well: Callable[[float], bool], environment: Mapping[str, str] = os.environ
    ) -> None:
        self._is_well = is_well
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._allowed_s = _allowed_s(environment)
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="atac-heartbeat")

    def __enter__(self) -> Self:
        self._tell("READY=1")
        if self._address and self._allowed_s:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._tell("STOPPING=1")

    def _beat(self) -> None:
        was_well = True
        while not self._leaving.wait(self._allowed_s / 4):
            is_well = self._is_well(self._allowed_s / 2)
            if is_well:
                self._tell("WATCHDOG=1")
            elif was_well:
                _LOG.error("nothing gets on any more: systemd will start the agent anew")
            was_well = is_well

    def _tell(self, line: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the null byte of an abstract address.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.settimeout(1.0)
                notify.sendto(line.encode(), address)
        except OSError as error:
            _LOG.warning("systemd does not hear %s: %s", line, error)


def _allowed_s(environment: Mapping[str, str]) -> float:
    """The watchdog's time in seconds; 0 where there is none, or it is another process's."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() else 0.0
