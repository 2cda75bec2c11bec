"""A GPU made of the tests' stand-ins: the kernels as C++, the network by ONNX Runtime."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import BackendError
from tests.engine.gpu.gpu_machine import gpu_machine
from tests.engine.gpu.kernels import Kernels


@contextmanager
def stand_ins() -> Iterator[None]:
    """Driver, pycuda, NVRTC and TensorRT replaced at their seams."""
    if shutil.which("g++") is None and shutil.which("c++") is None:
        raise BackendError("the stand-ins need a C++ compiler: apt-get install g++")
    with tempfile.TemporaryDirectory() as folder, gpu_machine(Kernels(Path(folder))):
        yield
