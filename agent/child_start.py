"""How a process beside the agent begins; imports nothing but Python's own."""

import ctypes
import importlib
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
COMMAND: Final = (
    "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "from agent.cli import main; main()"
)
"""What Python runs as `agent`, by whoever waits for its end: it does not outlive that thread."""


def begin(module: str, *, nice: int) -> None:
    """Call `serve` of `module` with this process's argument; see `agent/child.py`."""
    os.nice(nice)  # before all that takes time
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Also a child that hangs shall not outlive its parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    importlib.import_module(module).serve(sys.argv[1])
