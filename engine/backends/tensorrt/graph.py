"""CUDA graphs by the driver's own calls: pycuda has none."""

import ctypes
from collections.abc import Callable
from typing import Any, Final, Protocol

from engine.errors import BackendError

_THREAD_LOCAL: Final = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate


class Graph(Protocol):
    """Work that was recorded once and is done again by one call."""

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

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise BackendError(f"the NVIDIA driver failed ({name} answered {code}); see nvidia-smi")
