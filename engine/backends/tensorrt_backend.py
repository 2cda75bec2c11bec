"""TensorRT, or TensorRT-RTX, on one NVIDIA GPU; pycuda owns context, memory and stream."""

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.backends import Maps, NetworkOutput
from engine.backends.cuda_driver import probe_gpu
from engine.build import (
    MAX_BATCH,
    Plan,
    TensorRt,
    error_log,
    find_tensorrt,
    plan_key,
    plans_folder,
    read_plan,
)
from engine.bundle import Bundle, NetworkSpec, Precision
from engine.errors import BackendError
from engine.frame import Pixels


class TensorRtBackend:
    """A `Backend` over the plan that `agent build` made for this GPU.

    Everything is allocated here, for `MAX_BATCH` views; more views than that run in turns. The
    first thing asked is the driver: TensorRT and pycuda may crash where there is none.
    """

    def __init__(
        self, bundle: Bundle, *, precision: Precision = "fp32", plans: Path | None = None
    ) -> None:
        gpu = probe_gpu()
        tensorrt = find_tensorrt()
        self._cuda = _pycuda()
        key = plan_key(bundle, precision, gpu=gpu, tensorrt=tensorrt)
        try:
            plan = read_plan(plans or plans_folder(), key)
        except BackendError as error:
            raise BackendError(
                f"{error}; build it with: agent build --bundle {bundle.path} "
                f"--precision {precision}"
            ) from error
        self._name = f"{tensorrt.name} {gpu.name} {precision}"
        self._network = bundle.manifest.network
        with ExitStack() as stack, self._explained("cannot start"):
            self._cuda.init()
            # The primary context is the one that every library in the process shares.
            self._context = self._cuda.Device(0).retain_primary_context()
            stack.callback(self._release, self._context.detach)
            with self._current():
                self._start(stack, plan, tensorrt)
            self._resources = stack.pop_all()

    @property
    def name(self) -> str:
        return self._name

    @property
    def lanes(self) -> int:
        return 1

    def run(self, views: Pixels) -> NetworkOutput:
        side = self._network.side
        if views.dtype != np.uint8 or views.shape[1:] != (side, side, 3) or not len(views):
            raise BackendError(
                f"{self._name} takes uint8 (N, {side}, {side}, 3), not {views.dtype} {views.shape}"
            )
        with self._explained(f"failed on {views.shape}"), self._current():
            turns = [
                self._turn(views[start : start + MAX_BATCH])
                for start in range(0, len(views), MAX_BATCH)
            ]
        score_maps, attentions = zip(*turns, strict=True)
        return NetworkOutput(
            score_map=np.concatenate(score_maps), attention=np.concatenate(attentions)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()

    def _start(self, stack: ExitStack, plan: Plan, tensorrt: TensorRt) -> None:
        """Memory, stream and engine; whatever is there when this fails is given back."""
        network = self._network
        maps = (MAX_BATCH, network.map_height, network.map_width)
        self._host: dict[str, Any] = {}
        self._device: dict[str, Any] = {}
        self._execution: Any = None
        self._engine: Any = None
        self._runtime: Any = None
        # Freed pinned memory must not stay reachable as an array.
        stack.callback(self._host.clear)
        for name, shape, kind in (
            ("views", (MAX_BATCH, network.side, network.side, 3), np.uint8),
            ("score_map", maps, np.float32),
            ("attention", maps, np.float32),
        ):
            host = self._host[name] = self._cuda.pagelocked_empty(shape, kind)
            stack.callback(self._release_current, host.base.free)
            device = self._device[name] = self._cuda.mem_alloc(host.nbytes)
            stack.callback(self._release_current, device.free)
        self._stream = self._cuda.Stream()
        stack.callback(self._release_current, self._forget)
        # TensorRT does not keep its logger and its runtime alive.
        self._log = log = error_log(tensorrt.module)
        self._runtime = tensorrt.module.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise BackendError(f"{plan.path} cannot be loaded by {self._name}{log.told()}")
        _check_tensors(self._engine, network, tensorrt, plan)
        self._execution = self._engine.create_execution_context()
        if self._execution is None:
            raise BackendError(f"{self._name} cannot start{log.told()}; see nvidia-smi")
        for name, device in self._device.items():
            self._execution.set_tensor_address(name, int(device))

    def _turn(self, views: Pixels) -> tuple[Maps, Maps]:
        """At most `MAX_BATCH` views up, through, and their maps down."""
        count = len(views)
        staged = self._host["views"][:count]
        np.copyto(staged, views)
        self._cuda.memcpy_htod_async(self._device["views"], staged, self._stream)
        self._execution.set_input_shape("views", views.shape)
        if not self._execution.execute_async_v3(self._stream.handle):
            raise BackendError(f"{self._name} refused {views.shape}{self._log.told()}")
        for name in ("score_map", "attention"):
            self._cuda.memcpy_dtoh_async(self._host[name][:count], self._device[name], self._stream)
        self._stream.synchronize()
        # The pinned arrays are written again in the next turn; what leaves is a copy.
        return self._host["score_map"][:count].copy(), self._host["attention"][:count].copy()

    def _forget(self) -> None:
        """Drop engine and stream while their context is current."""
        del self._execution, self._engine, self._runtime, self._stream

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Our context on this thread, which need not be the one that opened the backend."""
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"{self._name} {what}: {error}; see nvidia-smi") from error

    def _release(self, step: Any) -> None:
        # A device that was lost has given everything back already, and answers with errors.
        with suppress(self._cuda.Error):
            step()

    def _release_current(self, step: Any) -> None:
        with suppress(self._cuda.Error), self._current():
            step()


def _check_tensors(engine: Any, network: NetworkSpec, tensorrt: TensorRt, plan: Plan) -> None:
    """Addresses are set by name and size: a plan with other tensors would write elsewhere."""
    maps = (network.map_height, network.map_width), np.dtype(np.float32)
    expected = {
        "views": ((network.side, network.side, 3), np.dtype(np.uint8)),
        "score_map": maps,
        "attention": maps,
    }
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        name: (
            tuple(engine.get_tensor_shape(name))[1:],
            np.dtype(tensorrt.module.nptype(engine.get_tensor_dtype(name))),
        )
        for name in names
    }
    if found != expected:
        raise BackendError(f"{plan.path} has the tensors {found}, the bundle names {expected}")


def _pycuda() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise BackendError(
            f"pycuda cannot be imported ({error}); install with: pip install 'atac-agent[gpu]', "
            "which needs the CUDA toolkit"
        ) from error
