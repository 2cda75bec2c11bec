"""A bundle's network in ONNX Runtime, on one NVIDIA GPU.

The network reads and writes addresses on the GPU and works on the stream that is given, so that a
whole inspection can be one CUDA graph around it (`engine/gpu`).
"""

import io
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from engine.backends.base import MAX_PIXELS, Backend, Built
from engine.bundle import Bundle, Precision, Sha256, sha256
from engine.errors import BackendError
from engine.extras import install
from engine.gpu import driver
from engine.gpu.backend import DeviceBackend, open_on_device
from engine.gpu.device import DeviceOpening, NoRoomError
from engine.gpu.graph import Again, DriverGraph, Graph
from engine.gpu.verdicts import Verdicts, cache_folder, comparing
from engine.inspector import OpenInspector
from engine.methods import NetworkSpec
from engine.privacy import keep_private
from engine.spec import spec

_LOG: Final = logging.getLogger(__name__)
_PROVIDER: Final = "CUDAExecutionProvider"
_FATAL: Final = 4
_WARM_UPS: Final = 2
"""Runs before a capture, beside the first: memory is planned in the second."""
_NO_ROOM: Final = ("Failed to allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@spec
class CudaKey:
    """All that verdicts on a GPU depend on; a comparison of another key does not count."""

    network_sha256: Sha256
    precision: Precision
    runtime: str
    gpu: str
    capability: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The GPU and the runtime of this machine, for one network."""

    name: str
    key: CudaKey
    opening: DeviceOpening
    verdicts: Verdicts


def compared_here(bundle: Bundle, precision: Precision, *, cache: Path | None) -> Built:
    """As `BackendSpec.build`: nothing is built, and what is opened here is compared."""
    found = found_here(bundle, precision, cache=cache)
    return Built(
        precision=precision,
        told="nothing is built for it",
        target=f"{found.key.gpu} (compute capability {found.key.capability}) with "
        f"{found.key.runtime}",
        facts={"key": asdict(found.key)},
        verdicts=found.verdicts,
        open=partial(open_cuda_inspector, bundle, precision=precision, cache=cache, gate=False),
        remedy="see docs/gpu.md, or run on the CPU with bundle.backend: onnxruntime",
    )


def open_cuda_backend(bundle: Bundle, *, precision: Precision = "fp32") -> Backend:
    """The network alone on the GPU."""
    found = found_here(bundle, precision)
    found.verdicts.gate(found.name, comparing(bundle, precision, "cuda"))
    return DeviceBackend(found.opening, bundle.manifest.method.network, found.name)


def open_cuda_inspector(
    bundle: Bundle,
    *,
    precision: Precision = "fp32",
    cache: Path | None = None,
    gate: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> OpenInspector:
    """All that the bundle's method can do on the GPU; at least its network runs there.

    Args:
        bundle: The bundle that holds the network.
        precision: Which network of the bundle.
        cache: The folder of comparisons, by default in the user's cache folder.
        gate: Refuse what was found to change verdicts, and warn of what was never compared; False
            for the comparison itself.
        max_pixels: The largest frame that the GPU keeps memory for.

    Raises:
        BackendError: Driver, runtime or GPU is missing or cannot be used, or verdicts change.
    """
    found = found_here(bundle, precision, cache=cache)
    if gate:
        found.verdicts.gate(found.name, comparing(bundle, precision, "cuda"))
    return open_on_device(bundle.manifest.method, found.opening, found.name, max_pixels=max_pixels)


def found_here(bundle: Bundle, precision: Precision, *, cache: Path | None = None) -> Found:
    """What runs this network of `bundle` here; the driver is asked first.

    Raises `BackendError` where there is no driver, no GPU, or no ONNX Runtime for it.
    """
    gpu = driver.probe_gpu()
    runtime = load_runtime(gpu.driver)
    network, tensors = bundle.network(precision), bundle.manifest.method.network
    key = CudaKey(
        network_sha256=sha256(network),
        precision=precision,
        runtime=f"onnxruntime {runtime.__version__}",
        gpu=gpu.name,
        capability=gpu.capability,
    )
    subject = sha256(TypeAdapter(CudaKey).dump_json(key))
    name = f"cuda {gpu.name} {precision}"
    return Found(
        name=name,
        key=key,
        opening=lambda _memory, stream: CudaNetwork(
            runtime, network, precision, tensors, name, stream
        ),
        verdicts=Verdicts(
            path=(cache or cache_folder()) / f"{subject[:32]}.parity", subject=subject
        ),
    )


def load_runtime(cuda: str) -> Any:
    """ONNX Runtime with its CUDA provider; `cuda` is the version that the driver is for.

    Call `probe_gpu` before. Raises `BackendError` where it was built without CUDA, or for a later
    major version than the driver's.
    """
    keep_private()
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}); {_remedy()}") from error
    if _PROVIDER not in onnxruntime.get_available_providers():
        raise BackendError(
            f"the ONNX Runtime {onnxruntime.__version__} that is installed was built without CUDA; "
            f"{_remedy()}"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        # NVIDIA's packages lie where the loader does not look. What is missing it prints, and is
        # said in one sentence when the network is opened.
        with redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    # cuDNN says of each fused layer that it has no plan for it, as an error; what really fails is
    # raised.
    onnxruntime.set_default_logger_severity(_FATAL)
    built = str(getattr(onnxruntime, "cuda_version", ""))
    if built and int(built.partition(".")[0]) > int(cuda.partition(".")[0]):
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} was built for CUDA {built}, and the NVIDIA "
            f"driver here for CUDA {cuda}; install a newer driver, or an older onnxruntime-gpu"
        )
    return onnxruntime


class CudaNetwork:
    """A bundle's network in ONNX Runtime, from and to addresses on the GPU: a `DeviceNetwork`.

    Args:
        runtime: `load_runtime`'s answer.
        network: The ONNX model.
        precision: Of its layers.
        tensors: What it must have.
        name: What records and errors call it.
        stream: All its work is enqueued here, and nothing waits for it.
    """

    def __init__(
        self,
        runtime: Any,
        network: bytes,
        precision: Precision,
        tensors: NetworkSpec,
        name: str,
        stream: Any,
    ) -> None:
        self.name = name
        self._tensors = tensors
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        provider = {
            "device_id": "0",
            "user_compute_stream": str(stream.handle),
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            # 10 bits of a product are not fp32, and verdicts are compared with fp32's.
            "use_tf32": "0",
            # Channels last is what tensor cores want; in fp32 layers are fused without it.
            "prefer_nhwc": "1" if precision == "fp16" else "0",
        }
        try:
            self._session = runtime.InferenceSession(
                network, options, providers=[(_PROVIDER, provider)]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise self._failure("cannot load the network", error) from error
        # Where CUDA cannot be used ONNX Runtime takes the CPU, and says so in its log alone.
        if _PROVIDER not in self._session.get_providers():
            raise BackendError(
                f"{name} cannot start: ONNX Runtime {runtime.__version__} cannot load its CUDA "
                f"libraries (cuDNN, cuBLAS and others); {_remedy()}"
            )
        self._options = runtime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bound(self, **tensors: int) -> Callable[[int, Any], None]:
        """A function that runs N views at these addresses; see `DeviceNetwork.bound`."""
        bindings: dict[int, Any] = {}

        def enqueue(count: int, _stream: Any) -> None:
            if count not in bindings:
                bindings[count] = self._binding(count, tensors)
            try:
                self._session.run_with_iobinding(bindings[count], self._options)
            except Exception as error:
                raise self._failure(f"failed on {count} views", error) from error

        return enqueue

    def capture(self, stream: Any, record: Callable[[], None]) -> Graph:
        """What `record` enqueues, as a graph; where there can be none, as it is."""
        for _ in range(_WARM_UPS):
            record()
        stream.synchronize()
        try:
            return DriverGraph(driver.load_driver(), stream.handle, record)
        except BackendError as error:
            _LOG.warning(
                "%s is not captured in a CUDA graph (%s): it runs, a little slower",
                self.name,
                error,
            )
            return Again(record)

    def _binding(self, count: int, tensors: dict[str, int]) -> Any:
        binding = self._session.io_binding()
        for name, (shape, kind) in self._tensors.tensors.items():
            bind = binding.bind_input if name == "views" else binding.bind_output
            bind(name, "cuda", 0, kind.type, (count, *shape), tensors[name])
        return binding

    def _failure(self, what: str, error: Exception) -> BackendError:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind = NoRoomError if any(each in str(error) for each in _NO_ROOM) else BackendError
        return kind(f"{self.name} {what}: {said}; see nvidia-smi")


def _remedy() -> str:
    return (
        f"install with: {install('cuda')}, then put onnxruntime-gpu in the place of onnxruntime "
        "(docs/gpu.md), or run on the CPU with bundle.backend: onnxruntime"
    )
