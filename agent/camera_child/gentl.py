"""The child of a camera with a GenTL producer: harvesters and the reference GenApi."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from time import monotonic, time_ns
from typing import Any, Final

import numpy as np

from agent.camera_child import stream
from agent.camera_child.nodes import Nodes, Value, use_cache
from agent.camera_child.wire import GoneError, Message, receive, send

_SILENT_S: Final = 2.0
_SHOWN: Final = ("PixelFormat", "Width", "Height", "ExposureTime", "Gain", "AcquisitionFrameRate")


def serve(
    connection: Connection,
    memory: int,
    *,
    producer: str,
    device: str | None,
    features: Sequence[tuple[str, Value]] | None,
    is_free_running: bool,
    trigger_count_chunk: str | None,
) -> None:
    """Give the camera's frames, or, where no features are named, tell which cameras there are."""
    use_cache()
    if features is None:
        receive(connection)
        with _loaded(producer) as harvester:
            there = [_named(each) for each in harvester.device_info_list]
        send(connection, {"found": there})
        return
    camera = _Camera(
        memory,
        producer,
        device,
        features,
        is_free_running=is_free_running,
        trigger_count_chunk=trigger_count_chunk,
    )
    stream.serve(connection, camera)


def _loaded(producer: str) -> Any:
    from genicam.gentl import GenericException
    from harvesters.core import Harvester

    harvester = Harvester()
    try:
        harvester.add_file(producer, check_existence=True, check_validity=True)
        harvester.update()
    except (OSError, GenericException, RuntimeError) as error:
        harvester.reset()
        raise GoneError(f"cannot be reached: {producer} is no usable producer ({error})") from None
    return harvester


def _named(info: Any) -> dict[str, str]:
    about = info.property_dict
    return {
        "id": str(about.get("id_") or ""),
        "serial": str(about.get("serial_number") or ""),
        "title": str(about.get("display_name") or about.get("model") or about.get("id_")),
        "vendor": str(about.get("vendor") or ""),
        "model": str(about.get("model") or ""),
    }


class _Camera:
    def __init__(
        self,
        memory: int,
        producer: str,
        device: str | None,
        features: Sequence[tuple[str, Value]],
        *,
        is_free_running: bool,
        trigger_count_chunk: str | None,
    ) -> None:
        self._memory = memory
        self._producer = producer
        self._name = device
        self._features = features
        self._is_free_running = is_free_running
        self._trigger_count_chunk = trigger_count_chunk
        self._harvester: Any = None
        self._acquirer: Any = None
        self._nodes: Any = None
        self._slots: stream.Slots | None = None
        self._incomplete: deque[object] = deque()
        self._last = 0
        self._newest = 0.0

    # ---- opening

    def open(self, sign: Callable[[], None]) -> Message:
        from genicam.gentl import GenericException

        self._harvester = _loaded(self._producer)
        sign()
        there = [_named(each) for each in self._harvester.device_info_list]
        index = self._chosen(there)
        try:
            self._acquirer = self._harvester.create(index)
        except (GenericException, RuntimeError) as error:
            raise GoneError(
                f"cannot be opened; another program may hold it: close that ({error})"
            ) from None
        sign()
        from genicam import genapi

        node_map = self._acquirer.remote_device.node_map
        nodes = self._nodes = Nodes(node_map, genapi, has_capitals=False)
        before: dict[str, Value] = {}
        for name, value in self._features:
            nodes.write(name, value, before)
        nodes.check_mode({name for name, _ in self._features})
        self._note_incomplete()
        size = int(self._nodes.read("PayloadSize") or 0) or self._size()
        self._slots = stream.Slots(self._memory, size)
        self._acquirer.start()
        self._newest = monotonic()
        about = there[index]
        names = dict.fromkeys([*(name for name, _ in self._features), *_SHOWN])
        found = {name: self._nodes.read(name) for name in names}
        return stream.opened(
            self._slots,
            pixel_format=str(self._nodes.read("PixelFormat")),
            id=about["serial"] or about["id"],
            vendor=about["vendor"],
            model=about["model"],
            serial=about["serial"],
            features={name: value for name, value in found.items() if value is not None},
            before=before,
        )

    def _note_incomplete(self) -> None:
        """Harvesters keeps incomplete frames to itself, but says when there was one."""
        from harvesters.core import Callback, ImageAcquirer

        noting = Callback()
        noting.emit = lambda context=None: self._incomplete.append(context)
        self._acquirer.add_callback(ImageAcquirer.Events.INCOMPLETE_BUFFER, noting)

    def _chosen(self, there: list[dict[str, str]]) -> int:
        names = ", ".join(each["serial"] or each["id"] for each in there)
        if self._name is None and len(there) == 1:
            return 0
        for index, each in enumerate(there):
            if self._name is not None and self._name in {each["serial"], each["id"]}:
                return index
        if not there:
            raise GoneError("was not found: the producer has no camera; check power and cable")
        remedy = f"write device: with one of {names}"
        what = "was not found" if self._name else f"cannot be chosen among {len(there)} cameras"
        raise GoneError(f"{what}: {remedy}")

    def _size(self) -> int:
        return int(self._nodes.read("Width") or 0) * int(self._nodes.read("Height") or 0) * 4

    # ---- frames

    def next(self, within_s: float) -> Message | None:
        from genicam.gentl import GenericException

        try:
            buffer = self._acquirer.try_fetch(timeout=within_s)
        except (GenericException, RuntimeError) as error:
            raise GoneError(f"was lost: {error}; check power and cable") from None
        if buffer is None:
            return self._without()
        self._newest = monotonic()
        with buffer:
            return self._frame(buffer)

    def _without(self) -> Message | None:
        assert self._slots is not None
        if self._incomplete and (slot := self._slots.take()) is not None:
            self._incomplete.popleft()
            self._last += 1
            self._newest = monotonic()
            return stream.frame(
                slot,
                width=0,
                height=0,
                pixel_format="Mono8",
                block_id=self._last,
                captured_ns=time_ns(),
                problem="the frame is incomplete: a part of it was lost on the way; check cable "
                "and frame grabber",
            )
        if self._is_free_running and monotonic() - self._newest > _SILENT_S:
            raise GoneError("gives no more frames; check power and cable")
        return None

    def _frame(self, buffer: Any) -> Message | None:
        assert self._slots is not None
        picture, about = buffer.payload.components[0], buffer.module
        self._last = int(about.frame_id)
        if (slot := self._slots.take()) is None:
            return None
        data = np.ascontiguousarray(picture.data).view(np.uint8).reshape(-1)
        size = min(data.size, self._slots.size)
        np.frombuffer(self._slots.view(slot), np.uint8, size)[:] = data[:size]
        return stream.frame(
            slot,
            width=int(picture.width),
            height=int(picture.height),
            pixel_format=str(picture.data_format),
            block_id=self._last,
            captured_ns=time_ns(),
            device_ns=_timestamp(about),
            exposure_us=self._nodes.number("ChunkExposureTime"),
            trigger_count=self._trigger_count(),
        )

    def _trigger_count(self) -> int | None:
        name = self._trigger_count_chunk
        value = None if name is None else self._nodes.read(name)
        return value if isinstance(value, int) else None

    def free(self, slot: int) -> None:
        assert self._slots is not None
        self._slots.free(slot)

    def fire(self) -> None:
        from genicam.genapi import GenericException

        try:
            self._nodes.execute("TriggerSoftware")
        except GenericException as error:
            raise GoneError(f"cannot be triggered: {error}") from None

    def close(self) -> None:
        if self._acquirer is not None:
            self._acquirer.stop()
            self._acquirer.destroy()
        if self._harvester is not None:
            self._harvester.reset()


def _timestamp(about: Any) -> int | None:
    from genicam.gentl import GenericException

    with suppress(GenericException):
        return int(about.timestamp_ns) or None
    return None
