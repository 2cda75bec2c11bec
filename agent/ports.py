"""The ports of the agent: what a camera, a trigger source, a sink, a service and a clock must do.

    trigger ─┐
    camera ──┴▶ Part ─▶ method ─▶ Verdict ─▶ record ─▶ sinks
                                               └─────▶ feed ─▶ services

Each kind is one module of `agent/cameras`, `agent/triggers`, `agent/sinks` or `agent/services`. It
exports its settings class, with `type: Literal[...]`, and `open`; `agent/registry.py` finds it.
Settings import no vendor library; `open` does, and touches neither device nor network.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from agent.clock import SystemClock
from engine.frame import Frame

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from agent.cameras.settings import Features
    from agent.part import Part
    from agent.record.feed import Feed
    from agent.record.rows import Delivery, Event
    from agent.requests import Requests
    from agent.settings import Config
    from agent.station.live import Live
    from agent.station.status import FleetStatus, Status


class Clock(Protocol):
    """The time, and the only way to wait for it. Tests drive one of their own."""

    def now(self) -> float:
        """Steady seconds from an arbitrary start; nobody sets this clock."""
        ...

    def utc_ns(self) -> int:
        """UTC in nanoseconds since 1970; may jump."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set or `timeout_s` have passed; says whether it is set."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraContext:
    """What a camera is opened with, beside its settings.

    `stop` ends its waits. `recorded` tells which of some `sources` have a part in the ledger; a
    camera that is opened without it remembers nothing and tidies nothing up. `takes_bayer` says
    whether raw colour pixels may be given as they are (`Frame.bayer`). `features` are those that a
    camera has besides its own, by the product for which it has them.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    clock: Clock = field(default_factory=SystemClock)
    recorded: Callable[[Collection[str]], Collection[str]] | None = None
    takes_bayer: Callable[[], bool] = lambda: False
    features: "Mapping[str, Features]" = field(default_factory=dict)


class Camera(Protocol):
    """Gives frames; a context manager.

    Lifecycle: made (touches nothing) → entered (connects; raises `CameraError` when the camera is
    not ready) → `read` by one thread, again and again → left. After any `CameraError` the camera is
    left and may be entered again. Code of a vendor runs in a child process, never here. Frames are
    RGB or mono, uint8; their numbers count from 0 and a gap means that the camera lost some. After
    re-entry they may start again.
    """

    @property
    def triggered(self) -> bool:
        """True: every frame is a part. False: the camera runs freely and the newest frame wins."""
        ...

    @property
    def silence_s(self) -> float | None:
        """A `read` that takes longer is a fault; `None`: frames come when they come."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether frames have a sensor's noise, so that two equal ones mean a frozen camera."""
        ...

    @property
    def fault(self) -> str | None:
        """What is wrong while frames come, such as a sub-folder that cannot be read."""
        ...

    def renewed(self) -> "Camera":
        """A camera, not entered, that continues where this one is and shares nothing with it."""
        ...

    def read(self) -> Frame | None:
        """The next frame, waited for; `None` when the source has ended or is told to stop.

        Raises `ImageError` when one frame cannot be used (it has taken a frame number and the
        camera continues), `CameraError` when the camera has gone.
        """
        ...

    def part_id(self, number: int) -> str | None:
        """The id of the part in the recent frame `number`, where the camera knows one."""
        ...

    def source(self, number: int) -> str | None:
        """What identifies the content of the recent frame `number` also after a restart.

        Of a file that may be read again, such as by inode, size and time; else `None`.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class Fired(Protocol):
    """A camera that may expose on the agent's word, when a part is announced."""

    @property
    def fires(self) -> bool:
        """Whether it waits for that; False: it is triggered in another way, or runs freely."""
        ...

    def fire(self) -> None:
        """Have it expose now; any thread may call, and nothing waits."""
        ...


@runtime_checkable
class Adjusted(Protocol):
    """A camera that may be set up in another way for each product (`CameraContext.features`)."""

    def adjust(self, product: str) -> "Future[str | None]":
        """Have it set up for `product`; any thread may call, and nothing waits.

        Gives, when the camera has answered, why it refuses, or `None`. Its frames say for which
        product it was set up (`Frame.product`).
        """
        ...


@runtime_checkable
class Described(Protocol):
    """A camera that says what device it is; asked while it is open."""

    @property
    def description(self) -> str:
        """Maker, model, serial number and settings in one line."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What should be better about it, in one sentence each with the remedy."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a trigger source has heard.

    `at` is `Clock.now()` of that moment. `count` is the source's own count of triggers, where it
    has one. With `is_trigger` False only the id of an earlier part comes: the part of `count`, or
    of the newest trigger where there is no count. `product` is what the part is, where the source
    says so.
    """

    at: float
    part_id: str | None = None
    count: int | None = None
    is_trigger: bool = True
    product: str | None = None


class TriggerSource(Protocol):
    """Announces parts; a context manager. It never guesses which frame belongs to a part.

    Lifecycle: made (touches nothing) → entered (connects; raises `TriggerError` when the source is
    not ready) → `read` by one thread, again and again → left. After `TriggerError` it is left and
    entered again with back-off. `open(settings, stop, clock)` makes it; `stop` ends its waits.
    """

    def read(self) -> Announcement | None:
        """The next announcement, waited for; `None` when told to stop."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of one delivery. `refused` is the receiver's reason in words; `None`: taken.

    `code` is the receiver's own code for the reason, 0 where it has none.
    """

    delivery: int
    refused: str | None = None
    code: int = 0


class Sink(Protocol):
    """Delivers recorded events to one receiver and says what came of each.

    `items` is asked when a part is recorded; everything else is called by the one thread of
    `agent/sinks/delivery.py`, which owns window, order, retry and back-off for all sinks:

    `connect` → `send` and `receipts`, again and again → `disconnect`. A broken connection raises
    `SinkError` from any of them; the sink is then disconnected and connected again with back-off,
    and what has no receipt is sent once more, marked as `resent`. Nothing waits inside a sink.
    """

    @property
    def name(self) -> str:
        """Names the sink in the ledger, in status and in logs; it never changes."""
        ...

    def items(self, part: "Part") -> tuple[str, ...]:
        """What this sink wants to deliver of an ended part, such as `("alarm", "thumbnail")`."""
        ...

    def connect(self) -> int:
        """Connect and give the window: how many deliveries may wait for their receipt."""
        ...

    def send(self, delivery: "Delivery", event: "Event") -> Receipt | None:
        """Encode and send one item; a receipt at once where the receiver cannot take it."""
        ...

    def receipts(self, timeout_s: float) -> Sequence[Receipt]:
        """Wait at most `timeout_s` for receipts; all that have come."""
        ...

    def report(self, status: "Status") -> None:
        """Say how the agent is now, where the receiver has a place for it; may do nothing."""
        ...

    def disconnect(self, *, is_stopping: bool) -> None:
        """Leave the receiver; with `is_stopping`, the last call, it is told that the agent goes."""
        ...


class RequestService(Protocol):
    """Takes requests for the agent while the line runs; a context manager with its own thread."""

    accepted: int
    refused: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class TakesRequests(Protocol):
    """A sink whose receiver may also ask something of the agent."""

    def listen(
        self, requests: "Requests", replay: Callable[[str, int, int], int]
    ) -> RequestService:
        """Make, not enter, what takes requests and has `requests` obey them.

        `replay(epoch, first, last)` has the sink's deliveries of these parts made again and says
        how many there are.
        """
        ...


@runtime_checkable
class Announces(Protocol):
    """A sink whose receiver also announces the parts of one camera."""

    def announces(
        self, camera: str, stop: threading.Event, *, names_products: bool = False
    ) -> TriggerSource:
        """The source, which is opened beside the sink and shares its connection.

        With `names_products` each announcement has to say what the part is.
        """
        ...


class Watched(Protocol):
    """What a service may read of the running agent, at any time and in any thread.

    `feed` has every recorded part: `Feed.subscribe` for this process, `Feed.serve` for a child.
    `live` has each camera's newest part with its frame, while somebody looks. `requests` are obeyed
    by the agent; `None`: by nobody.
    """

    feed: "Feed"
    live: "Live"
    config: "Config"
    config_file: "Path | None"
    requests: "Requests | None"

    def status(self) -> "Status":
        """The newest status."""
        ...

    def age_s(self) -> float:
        """How old the newest status is."""
        ...

    def newer(self, than: "Status | None", timeout_s: float) -> "Status | None":
        """A status other than `than`, waited for; `None` when there is none in time."""
        ...


class Service(Protocol):
    """Reads status and feed while the line runs: terminal, watchdog, page, metrics.

    A context manager around the run, made by `open(settings, watched)`. It has a thread or process
    of its own, may be slow or die without harm to inspection, and changes nothing except by
    requests. One with a `fault` (`HasFault`) has it in the status.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class HasFault(Protocol):
    """A service that knows what is wrong with it."""

    @property
    def fault(self) -> str | None:
        """What does not work, what it means and what to do, in one line; `None`: all is well."""
        ...


@runtime_checkable
class InFleet(Protocol):
    """A service that brings the agent into a desired state."""

    @property
    def fleet(self) -> "FleetStatus":
        """What is desired, and what has become of it."""
        ...
