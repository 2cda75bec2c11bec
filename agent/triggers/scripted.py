"""A trigger source that does what a script says; for tests, and no kind to be configured."""

from collections.abc import Callable
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
