"""What a long command is doing, on its error output: each stage, and how far it is.

On a terminal one line changes; in a pipe or a file there is a line for each stage, and one every
30 seconds.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Final, Self, TextIO, TypeVar

_EVERY_S: Final = 30.0
_REDRAW_S: Final = 0.5
_CLEAR: Final = "\r\x1b[K"

_T = TypeVar("_T")


class Progress:
    """Tells what is done; a context manager around the thread that says how far it is.

    Args:
        output: Where to; the error output unless it is given.
        now: Steady seconds.
    """

    def __init__(
        self, output: TextIO | None = None, *, now: Callable[[], float] = monotonic
    ) -> None:
        self._output = output or sys.stderr
        self._is_terminal = self._output.isatty()
        self._now = now
        self._lock = threading.Lock()
        self._what, self._unit = "", ""
        self._steps = self._done = 0
        self._began = self._said = now()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atac-progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()
        if self._is_terminal:
            self._write(_CLEAR)

    @property
    def what(self) -> str:
        """The stage of now."""
        return self._what

    def stage(self, what: str, steps: int = 0, unit: str = "") -> None:
        """A stage begins, of `steps` where their number is known."""
        with self._lock:
            self._what, self._steps, self._unit, self._done = what, steps, unit, 0
            self._began = self._said = self._now()
            if not self._is_terminal:
                self._write(f"{what}: {steps} {unit}\n" if steps else f"{what}\n")

    def step(self, done: int | None = None) -> None:
        """One step more, or `done` of them in all."""
        with self._lock:
            self._done = self._done + 1 if done is None else done

    def say(self, line: str) -> None:
        """A line of its own."""
        with self._lock:
            self._said = self._now()
            self._write(f"{_CLEAR if self._is_terminal else ''}{line}\n")

    def over(self, items: Iterable[_T]) -> Iterator[_T]:
        """The same items; each one is a step once the next is asked for."""
        for item in items:
            yield item
            self.step()

    def tick(self) -> None:
        """Say how far it is, if that is due."""
        with self._lock:
            if not self._what:
                return
            if self._is_terminal:
                self._write(f"{_CLEAR}{self._how_far()}")
            elif self._now() - self._said >= _EVERY_S:
                self._said = self._now()
                self._write(f"{self._how_far()}\n")

    def _how_far(self) -> str:
        passed_s = self._now() - self._began
        if not self._steps:
            return f"{self._what}: for {duration(passed_s)}"
        far = f"{self._what}: {self._done} of {self._steps} {self._unit} in {duration(passed_s)}"
        if not self._done:
            return far
        left_s = passed_s / self._done * (self._steps - self._done)
        return f"{far}, about {duration(left_s)} left"

    def _run(self) -> None:
        while not self._leaving.wait(_REDRAW_S):
            self.tick()

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()


def duration(seconds: float) -> str:
    """`45 s`, `3 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
