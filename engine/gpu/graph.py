"""CUDA graphs by the driver's own calls: pycuda has none."""

import ctypes
from collections.abc import Callable
from typing import Any, Final, Protocol

from engine.errors import BackendError

_THREAD_LOCAL: Final = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate
_NODE_KERNEL, _NODE_HOST = 0, 3  # CU_GRAPH_NODE_TYPE_…


class Graph(Protocol):
    """Work that was recorded once and is done again by one call."""

    @property
    def kernels(self) -> int | None:
        """How many kernels a launch runs; `None`: not known."""
        ...

    def launch(self) -> None: ...

    def close(self) -> None: ...


class DriverGraph:
    """What `record` enqueues on a stream, captured; `handle` is the stream's, not the default's.

    Raises `BackendError` when the driver refuses, as it does where `record` waits or allocates.
    `driver` is `load_driver`'s answer. The context must be current in every call.
    """

    def __init__(self, driver: Any, handle: int, record: Callable[[], None]) -> None:
        self._driver = driver
        self._stream = ctypes.c_void_p(handle)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            record()
        except BaseException:
            # The stream must leave its capture, which may have come to something.
            if not driver.cuStreamEndCapture(self._stream, ctypes.byref(graph)) and graph:
                driver.cuGraphDestroy(graph)
            raise
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            kinds = self._kinds(graph)
            if _NODE_HOST in kinds:
                # It would be called again in each replay, with what was given back in the first.
                raise BackendError("what was captured calls the host")
            self.kernels = kinds.count(_NODE_KERNEL)
            self._call(
                "cuGraphInstantiateWithFlags",
                ctypes.byref(self._executable),
                graph,
                ctypes.c_ulonglong(0),
            )
        finally:
            driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Enqueue it all on the stream."""
        self._call("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        self._driver.cuGraphExecDestroy(self._executable)

    def _kinds(self, graph: ctypes.c_void_p) -> list[int]:
        """The type of each node."""
        count = ctypes.c_size_t()
        self._call("cuGraphGetNodes", graph, None, ctypes.byref(count))
        nodes = (ctypes.c_void_p * count.value)()
        self._call("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
        kind, found = ctypes.c_int(), []
        for node in nodes:
            self._call("cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(kind))
            found.append(kind.value)
        return found

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise BackendError(f"the NVIDIA driver failed ({name} answered {code}); see nvidia-smi")


class Again:
    """A `Graph` that is none: the work is enqueued again each time."""

    kernels: Final = None

    def __init__(self, record: Callable[[], None]) -> None:
        self._record = record

    def launch(self) -> None:
        self._record()

    def close(self) -> None:
        del self._record
