"""What everything that inspects has in common; the methods are in `engine/methods/`."""

from typing import Protocol, Self, runtime_checkable

from engine.frame import Bayer, Inspection, Pixels


class Inspector(Protocol):
    """Anything that turns a frame's pixels into an inspection."""

    def inspect(self, pixels: Pixels) -> Inspection: ...


@runtime_checkable
class TakesBayer(Protocol):
    """An inspector of raw colour pixels too; `takes_bayer` says whether that saves anything."""

    takes_bayer: bool

    def inspect(self, pixels: Pixels, bayer: Bayer | None = None) -> Inspection:
        """As `Inspector.inspect`; with `bayer` the pixels are raw ones of that pattern."""
        ...


class OpenInspector(Inspector, Protocol):
    """An `Inspector` that is ready; a context manager that owns its network, memory and threads.

    As many threads as `workers` says may call `inspect` at once. It raises `InspectionError` when
    one frame cannot be inspected and others may be, `BackendError` when the runtime has failed.
    """

    @property
    def name(self) -> str:
        """Runtime, device and precision, for records: `onnxruntime cpu fp32`."""
        ...

    @property
    def workers(self) -> int:
        """How many parts should be inspected at once."""
        ...

    def warm_up(self) -> None:
        """One run over nothing: what a first run sets up is not on a part's time."""
        ...

    def lend(self, memory: Pixels | None) -> None:
        """From now on frames lie in `memory`, where a device may read them itself; `None`: nowhere.

        What was lent before must still be there, and may go afterwards.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
