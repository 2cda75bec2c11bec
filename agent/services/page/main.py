"""The page's process: `python -m agent.services.page.main FILES`; see `agent/child.py`."""

import ctypes
import importlib
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_NICE: Final = 5
"""While it starts; once it serves it is twice as nice: it is missed meanwhile."""

if __name__ == "__main__":
    os.nice(_NICE)  # before all that takes time
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Also a child that hangs shall not outlive its parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    importlib.import_module("agent.services.page.serving").serve(sys.argv[1])
