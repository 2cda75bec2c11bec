"""What a child of `agent.inference` runs first where a test pretends that there is a GPU."""

from pathlib import Path

from tests.engine.gpu.gpu_machine import gpu_machine
from tests.engine.gpu.kernels import Kernels
from tests.engine.gpu.scripted_gpu import Pycuda

SITE = """
import sys
if "agent.inference.worker" in sys.orig_argv:
    from pathlib import Path
    from tests.agent.inference.gpu_child import pretend
    lasting = pretend(Path({kernels!r}), Path({told!r}))
"""
"""A `sitecustomize.py`; `told` is a file that names what fails from now on."""


class _Told(Pycuda):
    def __init__(self, file):
        self._file = file
        super().__init__()

    @property
    def failing(self):
        return self._file.read_text()

    @failing.setter
    def failing(self, _):
        """What the file says is what counts."""


def pretend(kernels: Path, told: Path):
    """Put the stand-ins in place, for as long as what this returns is kept."""
    machine = gpu_machine(Kernels(kernels), _Told(told))
    machine.__enter__()
    return machine
