"""Notifies systemd that the agent has started, that it works, and that it is stopping.

The protocol of `Type=notify`: datagrams to the socket that `NOTIFY_SOCKET` names. Without it
nothing is sent. With `WatchdogSec`, a sign of life is due within `WATCHDOG_USEC`; it is sent
only while parts get through, so systemd kills and restarts an agent that hangs.
"""

import logging
import os
import socket
import threading
from collections.abc import Mapping
from typing import Final, Literal, Self

from agent.ports import Watched
from agent.services.settings import AnyServiceSettings
from engine.spec import spec

_LOG: Final = logging.getLogger("atac_agent.line")


@spec
class HeartbeatSettings(AnyServiceSettings):
    """Nothing to set: the environment that systemd gives says what it wants."""

    type: Literal["heartbeat"] = "heartbeat"


def open(_settings: HeartbeatSettings, watched: Watched) -> "Heartbeat":
    """The heartbeat of the agent whose status is `watched`."""
    return Heartbeat(watched)


class Heartbeat:
    """Tells systemd `READY=1` on entry and `STOPPING=1` on leaving; a context manager.

    In between a thread sends `WATCHDOG=1`, four times as often as systemd asks for, while nothing
    has hung for half of the allowed time (no part in a worker, not the status itself) and no thread
    that should run has ended.
    """

    def __init__(self, watched: Watched, environment: Mapping[str, str] = os.environ) -> None:
        self._watched = watched
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._allowed_s = _allowed_s(environment)
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="atac-heartbeat")

    def __enter__(self) -> Self:
        self._tell("READY=1")
        if self._address and self._allowed_s:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._tell("STOPPING=1")

    def _beat(self) -> None:
        was_well = True
        while not self._leaving.wait(self._allowed_s / 4):
            is_well = self._is_well()
            if is_well:
                self._tell("WATCHDOG=1")
            elif was_well:
                _LOG.error(
                    "no progress; watchdog notifications stopped, systemd will restart the agent"
                )
            was_well = is_well

    def _is_well(self) -> bool:
        status, age_s = self._watched.status(), self._watched.age_s()
        return status.makes_progress(age_s=age_s, limit_s=self._allowed_s / 2)

    def _tell(self, line: str) -> None:
        notify(line, self._address)


def notify(line: str, address: str | None = None) -> None:
    """Tell systemd, at the address that the environment gives, if it does."""
    address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
    if not address:
        return
    # A leading @ stands for the null byte of an abstract address.
    address = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.settimeout(1.0)
            told.sendto(line.encode(), address)
    except OSError as error:
        _LOG.warning("systemd cannot be notified of %s: %s", line, error)


def _allowed_s(environment: Mapping[str, str]) -> float:
    """The watchdog's time in seconds; 0 where there is none, or it is another process's."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() else 0.0
