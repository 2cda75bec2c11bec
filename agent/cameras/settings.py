"""What all kinds of cameras have in their settings."""

from typing import Annotated, Final, Literal

from pydantic import Field

from engine.spec import spec

UNNAMED: Final = "main"
"""What a camera is called that was given no name."""

FailSafe = Literal["reject", "pass"]


@spec
class LineSettings:
    """What the line expects of a verdict.

    A part whose verdict is not there `deadline_ms` after its frame ends as TIMEOUT; without it
    `parts_per_minute` gives the deadline: the next part's time. `fail_safe` says what becomes of
    a part without a verdict in time, or without a frame: `reject` raises an alarm, `pass` does
    not; both are counted.
    """

    deadline_ms: Annotated[float, Field(gt=0)] | None = None
    parts_per_minute: Annotated[float, Field(gt=0)] | None = None
    fail_safe: FailSafe = "reject"

    @property
    def deadline_s(self) -> float | None:
        """The time from frame to verdict that the line allows, in seconds."""
        if self.deadline_ms is not None:
            return self.deadline_ms / 1e3
        if self.parts_per_minute is not None:
            return 60 / self.parts_per_minute
        return None


@spec
class AnyCameraSettings:
    """Every part and every message names its camera by its `name`.

    `line` stands in place of the configuration's own `line` for the parts of this camera.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)] = UNNAMED
    line: LineSettings | None = None
