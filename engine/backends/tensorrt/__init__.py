"""TensorRT, or TensorRT-RTX, on one NVIDIA GPU: plans, kernels, and the inspection all on it."""

from pathlib import Path
from typing import Literal

from engine.backends.base import Backend, BackendSpec, Built, Progress
from engine.bundle import Bundle, Precision
from engine.inspector import OpenInspector


class TensorRt(BackendSpec):
    """It runs the plans that `agent build` has made for this GPU."""

    type: Literal["tensorrt"] = "tensorrt"
    title = "TensorRT"
    module = "tensorrt"
    extra = "gpu"
    precisions = ("fp32", "fp16", "int8_symmetric")

    @classmethod
    def inspector(cls, bundle: Bundle, *, precision: Precision, max_pixels: int) -> OpenInspector:
        """All that the bundle's method can do on the GPU."""
        from engine.backends.tensorrt.backend import open_plan_inspector

        return open_plan_inspector(bundle, precision=precision, max_pixels=max_pixels)

    @classmethod
    def build(
        cls, bundle: Bundle, *, precision: Precision, cache: Path | None, progress: Progress
    ) -> Built:
        """A plan for this GPU, unless there is one that still fits."""
        from engine.backends.tensorrt.backend import build_plan_here

        return build_plan_here(bundle, precision, cache=cache, progress=progress)


def open(bundle: Bundle, *, precision: Precision = "fp32") -> Backend:
    """The network alone on the GPU."""
    from engine.backends.tensorrt.backend import open_plan_backend

    return open_plan_backend(bundle, precision=precision)
