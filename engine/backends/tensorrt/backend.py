"""TensorRT, or TensorRT-RTX, on one NVIDIA GPU: its plans as networks on the device."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.backends.base import MAX_PIXELS, Built, Progress
from engine.backends.tensorrt.plans import (
    Plan,
    TensorRtModule,
    ensure_plan,
    error_log,
    find_tensorrt,
    plan_key,
    read_plan,
)
from engine.bundle import Bundle, Precision
from engine.errors import BackendError
from engine.gpu import driver
from engine.gpu.backend import DeviceBackend, open_on_device
from engine.gpu.device import DeviceMemory, DeviceOpening
from engine.gpu.graph import DriverGraph, Graph
from engine.gpu.verdicts import cache_folder, comparing
from engine.inspector import OpenInspector
from engine.methods import NetworkSpec


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
        plan = read_plan(plans or cache_folder(), key)
    except BackendError as error:
        raise BackendError(
            f"{error}; build it with: agent build --bundle {bundle.path} --precision {precision}"
        ) from error
    if gate:
        plan.verdicts.gate(str(plan.path), comparing(bundle, precision, "tensorrt"))
    return plan, tensorrt, f"{tensorrt.name} {gpu.name} {precision}"


def open_plan_backend(
    bundle: Bundle,
    *,
    precision: Precision = "fp32",
    plans: Path | None = None,
    gate: bool = True,
    tensorrt: TensorRtModule | None = None,
) -> DeviceBackend:
    """A `Backend` over the plan that `agent build` made for this GPU, views from the host.

    The arguments are those of `open_plan`.
    """
    plan, runtime, name = open_plan(bundle, precision, plans=plans, gate=gate, tensorrt=tensorrt)
    network = bundle.manifest.method.network
    return DeviceBackend(_opening(plan, runtime, network, name), network, name)


def open_plan_inspector(
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
    plan, runtime, name = open_plan(bundle, precision, plans=plans, gate=gate, tensorrt=tensorrt)
    network = bundle.manifest.method.network
    return open_on_device(
        bundle.manifest.method, _opening(plan, runtime, network, name), name, max_pixels=max_pixels
    )


def build_plan_here(
    bundle: Bundle, precision: Precision, *, cache: Path | None, progress: Progress
) -> Built:
    """As `BackendSpec.build`: a plan for this GPU, unless there is one that still fits."""
    gpu = driver.probe_gpu()
    tensorrt = find_tensorrt()
    plan = ensure_plan(
        cache or cache_folder(), bundle, precision, gpu=gpu, tensorrt=tensorrt, progress=progress
    )
    key = plan.record.key
    done = f"built in {plan.record.seconds:.1f} s" if plan.is_new else "still fits"
    return Built(
        precision=precision,
        told=f"{done}, {len(plan.data) / 1e6:.1f} MB: {plan.path}",
        target=f"{key.gpu} (compute capability {key.capability}) with {key.runtime}",
        facts={"path": str(plan.path), "is_new": plan.is_new, "bytes": len(plan.data)}
        | asdict(plan.record),
        verdicts=plan.verdicts,
        open=partial(
            open_plan_inspector,
            bundle,
            precision=precision,
            plans=cache,
            gate=False,
            tensorrt=tensorrt,
        ),
        remedy="install a TensorRT that supports this GPU, or run with bundle.backend: cuda",
    )


def _opening(
    plan: Plan, tensorrt: TensorRtModule, network: NetworkSpec, name: str
) -> DeviceOpening:
    return lambda memory, _stream: TensorRtNetwork(plan, tensorrt, network, name, memory)


def _check_tensors(engine: Any, network: NetworkSpec, tensorrt: TensorRtModule, plan: Plan) -> None:
    """Addresses are set by name and size: a plan with other tensors would write elsewhere."""
    expected = network.tensors
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
