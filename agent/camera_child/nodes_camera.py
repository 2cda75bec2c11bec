"""The child's side of a camera whose features are `Nodes`: what GenTL producers and pylon share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from agent.camera_child import stream
from agent.camera_child.nodes import Nodes, Value
from agent.camera_child.wire import GoneError, Message

_SILENT_S: Final = 2.0
_SHOWN: Final = ("PixelFormat", "Width", "Height", "ExposureTime", "Gain", "AcquisitionFrameRate")
Features = Sequence[tuple[str, Value]]


class NodesCamera(ABC):
    """A `stream.Device`; how it is connected, started and read is left to add.

    Args:
        memory: The shared memory's file.
        device: Which camera; `None`: the only one.
        features: Written in this order.
        is_free_running: Whether it is away when it gives no frames for a while.
        trigger_count_chunk: In which chunk it counts its triggers, if it does.
    """

    def __init__(
        self,
        memory: int,
        *,
        device: str | None,
        features: Features,
        is_free_running: bool,
        trigger_count_chunk: str | None,
    ) -> None:
        self._memory = memory
        self._name = device
        self._features = features
        self._is_free_running = is_free_running
        self._trigger_count_chunk = trigger_count_chunk
        self._about: Mapping[str, str] = {}
        self._nodes: Nodes
        self._slots: stream.Slots
        self._newest = 0.0

    @abstractmethod
    def connect(self, sign: Callable[[], None]) -> tuple[Nodes, Mapping[str, str]]:
        """Have the device; its features, and what it is: `id`, `vendor`, `model`, `serial`."""

    @abstractmethod
    def start(self) -> None:
        """Have it give frames."""

    @abstractmethod
    def stop(self) -> None:
        """Have it give none, so that all features may be written."""

    def frame_bytes(self) -> int:
        """The size of a frame."""
        return int(self._nodes.number("PayloadSize") or 0)

    def open(self, sign: Callable[[], None]) -> Message:
        self._nodes, self._about = self.connect(sign)
        before = self._write(self._features)
        self._nodes.check_mode({name for name, _ in self._features})
        self._slots = stream.Slots(self._memory, self.frame_bytes())
        self._begin()
        return self._opened(before)

    def pause(self) -> None:
        return  # what is there would be lost with a stop: `adjust` stops when it has been given

    def adjust(self, features: Features, sign: Callable[[], None]) -> Message:
        self.stop()
        sign()
        try:
            before = self._write(features)
            if self.frame_bytes() > self._slots.size:
                raise GoneError("is set up again, as its frames are larger now")
        finally:
            self._begin()
        self._features = features
        return self._opened(before)

    def chosen(self, there: Sequence[Mapping[str, str]]) -> int:
        """Which of the cameras `there` is meant; raises `GoneError`."""
        if self._name is None and len(there) == 1:
            return 0
        for index, each in enumerate(there):
            if self._name is not None and self._name in {each["serial"], each["id"]}:
                return index
        if not there:
            raise GoneError("was not found: no camera answers; check power, cable and address")
        names = ", ".join(each["serial"] or each["id"] for each in there)
        what = "was not found" if self._name else f"cannot be chosen among {len(there)} cameras"
        raise GoneError(f"{what}: write device: with one of {names}")

    def nothing(self) -> None:
        """No frame has come in time; raises `GoneError` where one should have."""
        if self._is_free_running and monotonic() - self._newest > _SILENT_S:
            raise GoneError("gives no more frames; check power and cable")

    def free(self, slot: int) -> None:
        self._slots.free(slot)

    def _begin(self) -> None:
        self.start()
        self._newest = monotonic()

    def _write(self, features: Features) -> dict[str, Value]:
        """Write features; what was different before."""
        before: dict[str, Value] = {}
        for name, value in features:
            self._nodes.write(name, value, before)
        return before

    def _opened(self, before: dict[str, Value]) -> Message:
        names = dict.fromkeys([*(name for name, _ in self._features), *_SHOWN])
        found: dict[str, Any] = {name: self._nodes.read(name) for name in names}
        about = self._about
        return stream.opened(
            self._slots,
            pixel_format=str(self._nodes.read("PixelFormat")),
            id=about["serial"] or about["id"],
            vendor=about["vendor"],
            model=about["model"],
            serial=about["serial"],
            firmware=str(self._nodes.read("DeviceFirmwareVersion") or ""),
            features={name: value for name, value in found.items() if value is not None},
            before=before,
        )
