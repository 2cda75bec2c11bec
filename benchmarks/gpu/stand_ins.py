"""A GPU made of the tests' stand-ins: the kernels as C++, the network by ONNX Runtime."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from engine.backends import cuda_driver, device_inspector, tensorrt_backend
from engine.errors import BackendError
from tests.engine.backends.cuda_kernels import SOURCES, Kernels
from tests.engine.scripted_gpu import Driver, Pycuda, scripted_tensorrt


@contextmanager
def stand_ins() -> Iterator[None]:
    """Driver, pycuda, NVRTC and TensorRT replaced at their seams."""
    if shutil.which("g++") is None and shutil.which("c++") is None:
        raise BackendError("the stand-ins need a C++ compiler: apt-get install g++")
    cuda = Pycuda()
    driver = Driver(cuda=cuda)
    with ExitStack() as stack:
        cuda.kernels = Kernels(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        tensorrt = scripted_tensorrt().module
        tensorrt.__spec__ = ModuleSpec("tensorrt", None)  # torch asks whether it is there
        modules = {"pycuda.driver": cuda, "tensorrt": tensorrt}
        for name, module in modules.items():
            # One by one: what else is imported meanwhile must stay, since torch loads only once.
            stack.callback(_put_back, name, sys.modules.get(name))
            sys.modules[name] = module
        for module in (cuda_driver, tensorrt_backend):
            stack.enter_context(patch.object(module, "load_driver", lambda: driver))
        stack.enter_context(
            patch.object(
                device_inspector,
                "compile_kernels",
                lambda _: {path.stem: b"" for path in SOURCES.glob("*.cu")},
            )
        )
        yield


def _put_back(name: str, module: ModuleType | None) -> None:
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module
