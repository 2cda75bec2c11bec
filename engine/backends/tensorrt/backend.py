"""TensorRT, or TensorRT-RTX, on one NVIDIA GPU; pycuda owns context, memory and stream."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from engine.backends.base import MAX_PIXELS, Outputs, joined, require_views
from engine.backends.tensorrt import driver
from engine.backends.tensorrt.context import CudaContext
from engine.backends.tensorrt.device import DeviceMemory, DeviceOpening
from engine.backends.tensorrt.graph import DriverGraph, Graph
from engine.backends.tensorrt.plans import (
    MAX_BATCH,
    Plan,
    TensorRtModule,
    error_log,
    find_tensorrt,
    plan_key,
    plans_folder,
    read_parity,
    read_plan,
)
from engine.bundle import Bundle, Precision
from engine.errors import BackendError
from engine.frame import Pixels
from engine.inspector import OpenInspector
from engine.methods import NetworkSpec, open_method

_LOG: Final = logging.getLogger(__name__)


class TensorRtNetwork:
    """A plan's network, from and to addresses on the GPU: a `DeviceNetwork`.

    It is made, used and dropped while its context is current. All that it runs must go through one
    stream, since everything shares the same scratch memory.

    Args:
        plan: What it runs.
        tensorrt: The runtime that loads the plan.
        network: The tensors that the plan must have.
        name: What records and errors call it.
        memory: Gives its scratch memory, once.
    """

    def __init__(
        self,
        plan: Plan,
        tensorrt: TensorRtModule,
        network: NetworkSpec,
        name: str,
        memory: DeviceMemory,
    ) -> None:
        self.name = name
        self._side = network.side
        self._tensorrt = tensorrt
        self._log = log = error_log(tensorrt.module)
        self._engine = tensorrt.module.Runtime(log).deserialize_cuda_engine(plan.data)
        if self._engine is None:
            raise BackendError(f"{plan.path} cannot be loaded by {name}{log.last_error()}")
        _check_tensors(self._engine, network, tensorrt, plan)
        self._scratch_size = int(self._engine.device_memory_size_v2)
        self._scratch = memory(self._scratch_size)

    def bound(self, **tensors: int) -> Callable[[int, Any], None]:
        """A function that runs N ≤ `MAX_BATCH` views at these addresses on a stream.

        It has its own execution context: one that a graph was captured from must not change.
        """
        execution = self._execution()
        execution.set_device_memory(self._scratch, self._scratch_size)
        for name, address in tensors.items():
            if not execution.set_tensor_address(name, address):
                raise BackendError(
                    f"{self.name} takes no address for {name}{self._log.last_error()}"
                )
        bound_to = 0

        def enqueue(count: int, stream: Any) -> None:
            nonlocal bound_to
            shape = (count, self._side, self._side, 3)
            # Another shape has work done that no graph may hold: never while one is captured.
            if count != bound_to and not execution.set_input_shape("views", shape):
                raise BackendError(f"{self.name} takes no {shape}{self._log.last_error()}")
            bound_to = count
            if not execution.execute_async_v3(stream.handle):
                raise BackendError(f"{self.name} failed on {shape}{self._log.last_error()}")

        return enqueue

    def _execution(self) -> Any:
        """An execution context whose memory is ours."""
        trt = self._tensorrt.module
        ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._tensorrt.name == "tensorrt_rtx":
            how = self._engine.create_runtime_config()
            how.set_execution_context_allocation_strategy(ours)
            # TensorRT-RTX compiles for a shape in the background by default; a graph captured
            # before that would hold its makeshift kernels for good.
            how.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        else:
            how = ours
        execution = self._engine.create_execution_context(how)
        if execution is None:
            raise BackendError(f"{self.name} cannot start{self._log.last_error()}; see nvidia-smi")
        return execution

    def capture(self, stream: Any, record: Callable[[], None]) -> Graph:
        """What `record` enqueues, as a graph."""
        return DriverGraph(driver.load_driver(), stream.handle, record)


def open_plan(
    bundle: Bundle,
    precision: Precision,
    *,
    plans: Path | None = None,
    gate: bool = True,
    tensorrt: TensorRtModule | None = None,
) -> tuple[Plan, TensorRtModule, str]:
    """The plan for this machine, checked, its runtime, and the name of the two for records.

    The driver is asked first: TensorRT and pycuda may crash without one.

    Args:
        bundle: The bundle that holds the network.
        precision: Which network of the bundle.
        plans: The folder of plans, by default in the user's cache folder.
        gate: Refuse a plan whose verdicts were found to differ from ONNX Runtime's, and warn of one
            that was never compared; False for the comparison itself.
        tensorrt: The runtime, by default the first one that can be imported.

    Raises:
        BackendError: Driver, runtime or plan is missing, or the plan is refused.
    """
    gpu = driver.probe_gpu()
    tensorrt = tensorrt or find_tensorrt()
    key = plan_key(bundle, precision, gpu=gpu, tensorrt=tensorrt)
    try:
        plan = read_plan(plans or plans_folder(), key)
    except BackendError as error:
        raise BackendError(
            f"{error}; build it with: agent build --bundle {bundle.path} --precision {precision}"
        ) from error
    if gate:
        _pass_gate(bundle, precision, plan)
    return plan, tensorrt, f"{tensorrt.name} {gpu.name} {precision}"


class TensorRtBackend:
    """A `Backend` over the plan that `agent build` made for this GPU, views from the host.

    Everything is allocated here, for `MAX_BATCH` views; more views than that run in turns. The
    arguments are those of `open_plan`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "fp32",
        plans: Path | None = None,
        gate: bool = True,
        tensorrt: TensorRtModule | None = None,
    ) -> None:
        plan, tensorrt, self._name = open_plan(
            bundle, precision, plans=plans, gate=gate, tensorrt=tensorrt
        )
        self._network = bundle.manifest.method.network
        with ExitStack() as stack:
            self._gpu = CudaContext(stack, self._name)
            with self._gpu.explained("cannot start"), self._gpu.current():
                self._start(stack, plan, tensorrt)
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

    def _start(self, stack: ExitStack, plan: Plan, tensorrt: TensorRtModule) -> None:
        """Memory, stream and engine; whatever is there when this fails is given back."""
        network = self._network
        self._host: dict[str, Any] = {}
        self._device: dict[str, Any] = {}
        self._running: TensorRtNetwork | None = None
        self._enqueue: Callable[[int, Any], None] | None = None
        self._stream = self._gpu.cuda.Stream()
        self._gpu.free_with(stack, self._forget)
        # Freed pinned memory must not stay reachable as an array.
        stack.callback(self._host.clear)
        for name, (shape, kind) in _tensors(network).items():
            self._host[name] = self._gpu.pinned(stack, (MAX_BATCH, *shape), kind)
            self._device[name] = self._gpu.device_memory(stack, self._host[name].nbytes)
        self._running = TensorRtNetwork(
            plan, tensorrt, network, self._name, self._gpu.lasting(stack)
        )
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
        """Drop engine and stream while their context is current."""
        self._enqueue = self._running = None
        del self._stream


def device_opening(
    bundle: Bundle,
    *,
    precision: Precision = "fp32",
    plans: Path | None = None,
    gate: bool = True,
    tensorrt: TensorRtModule | None = None,
) -> DeviceOpening:
    """Opens the network of the plan that `agent build` made, for an inspection on the device.

    The arguments are those of `open_plan`.
    """
    plan, runtime, name = open_plan(bundle, precision, plans=plans, gate=gate, tensorrt=tensorrt)
    network = bundle.manifest.method.network
    return lambda memory: TensorRtNetwork(plan, runtime, network, name, memory)


def open_device_inspector(
    bundle: Bundle,
    *,
    precision: Precision = "fp32",
    plans: Path | None = None,
    gate: bool = True,
    tensorrt: TensorRtModule | None = None,
    max_pixels: int = MAX_PIXELS,
) -> OpenInspector:
    """All that the bundle's method can do on the GPU; at least its network runs there.

    `max_pixels` is the largest frame that the GPU keeps memory for; the others are `open_plan`'s.
    """
    method = bundle.manifest.method
    opening = device_opening(bundle, precision=precision, plans=plans, gate=gate, tensorrt=tensorrt)
    if (found := method.on_device(opening, max_pixels=max_pixels)) is not None:
        return found
    backend = TensorRtBackend(
        bundle, precision=precision, plans=plans, gate=gate, tensorrt=tensorrt
    )
    return open_method(method, backend)


def _pass_gate(bundle: Bundle, precision: Precision, plan: Plan) -> None:
    command = f"agent build --bundle {bundle.path} --precision {precision} --good DIR"
    found = read_parity(plan)
    if found is None:
        _LOG.warning(
            "the verdicts of %s were never compared with ONNX Runtime's; compare them with: %s",
            plan.path,
            command,
        )
    elif found.refused:
        raise BackendError(
            f"{plan.path} changes verdicts: {found.parity.summary}; use another precision, or "
            f"accept it with: {command} --accept-flips"
        )


def _check_tensors(engine: Any, network: NetworkSpec, tensorrt: TensorRtModule, plan: Plan) -> None:
    """Addresses are set by name and size: a plan with other tensors would write elsewhere."""
    expected = _tensors(network)
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


def _tensors(network: NetworkSpec) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The network's input and outputs: their shapes after the batch, and types."""
    views = ((network.side, network.side, 3), np.dtype(np.uint8))
    outputs = {name: (shape, np.dtype(np.float32)) for name, shape in network.outputs.items()}
    return {"views": views, **outputs}
