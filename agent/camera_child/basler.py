"""The child of a Basler camera: pylon."""

from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from time import monotonic, time_ns
from typing import Any, Final

from agent.camera_child import stream
from agent.camera_child.nodes import Nodes, first_line, use_cache
from agent.camera_child.nodes_camera import NodesCamera
from agent.camera_child.wire import GoneError, Message, receive, send

_READY_MS: Final = 500
"""How long a camera may take to be ready for the next trigger."""


def serve(connection: Connection, memory: int, **settings: Any) -> None:
    """Give the camera's frames, or, where no features are named, tell which cameras there are."""
    use_cache()
    if settings["features"] is None:
        receive(connection)
        send(connection, {"found": [_named(each) for each in _devices()]})
        return
    stream.serve(connection, _Camera(memory, **settings))


def _devices() -> list[Any]:
    from pypylon import pylon

    return list(pylon.TlFactory.GetInstance().EnumerateDevices())


def _named(info: Any) -> dict[str, str]:
    return {
        "id": info.GetFullName(),
        "serial": info.GetSerialNumber(),
        "vendor": "Basler",
        "model": info.GetModelName(),
        "title": f"Basler {info.GetModelName()}, {info.GetDeviceClass()}",
    }


class _Camera(NodesCamera):
    _camera: Any = None
    _exposure_us: float | None = None

    def connect(self, sign: Callable[[], None]) -> tuple[Nodes, Mapping[str, str]]:
        from pypylon import genicam, pylon

        infos = _devices()
        there = [_named(each) for each in infos]
        index = self.chosen(there)
        sign()
        try:
            device = pylon.TlFactory.GetInstance().CreateDevice(infos[index])
            self._camera = pylon.InstantCamera(device)
            self._camera.Open()
        except genicam.GenericException as error:
            raise GoneError(
                f"cannot be opened; another program may hold it: close that ({first_line(error)})"
            ) from None
        sign()
        return Nodes(self._camera.GetNodeMap(), genicam, has_capitals=True), there[index]

    def start(self) -> None:
        from pypylon import pylon

        self._exposure_us = self._nodes.number("ExposureTime") or self._nodes.number(
            "ExposureTimeAbs"
        )
        # Every frame is wanted: what cannot be taken in time is known by its block id.
        self._camera.StartGrabbing(pylon.GrabStrategy_OneByOne)

    def stop(self) -> None:
        self._camera.StopGrabbing()

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
            self.nothing()
            return None
        self._newest = monotonic()
        with result:
            return self._frame(result)

    def _frame(self, result: Any) -> Message | None:
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
