"""The child of a camera with a GenTL producer: harvesters and the reference GenApi."""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from time import monotonic, time_ns
from typing import Any

import numpy as np

from agent.camera_child import stream
from agent.camera_child.nodes import Nodes, use_cache
from agent.camera_child.nodes_camera import NodesCamera
from agent.camera_child.wire import GoneError, Message, receive, send


def serve(connection: Connection, memory: int, *, producer: str, **settings: Any) -> None:
    """Give the camera's frames, or, where no features are named, tell which cameras there are."""
    use_cache()
    if settings["features"] is None:
        receive(connection)
        with _loaded(producer) as harvester:
            there = [_named(each) for each in harvester.device_info_list]
        send(connection, {"found": there})
        return
    stream.serve(connection, _Camera(memory, producer=producer, **settings))


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


class _Camera(NodesCamera):
    def __init__(self, memory: int, *, producer: str, **settings: Any) -> None:
        super().__init__(memory, **settings)
        self._producer = producer
        self._harvester: Any = None
        self._acquirer: Any = None
        self._incomplete: deque[object] = deque()
        self._last = 0

    # ---- opening

    def connect(self, sign: Callable[[], None]) -> tuple[Nodes, Mapping[str, str]]:
        from genicam.gentl import GenericException

        self._harvester = _loaded(self._producer)
        sign()
        there = [_named(each) for each in self._harvester.device_info_list]
        index = self.chosen(there)
        try:
            self._acquirer = self._harvester.create(index)
        except (GenericException, RuntimeError) as error:
            raise GoneError(
                f"cannot be opened; another program may hold it: close that ({error})"
            ) from None
        sign()
        from genicam import genapi

        self._note_incomplete()
        node_map = self._acquirer.remote_device.node_map
        return Nodes(node_map, genapi, has_capitals=False), there[index]

    def start(self) -> None:
        self._acquirer.start()

    def stop(self) -> None:
        self._acquirer.stop()

    def frame_bytes(self) -> int:
        return super().frame_bytes() or self._size()

    def _note_incomplete(self) -> None:
        """Harvesters keeps incomplete frames to itself, but says when there was one."""
        from harvesters.core import Callback, ImageAcquirer

        noting = Callback()
        noting.emit = lambda context=None: self._incomplete.append(context)
        self._acquirer.add_callback(ImageAcquirer.Events.INCOMPLETE_BUFFER, noting)

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
        self.nothing()
        return None

    def _frame(self, buffer: Any) -> Message | None:
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
