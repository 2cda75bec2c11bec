"""Who makes the `Status`: one thread, once a second, and at once when a fault comes or goes."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from agent.part import State
from agent.ports import Clock
from agent.record.feed import Feed
from agent.requests import Requests
from agent.settings import Config
from agent.station.live import Live
from agent.station.status import CameraStatus, Status

_LOG: Final = logging.getLogger("atac_agent.line")
_EVERY_S: Final = 1.0
_LOOK_S: Final = 0.25
"""From one look for faults to the next."""
_WINDOW_S: Final = 60.0
_FEWEST: Final = 20
"""Of fewer parts no share is taken."""


class Monitor:
    """The newest `Status`, for any number of readers; a context manager around its thread.

    Args:
        make: Makes a status of what is counted just now.
        feed: The ledger's, for those who read the monitor.
        config: The configuration, for the same.
        config_file: Where it was read from; `None`: from no file.
        live: The newest frames, for the same.
        requests: Obeyed by the agent, for the same.
        clock: Times the looks.
        readers: Are called with each status, in the thread; they must not wait. One that raises
            is called no more, and its error is a fault from then on.
    """

    def __init__(
        self,
        make: Callable[[], Status],
        *,
        feed: Feed,
        config: Config,
        config_file: Path | None = None,
        live: Live,
        requests: Requests | None,
        clock: Clock,
        readers: Iterable[Callable[[Status], None]] = (),
    ) -> None:
        self._make = make
        self.feed = feed
        self.config = config
        self.config_file = config_file
        self.live = live
        self.requests = requests
        self._clock = clock
        self._readers = list(readers)
        self._changed = threading.Condition()
        self._latest = make()
        self._made = clock.now()
        self._leaving = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atac-status")
        self._own_faults: tuple[str, ...] = ()

    def status(self) -> Status:
        """The newest status."""
        return self._latest

    def age_s(self) -> float:
        """How old the newest status is."""
        return self._clock.now() - self._made

    def newer(self, than: Status | None, timeout_s: float) -> Status | None:
        """A status other than `than`, waited for; `None` when there is none in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not than, timeout_s)
            return None if self._latest is than else self._latest

    def __enter__(self) -> Self:
        self._ended = self._thread.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.shutdown()
        self._ended.result()

    def _run(self) -> None:
        is_leaving = False
        self._tell(self._latest)
        while not is_leaving:
            is_leaving = self._clock.wait(self._leaving, _LOOK_S)
            made = self._status()
            faults = tuple(dict.fromkeys(made.faults + self._own_faults))
            status = replace(made, faults=faults, is_last=is_leaving)
            if is_leaving or self.age_s() >= _EVERY_S or status.faults != self._latest.faults:
                self._tell(status)

    def _status(self) -> Status:
        try:
            return self._make()
        except Exception as error:  # noqa: BLE001 - a fault, not the end of the run
            fault = f"status: could not be made: {type(error).__name__}: {error}"
            if fault not in self._own_faults:
                self._own_faults += (fault,)
                _LOG.exception("the status could not be made")
            return self._latest

    def _tell(self, status: Status) -> None:
        with self._changed:
            self._latest, self._made = status, self._clock.now()
            self._changed.notify_all()
        for reader in tuple(self._readers):
            try:
                reader(status)
            except Exception as error:  # noqa: BLE001 - a fault, not the end of the run
                self._readers.remove(reader)
                self._own_faults += (
                    f"status: a reader ended with {type(error).__name__}: {error}",
                )
                _LOG.exception("a reader of the status failed; it receives no more")


class DropWatch:
    """Notices when more than a stated share of a camera's parts is not inspected.

    Parts of the last minute count, from the twentieth on. `limits` has each camera's share.
    """

    def __init__(self, limits: Mapping[str, float], clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._seen: dict[str, deque[tuple[float, int, int]]] = {name: deque() for name in limits}

    def faults(self, cameras: Mapping[str, CameraStatus]) -> dict[str, str]:
        """What is wrong, by camera; `cameras` as they are now."""
        found = {}
        for name, seen in self._seen.items():
            counts = cameras[name].counts
            now = self._clock.now(), sum(counts.values()), counts.get(State.DROPPED, 0)
            seen.append(now)
            while seen[0][0] < now[0] - _WINDOW_S:
                seen.popleft()
            ended, dropped = now[1] - seen[0][1], now[2] - seen[0][2]
            if ended >= _FEWEST and dropped > self._limits[name] * ended:
                # Without figures that change: a new text is a new fault.
                found[name] = (
                    f"more than {self._limits[name]:.3g} of its parts in the last minute were not "
                    "inspected (DROPPED): they come faster than this machine inspects"
                )
        return found
