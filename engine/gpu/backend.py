"""A `Backend` over a network on the GPU: views go up from the host, their outputs come down."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from engine.backends.base import Outputs, joined, require_views
from engine.frame import Pixels
from engine.gpu.context import CudaContext
from engine.gpu.device import MAX_BATCH, DeviceNetwork, DeviceOpening
from engine.inspector import OpenInspector
from engine.methods import MethodSpec, NetworkSpec, open_method
from engine.region_inspector import in_regions


class DeviceBackend:
    """Everything is allocated here, for `MAX_BATCH` views; more views than that run in turns.

    Args:
        opening: Makes the network. The driver was asked before: pycuda may crash without one.
        network: The tensors of the network.
        name: What records and errors call it.
    """

    def __init__(self, opening: DeviceOpening, network: NetworkSpec, name: str) -> None:
        self._network = network
        self._name = name
        with ExitStack() as stack:
            self._gpu = CudaContext(stack, name)
            with self._gpu.explained("cannot start"), self._gpu.current():
                self._start(stack, opening)
            self._resources = stack.pop_all()

    @property
    def name(self) -> str:
        return self._name

    @property
    def workers(self) -> int:
        return 1

    def run(self, views: Pixels) -> Outputs:
        require_views(views, self._network.side, self._name)
        with self._gpu.explained(f"failed on {views.shape}"), self._gpu.current():
            try:
                turns = [
                    self._turn(views[start : start + MAX_BATCH])
                    for start in range(0, len(views), MAX_BATCH)
                ]
            except BaseException:
                # What was enqueued still reads the pinned views, which the next run overwrites.
                self._gpu.settled(self._stream)
                raise
        return joined(turns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _start(self, stack: ExitStack, opening: DeviceOpening) -> None:
        """Memory, stream and network; whatever is there when this fails is given back."""
        self._host: dict[str, Any] = {}
        self._device: dict[str, Any] = {}
        self._running: DeviceNetwork | None = None
        self._enqueue: Callable[[int, Any], None] | None = None
        self._stream = self._gpu.cuda.Stream()
        self._gpu.free_with(stack, self._forget)
        # Freed pinned memory must not stay reachable as an array.
        stack.callback(self._host.clear)
        for name, (shape, kind) in self._network.tensors.items():
            self._host[name] = self._gpu.pinned(stack, (MAX_BATCH, *shape), kind)
            self._device[name] = self._gpu.device_memory(stack, self._host[name].nbytes)
        self._running = opening(self._gpu.lasting(stack), self._stream)
        self._enqueue = self._running.bound(
            **{name: int(device) for name, device in self._device.items()}
        )
        # First of all: nothing may still be running over what is given back.
        self._gpu.free_with(stack, self._stop)

    def _turn(self, views: Pixels) -> Outputs:
        """At most `MAX_BATCH` views up, through, and their outputs down."""
        cuda, count = self._gpu.cuda, len(views)
        staged = self._host["views"][:count]
        np.copyto(staged, views)
        cuda.memcpy_htod_async(self._device["views"], staged, self._stream)
        assert self._enqueue is not None
        self._enqueue(count, self._stream)
        for name in self._network.outputs:
            cuda.memcpy_dtoh_async(self._host[name][:count], self._device[name], self._stream)
        self._stream.synchronize()
        # The pinned arrays are written again in the next turn; what leaves is a copy.
        return {name: self._host[name][:count].copy() for name in self._network.outputs}

    def _stop(self) -> None:
        self._enqueue = None
        self._gpu.settled(self._stream)

    def _forget(self) -> None:
        """Drop network and stream while their context is current."""
        self._enqueue = self._running = None
        del self._stream


def open_on_device(
    method: MethodSpec, opening: DeviceOpening, name: str, *, max_pixels: int
) -> OpenInspector:
    """All that `method` can do on the GPU; at least its network runs there.

    Args:
        method: How a frame is inspected.
        opening: Makes the network.
        name: What records and errors call it.
        max_pixels: The largest frame that the GPU keeps memory for.
    """
    if (found := method.on_device(opening, max_pixels=max_pixels)) is not None:
        return in_regions(method, found)
    return open_method(method, DeviceBackend(opening, method.network, name))
