"""One line on a terminal's error output, rewritten as parts go by; nothing in a pipe."""

import sys
import threading
from typing import Final, Literal, Self, TextIO

from agent.part import State
from agent.ports import Watched
from agent.services.settings import AnyServiceSettings
from agent.station.status import Status
from agent.station.summary import summed
from engine.spec import spec

_WAIT_S: Final = 0.5
_CLEAR: Final = "\r\x1b[K"


@spec
class TerminalSettings(AnyServiceSettings):
    """Nothing to set: the line is there where error output is a terminal."""

    type: Literal["terminal"] = "terminal"


def open(_settings: TerminalSettings, watched: Watched) -> "Terminal":
    """The line on this process's error output."""
    return Terminal(watched, sys.stderr)


class Terminal:
    """Writes each new status to `output` while that is a terminal; a context manager.

    Counts are those of this run: what the ledger has from earlier ones is left out.
    """

    def __init__(self, watched: Watched, output: TextIO) -> None:
        self._watched = watched
        self._output = output
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._show, name="atac-terminal", daemon=True)

    def __enter__(self) -> Self:
        if self._output.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._output.write(_CLEAR)
            self._output.flush()

    def _show(self) -> None:
        first = last = self._watched.status()
        while not self._leaving.is_set():
            status = self._watched.newer(last, _WAIT_S)
            if status is not None:
                self._output.write(_CLEAR + line(first, last, status))
                self._output.flush()
                last = status


def line(first: Status, last: Status, status: Status) -> str:
    """How a run stands that began at `first`; its rate is that since `last`."""
    before, now = (summed(each.counts for each in s.cameras.values()) for s in (first, status))
    counts = {state: now[state] - before[state] for state in State}
    seconds = status.uptime_s - last.uptime_s
    rate = (status.ended - last.ended) / seconds if seconds else 0.0
    states = "".join(f" · {state} {n}" for state, n in counts.items() if n)
    faults = f" · {status.faults[0]}" if status.faults else ""
    return f"{sum(counts.values())} parts{states} · {rate:.1f}/s{faults}"
