"""The child of one camera: `python -m agent.camera_child.main KIND [SOCKET, MEMORY]`."""

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

from agent.camera_child.wire import receive, send

_PR_SET_PDEATHSIG: Final = 1


def main(kind: str, file: int, memory: int) -> None:
    """Serve the agent until it closes the connection; its first message is the settings."""
    connection = Connection(file)
    with suppress(EOFError, ConnectionError):
        settings = receive(connection)
        limit = settings.pop("max_memory")
        # What this process writes to; libraries and the shared picture are not counted.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        module = importlib.import_module(f"agent.camera_child.{kind}")
        send(connection, {"doing": "look"})
        module.serve(connection, memory, **settings)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Also a child that hangs shall not outlive its parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    main(sys.argv[1], *json.loads(sys.argv[2]))
    # A decoder's thread may be inside foreign code, which Python could not end in peace.
    os._exit(0)
