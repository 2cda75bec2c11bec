"""A trigger source and an input line that do what a script says; for tests, and no kinds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from agent.ports import Announcement


class ScriptedTriggers:
    """Gives announcements by a script: one to give, an error to raise, or something to do.

    After the script the source has ended. `entered` counts the connections.
    """

    def __init__(self, *script: Announcement | Exception | Callable[[], object]) -> None:
        self._script = list(script)
        self.entered = 0

    def read(self) -> Announcement | None:
        """The next announcement of the script."""
        while self._script:
            match self._script.pop(0):
                case Announcement() as announcement:
                    return announcement
                case Exception() as error:
                    raise error
                case act:
                    act()
        return None

    def __enter__(self) -> Self:
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class ScriptedEdge:
    """An edge at a time of the monotonic clock, with its number on its line."""

    timestamp_ns: int
    line_seqno: int


class ScriptedLine:
    """Gives edges as gpiod's line does, by a script: some at once, an error, or something to do."""

    def __init__(self, *script: Sequence[ScriptedEdge] | Exception | Callable[[], object]) -> None:
        self._script = list(script)
        self.is_released = False

    def wait_edge_events(self, _timeout: float) -> bool:
        """Whether there are edges to be read."""
        match self._script[0] if self._script else None:
            case Exception() as error:
                raise error
            case None:
                return False
            case act if callable(act):
                del self._script[0]
                act()
                return False
        return True

    def read_edge_events(self) -> Sequence[ScriptedEdge]:
        """The next edges."""
        edges = self._script.pop(0)
        assert isinstance(edges, Sequence), "read without having waited"
        return edges

    def release(self) -> None:
        """The line is left."""
        self.is_released = True
