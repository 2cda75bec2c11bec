"""The child of a Basler camera: pylon."""

from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from time import monotonic, time_ns
from typing import Any, Final

from agent.camera_child import stream
from agent.camera_child.nodes import Nodes, Value, first_line, use_cache
from agent.camera_child.wire import GoneError, Message, receive, send

_SILENT_S: Final = 2.0
_READY_MS: Final = 500
"""How long a camera may take to be ready for the next trigger."""
_SHOWN: Final = ("PixelFormat", "Width", "Height", "ExposureTime", "Gain", "AcquisitionFrameRate")


def serve(
    connection: Connection,
    memory: int,
    *,
    device: str | None,
    features: Sequence[tuple[str, Value]] | None,
    is_free_running: bool,
    trigger_count_chunk: str | None,
) -> None:
    """Give the camera's frames, or, where no features are named, tell which cameras there are."""
    use_cache()
    if features is None:
        receive(connection)
        send(connection, {"found": [_named(each) for each in _devices()]})
        return
    camera = _Camera(
        memory,
        device,
        features,
        is_free_running=is_free_running,
        trigger_count_chunk=trigger_count_chunk,
    )
    stream.serve(connection, camera)


def _devices() -> list[Any]:
    from pypylon import pylon

    return list(pylon.TlFactory.GetInstance().EnumerateDevices())


def _named(info: Any) -> dict[str, str]:
    return {
        "serial": info.GetSerialNumber(),
        "model": info.GetModelName(),
        "title": f"Basler {info.GetModelName()}, {info.GetDeviceClass()}",
    }


class _Camera:
    def __init__(
        self,
        memory: int,
        device: str | None,
        features: Sequence[tuple[str, Value]],
        *,
        is_free_running: bool,
        trigger_count_chunk: str | None,
    ) -> None:
        self._memory = memory
        self._name = device
        self._features = features
        self._is_free_running = is_free_running
        self._trigger_count_chunk = trigger_count_chunk
        self._camera: Any = None
        self._nodes: Any = None
        self._slots: stream.Slots | None = None
        self._exposure_us: float | None = None
        self._newest = 0.0

    def open(self, sign: Callable[[], None]) -> Message:
        from pypylon import genicam, pylon

        info = self._chosen(_devices())
        sign()
        try:
            device = pylon.TlFactory.GetInstance().CreateDevice(info)
            self._camera = pylon.InstantCamera(device)
            self._camera.Open()
        except genicam.GenericException as error:
            raise GoneError(
                f"cannot be opened; another program may hold it: close that ({first_line(error)})"
            ) from None
        sign()
        nodes = self._nodes = Nodes(self._camera.GetNodeMap(), genicam, has_capitals=True)
        before: dict[str, Value] = {}
        for name, value in self._features:
            nodes.write(name, value, before)
        nodes.check_mode({name for name, _ in self._features})
        self._exposure_us = nodes.number("ExposureTime") or nodes.number("ExposureTimeAbs")
        self._slots = stream.Slots(self._memory, int(nodes.number("PayloadSize") or 0))
        # Every frame is wanted: what cannot be taken in time is known by its block id.
        self._camera.StartGrabbing(pylon.GrabStrategy_OneByOne)
        self._newest = monotonic()
        about = _named(info)
        names = dict.fromkeys([*(name for name, _ in self._features), *_SHOWN])
        found = {name: nodes.read(name) for name in names}
        return stream.opened(
            self._slots,
            pixel_format=str(nodes.read("PixelFormat")),
            id=about["serial"],
            vendor="Basler",
            model=about["model"],
            serial=about["serial"],
            firmware=str(nodes.read("DeviceFirmwareVersion") or ""),
            features={name: value for name, value in found.items() if value is not None},
            before=before,
        )

    def _chosen(self, there: list[Any]) -> Any:
        serials = [each.GetSerialNumber() for each in there]
        if self._name in serials:
            return there[serials.index(self._name)]
        if self._name is None and len(there) == 1:
            return there[0]
        if not there:
            raise GoneError("was not found: no camera answers; check power, cable and address")
        what = "was not found" if self._name else f"cannot be chosen among {len(there)} cameras"
        raise GoneError(f"{what}: write device: with one of {', '.join(serials)}")

    def next(self, within_s: float) -> Message | None:
        from pypylon import genicam, pylon

        try:
            result = self._camera.RetrieveResult(
                round(within_s * 1e3), pylon.TimeoutHandling_Return
            )
        except genicam.GenericException as error:
            raise GoneError(f"was lost: {first_line(error)}; check power and cable") from None
        if self._camera.IsCameraDeviceRemoved():
            raise GoneError("was lost: it no longer answers; check power and cable")
        if not result.IsValid():
            if self._is_free_running and monotonic() - self._newest > _SILENT_S:
                raise GoneError("gives no more frames; check power and cable")
            return None
        self._newest = monotonic()
        with result:
            return self._frame(result)

    def _frame(self, result: Any) -> Message | None:
        assert self._slots is not None
        if (slot := self._slots.take()) is None:
            return None
        problem, width, height = None, 0, 0
        if result.GrabSucceeded():
            data = result.GetBuffer()
            size = min(len(data), self._slots.size)
            self._slots.view(slot)[:size] = data[:size]
            width, height = result.Width, result.Height
        else:
            said = result.ErrorDescription or "packets were lost"
            problem = f"the frame is incomplete: {said}; check cable, switch and network card"
        return stream.frame(
            slot,
            width=width,
            height=height,
            pixel_format=str(self._nodes.read("PixelFormat")),
            block_id=int(result.BlockID),
            captured_ns=time_ns(),
            device_ns=int(result.TimeStamp) or None,
            exposure_us=self._exposure_us,
            trigger_count=self._trigger_count(result),
            problem=problem,
        )

    def _trigger_count(self, result: Any) -> int | None:
        name = self._trigger_count_chunk
        if name is None or not result.IsChunkDataAvailable():
            return None
        return int(getattr(result, name).Value)

    def free(self, slot: int) -> None:
        assert self._slots is not None
        self._slots.free(slot)

    def fire(self) -> None:
        from pypylon import genicam, pylon

        try:
            # A trigger that comes too early is ignored, and nobody is told.
            if self._camera.CanWaitForFrameTriggerReady():
                self._camera.WaitForFrameTriggerReady(_READY_MS, pylon.TimeoutHandling_Return)
            self._nodes.execute("TriggerSoftware")
        except genicam.GenericException as error:
            raise GoneError(f"cannot be triggered: {first_line(error)}") from None

    def close(self) -> None:
        if self._camera is not None:
            self._camera.Close()
