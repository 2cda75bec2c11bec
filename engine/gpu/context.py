"""The first GPU's primary context through pycuda: what it lends is given back in it."""

import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy.typing as npt

from engine.errors import BackendError
from engine.gpu import driver


class CudaContext:
    """pycuda, and a context that any thread may make current; freed with `stack`.

    `owner` names the user in errors. Call `probe_gpu` before: pycuda may crash without a driver.
    The primary context is the one that every library in the process shares. `stack` is to be
    closed by the thread that made this: in another one pycuda would keep the context.
    """

    def __init__(self, stack: ExitStack, owner: str) -> None:
        self.owner = owner
        self.cuda = _pycuda()
        with self.explained("cannot start"):
            self.cuda.init()
            self._context = self.cuda.Device(0).retain_primary_context()
        self._thread = threading.get_ident()
        stack.callback(self._released)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context on this thread, which need not be the one that opened it."""
        self._context.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Errors of pycuda as `BackendError`."""
        try:
            yield
        except self.cuda.Error as error:
            raise BackendError(f"{self.owner} {what}: {error}; see nvidia-smi") from error

    def free_with(self, stack: ExitStack, step: Callable[[], object]) -> None:
        """Have `stack` do `step` in this context; a lost device has freed everything already."""
        stack.callback(self._release_current, step)

    def device_memory(self, stack: ExitStack, size: int) -> Any:
        """`size` bytes on the GPU, freed with `stack`."""
        memory = self.cuda.mem_alloc(max(1, size))
        self.free_with(stack, memory.free)
        return memory

    def lasting(self, stack: ExitStack) -> Callable[[int], int]:
        """A function that allocates bytes on the GPU until `stack` ends; gives their address."""
        return lambda size: int(self.device_memory(stack, size))

    def lock(self, memory: npt.NDArray[Any]) -> bool:
        """Have the GPU read `memory` by itself until `unlock`; whether it can."""
        size = ctypes.c_size_t(memory.nbytes)
        with suppress(self.cuda.Error), self.current():
            return not driver.load_driver().cuMemHostRegister_v2(_address(memory), size, 0)
        return False  # a lost device is heard of when it is to inspect

    def unlock(self, memory: npt.NDArray[Any]) -> None:
        """Undo `lock`; a lost device has forgotten it already."""
        with suppress(self.cuda.Error), self.current():
            driver.load_driver().cuMemHostUnregister(_address(memory))

    def settled(self, stream: Any) -> None:
        """Wait until nothing runs on `stream`; a lost device runs nothing."""
        with suppress(self.cuda.Error):
            stream.synchronize()

    def pinned(
        self, stack: ExitStack, shape: tuple[int, ...], kind: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """An array in host memory that the GPU reads by itself; gone with `stack`."""
        array: npt.NDArray[Any] = self.cuda.pagelocked_empty(shape, kind)
        base: Any = array.base
        self.free_with(stack, base.free)
        return array

    def _released(self) -> None:
        """Release the context, and take it off this thread.

        pycuda pushes a context to release it and leaves the rest to CUDA, which never pops a
        primary one: the next library to ask for the current context would get one that is gone.
        """
        with suppress(self.cuda.Error):
            self._context.detach()
            if threading.get_ident() == self._thread:
                popped = ctypes.c_void_p()
                driver.load_driver().cuCtxPopCurrent_v2(ctypes.byref(popped))

    def _release_current(self, step: Callable[[], object]) -> None:
        with suppress(self.cuda.Error), self.current():
            step()


def _address(memory: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(memory.ctypes.data)


def _pycuda() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise BackendError(
            f"pycuda cannot be imported ({error}); install with: pip install pycuda, "
            "which needs the CUDA toolkit"
        ) from error
