"""Stand-ins at the driver seam: NVIDIA's driver and TensorRT, without a GPU.

What TensorRT would compute ONNX Runtime computes, on memory that the scripted pycuda hands out; so
the numbers that come out are the network's own.
"""

import ctypes
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

from engine.backends.tensorrt.plans import TensorRtModule
from engine.gpu.driver import Gpu

_GUARD = 64
GPU = Gpu(name="NVIDIA Test 1000", capability="8.6", driver="13.0")


class Driver:
    """libcuda with one GPU, or one whose `failing` call answers `code`.

    With `cuda` it captures what that enqueues, does it again when the graph is launched, and fails
    where that is to fail.
    """

    def __init__(self, failing: str = "", code: int = 999, cuda: "Pycuda | None" = None):
        self._failing = failing
        self._code = code
        self._cuda = cuda
        self.graphs = {}
        self.launches = 0
        self.captures = 0
        self.calls_host = False
        self.locked = {}

    def cuStreamBeginCapture_v2(self, stream, mode):  # noqa: N802
        assert stream.value == Stream.handle
        if code := self._answer("cuStreamBeginCapture_v2"):
            return code
        self._cuda.captured = []
        self.captures += 1
        return 0

    def cuStreamEndCapture(self, stream, graph):  # noqa: N802
        recorded, self._cuda.captured = self._cuda.captured, None
        graph._obj.value = self.captures
        self.graphs[self.captures] = recorded
        return self._answer("cuStreamEndCapture")

    def cuGraphInstantiateWithFlags(self, executable, graph, flags):  # noqa: N802
        executable._obj.value = graph.value
        return self._answer("cuGraphInstantiateWithFlags")

    def cuGraphGetNodes(self, graph, nodes, count):  # noqa: N802
        count._obj.value = len(self.graphs[graph.value])
        if nodes is not None:
            nodes[:] = range(1, count._obj.value + 1)
        return 0

    def cuGraphNodeGetType(self, node, kind):  # noqa: N802
        kind._obj.value = 3 if self.calls_host else 0
        return 0

    def cuGraphDestroy(self, graph):  # noqa: N802
        return 0

    def cuGraphLaunch(self, executable, stream):  # noqa: N802
        assert self._cuda.current
        if code := self._answer("cuGraphLaunch"):
            return code
        self.launches += 1
        for step in self.graphs[executable.value]:
            step()
        return 0

    def cuGraphExecDestroy(self, executable):  # noqa: N802
        del self.graphs[executable.value]
        return 0

    def cuMemHostRegister_v2(self, address, size, flags):  # noqa: N802
        assert self._cuda.current
        if code := self._answer("cuMemHostRegister_v2"):
            return code
        self.locked[address.value] = size.value
        return 0

    def cuMemHostUnregister(self, address):  # noqa: N802
        del self.locked[address.value]
        return 0

    def cuCtxPopCurrent_v2(self, popped):  # noqa: N802
        Pycuda.latest.current -= 1
        return 0

    def _answer(self, call: str) -> int:
        failing = "" if self._cuda is None else self._cuda.failing
        return self._code if call in {self._failing, *failing.split()} else 0

    def cuInit(self, flags):  # noqa: N802 - the driver's name
        return self._answer("cuInit")

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 13000
        return self._answer("cuDriverGetVersion")

    def cuDeviceGet(self, device, ordinal):  # noqa: N802
        device._obj.value = ordinal
        return self._answer("cuDeviceGet")

    def cuDeviceGetName(self, name, size, device):  # noqa: N802
        name.value = GPU.name.encode()
        return self._answer("cuDeviceGetName")

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = {75: 8, 76: 6}[attribute]
        return self._answer("cuDeviceGetAttribute")


def scripted_tensorrt(
    version: str = "10.13.0", *, name: str = "tensorrt", parses: bool = True, builds: bool = True
) -> TensorRtModule:
    """A TensorRT whose plan is the ONNX model behind a prefix; `module.builds` counts builds."""
    module = SimpleNamespace(__version__=version, builds=0, timings=[], flags=None)
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
    module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    module.BuilderFlag = SimpleNamespace(REQUIRE_USER_ALLOCATION="user allocation")
    module.flagged = []

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class IProgressMonitor:
        pass

    class Builder:
        def __init__(self, log):
            self._log = log

        def create_network(self, flags):
            module.flags = flags
            views = SimpleNamespace(name="views", shape=(-1, 64, 64, 3))
            return SimpleNamespace(num_inputs=1, get_input=lambda _: views, data=b"")

        def create_optimization_profile(self):
            return SimpleNamespace(set_shape=lambda *shape: setattr(module, "profile", shape))

        def create_builder_config(self):
            def start(data):
                module.timings.append(data)
                return data

            return SimpleNamespace(
                add_optimization_profile=lambda _: 0,
                create_timing_cache=start,
                set_timing_cache=lambda *_: True,
                get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings"),
                progress_monitor=None,
                set_flag=module.flagged.append,
            )

        def build_serialized_network(self, definition, config):
            module.builds += 1
            monitor = config.progress_monitor
            if monitor is not None:
                monitor.phase_start("Building", None, 2)
                assert monitor.step_complete("Building", 0)
                monitor.phase_finish("Building")
            if not builds:
                self._log.log(ILogger.Severity.ERROR, "no room for a tactic")
                return None
            return b"plan:" + definition.data

    class OnnxParser:
        num_errors = 1

        def __init__(self, definition, log):
            self._definition = definition

        def parse(self, network):
            self._definition.data = network
            return parses

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: "no importer for RoiAlign")

    class Runtime:
        def __init__(self, log):
            pass

        def deserialize_cuda_engine(self, data):
            module.deserialised = data
            engine = Engine if name == "tensorrt" else RtxEngine
            return engine(data) if data.startswith(b"plan:") else None

    module.ILogger, module.IProgressMonitor, module.Builder = ILogger, IProgressMonitor, Builder
    module.OnnxParser, module.Runtime = OnnxParser, Runtime
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    module.TensorIOMode = SimpleNamespace(INPUT="input")
    module.nptype = lambda dtype: dtype
    return TensorRtModule(name=name, version=version, module=module)


class Engine:
    """A deserialised plan: the ONNX model in it."""

    def __init__(self, data):
        network = data.removeprefix(b"plan:")
        graph = onnx.load_model_from_string(network).graph
        self._tensors = [*graph.input, *graph.output]
        self._session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    def get_tensor_name(self, index):
        return self._tensors[index].name

    def get_tensor_shape(self, name):
        tensor = next(each for each in self._tensors if each.name == name)
        return tuple(d.dim_value or -1 for d in tensor.type.tensor_type.shape.dim)

    def get_tensor_dtype(self, name):
        return np.uint8 if name == "views" else np.float32

    device_memory_size_v2 = 4096

    def create_execution_context(self, strategy):
        assert strategy == "ours"
        assert Pycuda.latest.current
        return ExecutionContext(self._session)


class RtxEngine(Engine):
    """One that compiles its kernels when it runs."""

    def create_runtime_config(self):
        return RuntimeConfig()

    def create_execution_context(self, runtime_config):
        assert runtime_config.dynamic_shapes_kernel_specialization_strategy == "eager"
        return super().create_execution_context(runtime_config._allocation)


class RuntimeConfig:
    """How an `RtxEngine` is to run."""

    dynamic_shapes_kernel_specialization_strategy = "lazy"
    _allocation = "static"

    def set_execution_context_allocation_strategy(self, strategy):
        self._allocation = strategy


class ExecutionContext:
    """Runs the network from and to the addresses it was given."""

    def __init__(self, session):
        self._session = session
        self._addresses = {}
        self._shape = None
        self._scratch = None

    def set_device_memory(self, memory, size):
        assert size == Engine.device_memory_size_v2
        self._scratch = memory

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        assert Pycuda.latest.captured is None, "another shape has work done that no graph holds"
        self._shape = tuple(shape)
        return True

    def execute_async_v3(self, stream):
        assert stream == Stream.handle
        assert self._scratch
        Pycuda.latest.enqueue(self._execute)
        return True

    def _execute(self):
        views = memory(self._addresses["views"], self._shape, ctypes.c_uint8)
        for name, result in zip(
            ("score_map", "attention"),
            self._session.run(["score_map", "attention"], {"views": views.copy()}),
            strict=True,
        ):
            memory(self._addresses[name], result.shape, ctypes.c_float)[:] = result


class ScriptedOnnxRuntime:
    """ONNX Runtime as built with CUDA: networks work on addresses, on the stream that is given.

    `failing` is what the next run answers; `lacks` makes a session fall back to the CPU, as the
    real one does where a library of CUDA is missing.
    """

    __version__ = "1.31.1"
    cuda_version = "13.0"

    def __init__(self):
        self.failing = ""
        self.lacks = False
        self.sessions = []

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self):
        print("libcufft.so.12 cannot be loaded")  # noqa: T201 - as the real one does

    def SessionOptions(self):  # noqa: N802
        return SimpleNamespace()

    def RunOptions(self):  # noqa: N802
        entries = {}
        return SimpleNamespace(add_run_config_entry=entries.__setitem__, entries=entries)

    def InferenceSession(self, network, options, providers):  # noqa: N802
        ((name, settings),) = providers
        assert name == "CUDAExecutionProvider"
        assert settings["user_compute_stream"] == str(Stream.handle)
        assert settings["use_tf32"] == "0"
        session = _CudaSession(self, onnxruntime.InferenceSession(network))
        self.sessions.append(session)
        return session


class _CudaSession:
    def __init__(self, owner, session):
        self._owner = owner
        self._session = session
        self.runs = 0

    def get_providers(self):
        ours = [] if self._owner.lacks else ["CUDAExecutionProvider"]
        return [*ours, "CPUExecutionProvider"]

    def io_binding(self):
        bound = {}

        def bind(name, device, ordinal, kind, shape, address):
            assert (device, ordinal) == ("cuda", 0)
            bound[name] = (kind, shape, address)

        return SimpleNamespace(bind_input=bind, bind_output=bind, bound=bound)

    def run_with_iobinding(self, binding, options):
        assert options.entries == {"disable_synchronize_execution_providers": "1"}
        assert Pycuda.latest.current
        if self._owner.failing:
            raise RuntimeError(self._owner.failing)
        self.runs += 1
        if Pycuda.latest.captured is not None:
            assert self.runs > 2, "memory is planned in the second run"
        Pycuda.latest.enqueue(partial(self._execute, dict(binding.bound)))

    def _execute(self, bound):
        _, shape, address = bound["views"]
        views = memory(address, shape, ctypes.c_uint8)
        names = [name for name in bound if name != "views"]
        for name, result in zip(
            names, self._session.run(names, {"views": views.copy()}), strict=True
        ):
            kind, shape, address = bound[name]
            assert (kind, tuple(shape)) == (np.float32, result.shape)
            memory(address, shape, ctypes.c_float)[:] = result


class Stream:
    handle = 77

    def __init__(self, owner):
        self._owner = owner

    def synchronize(self):
        assert self._owner.captured is None, "waiting ends a capture"
        self._owner.waits += 1
        if "hang" in self._owner.failing.split():
            time.sleep(3600)


class Pycuda:
    """pycuda.driver: memory that counts itself, and a context that knows whether it is current.

    `failing` names calls that raise, or `hang`, and `room` says how many pieces of memory there
    can be; both may be set between calls. While a graph is captured nothing is done but recorded.
    `kernels` are those of `cuda_kernels`, as C++.
    """

    latest: "Pycuda"

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def __init__(self):
        self.failing = ""
        self.room = 10_000
        self.alive = 0
        self.current = 0
        self.retained = 0
        self.captured = None
        self.waits = 0
        self.kernels = None
        self.launched = []
        self.Context = SimpleNamespace(pop=self._pop)
        Pycuda.latest = self

    def enqueue(self, step):
        assert self.current
        if self.captured is None:
            step()
        else:
            self.captured.append(step)

    def init(self):
        self._maybe_fail("init")

    def Device(self, ordinal):  # noqa: N802 - pycuda's name
        return SimpleNamespace(retain_primary_context=self._retain)

    def Stream(self):  # noqa: N802
        return Stream(self)

    def module_from_buffer(self, code):
        self._maybe_fail("module_from_buffer")
        return SimpleNamespace(get_function=lambda name: partial(self._launch, name))

    def _launch(self, name, *arguments, block, grid, stream):
        self._maybe_fail(name)
        assert stream.handle == Stream.handle
        assert 0 < block[0] <= 1024
        assert 0 < grid[0] <= 65535
        self.launched.append(name)
        self.enqueue(lambda: self.kernels.launch(name, *arguments))

    def memset_d32_async(self, device, value, count, stream):
        self.enqueue(lambda: ctypes.memset(int(device), value, 4 * count))

    def memcpy_dtoh(self, host, device):
        assert self.captured is None
        ctypes.memmove(host.ctypes.data, int(device), host.nbytes)

    def memcpy_htod(self, device, host):
        assert self.captured is None
        ctypes.memmove(int(device), host.ctypes.data, host.nbytes)

    def mem_alloc(self, size):
        self._allocate("mem_alloc")
        assert self.current
        assert self.captured is None, "no allocation in a graph"
        return _Allocation(self, size)

    def pagelocked_empty(self, shape, dtype):
        self._allocate("pagelocked_empty")
        assert self.current
        return np.asarray(_Pinned(self, shape, dtype))

    def memcpy_htod_async(self, device, host, stream):
        self._maybe_fail("memcpy_htod_async")
        self.enqueue(lambda: ctypes.memmove(int(device), host.ctypes.data, host.nbytes))

    def memcpy_dtoh_async(self, host, device, stream):
        self._maybe_fail("memcpy_dtoh_async")
        self.enqueue(lambda: ctypes.memmove(host.ctypes.data, int(device), host.nbytes))

    def _retain(self):
        self.retained += 1
        return SimpleNamespace(push=self._push, detach=self._detach)

    def _push(self):
        self.current += 1

    def _pop(self):
        self.current -= 1

    def _detach(self):
        self.retained -= 1
        # pycuda makes it current to release it, and CUDA leaves it so.
        self.current += 1

    def _allocate(self, call):
        if call in self.failing.split() or self.alive >= self.room:
            raise self.MemoryError(f"{call} failed: out of memory")
        self.alive += 1

    def _maybe_fail(self, call):
        if call in self.failing.split():
            raise self.Error(f"{call} failed: device lost")


class _Allocation:
    def __init__(self, owner, size):
        self._owner = owner
        # What a kernel writes beside its memory must be seen.
        self._memory = np.full(size + 2 * _GUARD, 0xA5, np.uint8)

    def __int__(self):
        return self._memory.ctypes.data + _GUARD

    def free(self):
        for guard in (self._memory[:_GUARD], self._memory[-_GUARD:]):
            assert (guard == 0xA5).all(), "written outside"
        self._owner._maybe_fail("free")
        assert self._owner.current
        self._owner.alive -= 1


class _Pinned(_Allocation):
    """Host memory; numpy keeps it as the array's base, as it does with pycuda's."""

    def __init__(self, owner, shape, dtype):
        super().__init__(owner, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.__array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (int(self), False),
            "version": 3,
        }


def memory(address, shape, kind):
    pointer = ctypes.cast(address, ctypes.POINTER(kind))
    return np.ctypeslib.as_array(pointer, shape=tuple(shape))
