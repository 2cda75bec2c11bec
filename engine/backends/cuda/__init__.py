"""ONNX Runtime on one NVIDIA GPU: any GPU that has CUDA, without TensorRT and without a plan."""

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Final, Literal

from engine.backends.base import Backend, BackendSpec, Built, Progress
from engine.bundle import Bundle, Precision
from engine.inspector import OpenInspector

_LIBRARY: Final = "libonnxruntime_providers_cuda.so"


class Cuda(BackendSpec):
    """It runs where CUDA does; slower than TensorRT, and nothing has to be built."""

    type: Literal["cuda"] = "cuda"
    title = "ONNX Runtime on CUDA"
    module = "onnxruntime"
    extra: ClassVar[str | None] = "cuda"
    precisions = ("fp32", "fp16")

    @classmethod
    def is_installed(cls) -> bool:
        """Whether the ONNX Runtime that is there was built with CUDA."""
        found = find_spec(cls.module)
        return bool(
            found and found.origin and (Path(found.origin).parent / "capi" / _LIBRARY).exists()
        )

    @classmethod
    def inspector(cls, bundle: Bundle, *, precision: Precision, max_pixels: int) -> OpenInspector:
        """All that the bundle's method can do on the GPU."""
        from engine.backends.cuda.backend import open_cuda_inspector

        return open_cuda_inspector(bundle, precision=precision, max_pixels=max_pixels)

    @classmethod
    def build(
        cls, bundle: Bundle, *, precision: Precision, cache: Path | None, progress: Progress
    ) -> Built:
        """Nothing is built; what is opened here is compared."""
        from engine.backends.cuda.backend import compared_here

        del progress
        return compared_here(bundle, precision, cache=cache)


def open(bundle: Bundle, *, precision: Precision = "fp32") -> Backend:
    """The network alone on the GPU."""
    from engine.backends.cuda.backend import open_cuda_backend

    return open_cuda_backend(bundle, precision=precision)
