"""A camera that does what a script says; for tests, and no kind that a configuration can name."""

from collections.abc import Callable
from time import time_ns
from typing import Self

import numpy as np

from engine.frame import Frame


class ScriptedCamera:
    """Gives frames by a script: a frame number, a frame, an error to raise, or something to do.

    Frames given by number are 8×10 RGB, and their number is their brightness. After the script the
    source has ended. `entered` counts the connections, `fired` how often it was told to expose,
    which it waits for where it `fires`.
    """

    silence_s = None
    is_live = False
    fault: str | None = None

    def __init__(
        self,
        *script: int | Frame | Exception | Callable[[], object],
        triggered: bool = True,
        fires: bool = False,
    ) -> None:
        self._script = list(script)
        self.triggered = triggered
        self.fires = fires
        self.entered = self.fired = 0

    def __enter__(self) -> Self:
        self.entered += 1
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self) -> Frame | None:
        """The next frame of the script."""
        while self._script:
            match self._script.pop(0):
                case int() as number:
                    return scripted_frame(number)
                case Frame() as frame:
                    return frame
                case Exception() as error:
                    raise error
                case act:
                    act()
        return None

    def fire(self) -> None:
        """Only counted."""
        self.fired += 1

    def renewed(self) -> Self:
        """Itself: what hangs in a script is the script's business."""
        return self

    def part_id(self, number: int) -> str:
        """`p12`: the frame's number."""
        return f"p{number}"

    def source(self, number: int) -> str | None:
        """Nothing that is there after a restart."""
        del number
        return None


def scripted_frame(number: int, *, trigger_count: int | None = None) -> Frame:
    """A small frame that is as bright as its number, up to 255."""
    pixels = np.full((8, 10, 3), min(number, 255), np.uint8)
    return Frame(pixels=pixels, number=number, captured_ns=time_ns(), trigger_count=trigger_count)
