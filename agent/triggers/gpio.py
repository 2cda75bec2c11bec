"""Parts announced by an input line of this computer: a light barrier at a GPIO pin.

The kernel notes the time of each edge and numbers the edges of the line, so a part's time does not
depend on how soon the agent looks, and edges that found no room are known from the count.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Annotated, Final, Literal, Protocol, Self

from pydantic import Field

from agent.ports import Announcement, Clock
from agent.settings_values import AnyPath, Name
from agent.triggers.settings import WindowSettings
from engine.errors import ConfigurationError, TriggerError
from engine.extras import install
from engine.spec import spec

_LOOK_S: Final = 0.1


@spec
class GpioSettings(WindowSettings):
    """The line `line` of `chip`, by its number or its name; an `edge` is a part.

    Edges that follow within `debounce_ms` are bounces of a contact. `active_low`: the line's level
    is inverted, as at many optocouplers.
    """

    type: Literal["gpio"] = "gpio"
    chip: AnyPath
    line: Annotated[int, Field(ge=0, le=65_535)] | Name
    edge: Literal["rising", "falling"] = "rising"
    bias: Literal["as_is", "disabled", "pull_up", "pull_down"] = "as_is"
    active_low: bool = False
    debounce_ms: Annotated[float, Field(ge=0, le=1000)] = 1.0


class Edge(Protocol):
    """An edge, as gpiod gives it: when by the monotonic clock, and its number on its line."""

    @property
    def timestamp_ns(self) -> int: ...
    @property
    def line_seqno(self) -> int: ...


class Line(Protocol):
    """A requested line, as gpiod gives it."""

    def wait_edge_events(self, timeout: float) -> bool: ...
    def read_edge_events(self) -> Sequence[Edge]: ...
    def release(self) -> None: ...


def open(settings: GpioSettings, stop: threading.Event, clock: Clock) -> "GpioTriggers":
    """The source; raises `ConfigurationError` where gpiod is missing or is an old one."""
    try:
        from gpiod import request_lines  # noqa: F401, PLC0415 - an optional package
    except ImportError:  # also of a gpiod 1, which knows no request_lines
        remedy = f"needs gpiod 2; install it with: {install('gpio')}"
        raise ConfigurationError("trigger.type", settings.type, remedy) from None
    return GpioTriggers(settings, stop, clock, request=_request)


def _request(settings: GpioSettings) -> Line:
    """The line of a real chip; raises `OSError` or `ValueError`."""
    from gpiod import LineSettings, line, request_lines  # noqa: PLC0415 - an optional package

    wanted = LineSettings(
        direction=line.Direction.INPUT,
        edge_detection=line.Edge[settings.edge.upper()],
        bias=line.Bias[settings.bias.upper()],
        active_low=settings.active_low,
        debounce_period=timedelta(milliseconds=settings.debounce_ms),
        event_clock=line.Clock.MONOTONIC,
    )
    return request_lines(str(settings.chip), {settings.line: wanted}, consumer="atac-agent")


class GpioTriggers:
    """Announces a part for each edge; `request` gives the line."""

    def __init__(
        self,
        settings: GpioSettings,
        stop: threading.Event,
        clock: Clock,
        *,
        request: Callable[[GpioSettings], Line],
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._clock = clock
        self._request = request
        self._edges: deque[Edge] = deque()

    def __enter__(self) -> Self:
        settings = self._settings
        self._edges.clear()
        try:
            self._line = self._request(settings)
        except (OSError, ValueError) as error:
            raise TriggerError(f"{settings.chip} line {settings.line}: {_plain(error)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._line.release()

    def read(self) -> Announcement | None:
        """The next part; `None` when told to stop."""
        while not self._stop.is_set():
            if self._edges:
                edge = self._edges.popleft()
                # An edge cannot be of the future; a clock that says so is another one.
                at = min(edge.timestamp_ns / 1e9, self._clock.now())
                return Announcement(at=at, count=edge.line_seqno)
            try:
                if self._line.wait_edge_events(_LOOK_S):
                    self._edges.extend(self._line.read_edge_events())
            except OSError as error:
                raise TriggerError(f"{self._settings.chip}: {_plain(error)}") from error
        return None


def _plain(error: Exception) -> str:
    match getattr(error, "errno", None):
        case 2:
            return "there is no such chip; gpiodetect lists those that there are"
        case 13:
            return "may not be opened; add the agent's user to the group gpio"
        case 16:
            return "is used by another program"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
