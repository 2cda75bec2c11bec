"""A machine with a GPU, made of stand-ins: driver, pycuda, NVRTC and TensorRT, at their seams."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import patch

from engine.backends.cuda import backend as cuda_backend
from engine.backends.tensorrt.plans import TensorRtModule
from engine.gpu import driver, inspector
from tests.engine.gpu.kernels import SOURCES, Kernels
from tests.engine.gpu.scripted_gpu import (
    Driver,
    Pycuda,
    ScriptedOnnxRuntime,
    scripted_tensorrt,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMachine:
    """What a test may make fail; see `tests.engine.gpu.scripted_gpu`."""

    cuda: Pycuda
    driver: Driver
    tensorrt: TensorRtModule
    onnxruntime: ScriptedOnnxRuntime


@contextmanager
def gpu_machine(kernels: Kernels, cuda: Pycuda | None = None) -> Iterator[GpuMachine]:
    """Within this context `bundle.backend: tensorrt` finds a GPU, which computes for real.

    The kernels are their C++ twins, the network is ONNX Runtime's.
    """
    cuda = cuda or Pycuda()
    cuda.kernels = kernels
    machine = GpuMachine(
        cuda=cuda,
        driver=Driver(cuda=cuda),
        tensorrt=scripted_tensorrt(),
        onnxruntime=ScriptedOnnxRuntime(),
    )
    module: Any = machine.tensorrt.module
    module.__spec__ = ModuleSpec("tensorrt", None)  # torch asks whether it is there
    with ExitStack() as stack:
        # The real TensorRT-RTX may be installed to build; to run it would crash without a GPU.
        stand_ins = {"pycuda.driver": cuda, "tensorrt": module, "tensorrt_rtx": None}
        for name, stand_in in stand_ins.items():
            # One by one: what else is imported meanwhile must stay, since torch loads only once.
            stack.callback(_put_back, name, sys.modules.get(name))
            sys.modules[name] = stand_in
        stack.enter_context(patch.object(driver, "load_driver", lambda: machine.driver))
        stack.enter_context(
            patch.object(cuda_backend, "load_runtime", lambda _: machine.onnxruntime)
        )
        stack.enter_context(
            patch.object(
                inspector,
                "compile_kernels",
                lambda _gpu: {path.stem: b"" for path in SOURCES.glob("*.cu")},
            )
        )
        yield machine


def _put_back(name: str, module: ModuleType | None) -> None:
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module
