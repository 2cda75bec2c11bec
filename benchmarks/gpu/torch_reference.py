"""torch on one NVIDIA GPU: compared with plans, and in their place where there is no TensorRT.

The backbone is fp16 as in the fp16 export, laid out channels-last, replayed as a CUDA graph. The
running agent never loads it.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from torch import Tensor

from engine.backends.base import Outputs, joined, require_views
from engine.bundle import Bundle
from engine.errors import BackendError
from engine.frame import Pixels
from engine.gpu.device import MAX_BATCH
from engine.gpu.graph import Graph
from train.export.gate import load_network
from train.network import Maps, Network

ReferencePrecision = Literal["fp32", "fp16"]

_CUDA: Final[Any] = torch.cuda  # its streams have no types
_WARM_UPS: Final = 3  # cuDNN tries its algorithms in the first ones


class CudaReference:
    """A `Backend` over a bundle's weights in torch; `device` is `cuda`, or `cpu` for its logic.

    On a GPU each number of views, up to `MAX_BATCH`, gets one graph when it is first seen; more
    views run in turns. Raises `BackendError` where torch has no GPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: ReferencePrecision = "fp16",
        device: Literal["cuda", "cpu"] = "cuda",
    ) -> None:
        self._network = reference_network(bundle, precision=precision, device=device)
        self._name = f"torch {_device_name(device)} {precision}"
        self._device = device
        self._side = bundle.manifest.method.network.side
        self._graphs: dict[int, _Replay] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def workers(self) -> int:
        return 1

    def run(self, views: Pixels) -> Outputs:
        require_views(views, self._side, self._name)
        try:
            with torch.inference_mode():
                turns = [
                    self._turn(views[start : start + MAX_BATCH])
                    for start in range(0, len(views), MAX_BATCH)
                ]
        except RuntimeError as error:  # torch's own, also for CUDA and for memory
            said = str(error).strip().splitlines()[0]
            raise BackendError(f"{self._name} failed on {views.shape}: {said}") from error
        return joined(turns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._graphs.clear()
        del self._network

    def _turn(self, views: Pixels) -> Outputs:
        # Copied: views may be read-only, which torch cannot express.
        up = torch.tensor(views)
        if self._device == "cpu":
            maps: Maps = self._network(up)
        else:
            if len(views) not in self._graphs:
                self._graphs[len(views)] = _Replay(self._network, up.to(self._device))
            maps = self._graphs[len(views)].run(up)
        return {name: np.asarray(each.cpu().numpy()) for name, each in maps._asdict().items()}


class _Replay:
    """The network for one number of views, captured: it reads and writes the same memory always."""

    def __init__(self, network: Network, views: Tensor) -> None:
        self._views = views
        stream = _CUDA.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                network(views)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._maps: Maps = network(views)

    def run(self, views: Tensor) -> Maps:
        self._views.copy_(views)
        self._graph.replay()
        return self._maps


class TorchDeviceNetwork:
    """The reference as an `engine.gpu.device.DeviceNetwork`.

    torch runs on pycuda's streams and memory: both share the device's primary context. Graphs are
    captured by torch, whose allocator must know of them.
    """

    def __init__(self, bundle: Bundle, *, precision: ReferencePrecision = "fp16") -> None:
        self._network = reference_network(bundle, precision=precision, device="cuda")
        self._spec = bundle.manifest.method.network
        self.name = f"torch {_device_name('cuda')} {precision}"

    def bound(self, **tensors: int) -> Callable[[int, Any], None]:
        """See `DeviceNetwork.bound`."""
        spec = self._spec

        def enqueue(count: int, stream: Any) -> None:
            with torch.cuda.stream(_borrowed(stream)), torch.inference_mode():
                views = _at(tensors["views"], (count, spec.side, spec.side, 3), "|u1")
                for name, found in self._network(views)._asdict().items():
                    shape = (count, *spec.outputs[name])
                    _at(tensors[name], shape, "<f4").copy_(found)

        return enqueue

    def capture(self, stream: Any, record: Callable[[], None]) -> Graph:
        """See `DeviceNetwork.capture`."""
        borrowed = _borrowed(stream)
        with torch.cuda.stream(borrowed):
            for _ in range(_WARM_UPS):
                record()
            borrowed.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=borrowed, capture_error_mode="thread_local"):
            record()
        return _TorchGraph(graph, borrowed)


class _TorchGraph:
    """torch's graph as an `engine.gpu.graph.Graph`."""

    kernels: Final = None

    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        self._graph = graph
        self._stream = stream

    def launch(self) -> None:
        with torch.cuda.stream(self._stream):
            self._graph.replay()

    def close(self) -> None:
        with suppress(RuntimeError):  # a lost device has given everything back already
            self._graph.reset()


class _Memory:
    """Memory on the GPU that is not torch's, as torch can take it."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": kind,
            "version": 3,
        }


def reference_network(
    bundle: Bundle, *, precision: ReferencePrecision, device: Literal["cuda", "cpu"]
) -> Network:
    """The bundle's network on `device`, BatchNorm folded, channels-last; fp16 is its backbone's.

    fp32 is all of fp32: TensorFloat-32, which rounds to 10 bits, is switched off for the process.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise BackendError(
                f"torch {torch.__version__} finds no NVIDIA GPU here; install torch with CUDA and "
                "a driver, or run on the CPU with bundle.backend: onnxruntime"
            )
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    network = load_network(bundle).requires_grad_(requires_grad=False)
    network.prepare_export(half=precision == "fp16")
    network.to(device)
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def _borrowed(stream: Any) -> torch.cuda.Stream:
    """A stream of pycuda as torch's."""
    borrowed: torch.cuda.Stream = _CUDA.ExternalStream(stream.handle)
    return borrowed


def _at(address: int, shape: tuple[int, ...], kind: str) -> Tensor:
    return torch.as_tensor(_Memory(address, shape, kind), device="cuda")
