"""Both ends of a camera's child process: messages over a socket, pixels in shared memory.

The child's side of a device is in `wire.py` and `stream.py`, which need no package.
"""

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from agent.camera_child.wire import Message, receive, send
from agent.child_environment import child_environment
from engine.frame import Pixels

_DYING_S: Final = 1.0
_ASLEEP: Final = {b"S", b"T", b"t"}
_PIECE: Final = 8 << 20
_MAIN: Final = "agent.camera_child.main"
_SOURCE: Final = str(Path(__file__).parents[2])
_ELSEWHERE: Final = f"""
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module({_MAIN!r}, run_name="__main__")
"""
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # FFmpeg reads files and nothing else, whatever a file names.
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file",
    "OPENCV_LOG_LEVEL": "OFF",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}


class CameraChild:
    """The agent's end; made, the child is starting. `ConnectionError` means that it has ended.

    Any thread may `tell`; one thread does all else.

    Args:
        kind: The module of `agent/camera_child` that it runs.
        settings: What it is told first.
        python: Another interpreter than the agent's; it finds its own packages before ours.
        environment: Variables of this kind of child.
    """

    def __init__(
        self,
        kind: str,
        settings: Mapping[str, Any],
        *,
        python: str | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        ours, theirs = socket.socketpair()
        self._memory = SharedPixels(os.memfd_create("atac-camera"))
        program = [sys.executable, "-P"] if python is None else [python, "-I", "-c", _ELSEWHERE]
        run = ["-m", _MAIN] if python is None else [_SOURCE]
        with theirs:
            ends = [theirs.fileno(), self._memory.file]
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [*program, *run, kind, json.dumps(ends)],
                pass_fds=ends,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**child_environment(), **_ENVIRONMENT, **environment},
                process_group=0,  # a terminal's Ctrl-C is the agent's
            )
        self._connection = Connection(ours.detach())
        self._telling = threading.Lock()
        self.has_spoken = False
        self.tell(settings)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a request or an answer."""
        with self._telling, suppress(OSError):  # it has just died, as who listens will find
            send(self._connection, message)

    def hear(self, within_s: float) -> Message | None:
        """What it says next; `None` when it says nothing for so long."""
        if not self._connection.poll(within_s):
            return None
        try:
            told = receive(self._connection)
        except (EOFError, OSError):
            raise ConnectionError(self._end()) from None
        self.has_spoken = True
        return told

    def pixels(self, shape: tuple[int, ...]) -> Pixels:
        """A copy of the picture of this shape that it has just told of."""
        return self._memory.copy(shape)

    def slot(self, start: int, size: int) -> Pixels:
        """A view of `size` bytes of the shared memory, for as long as the child leaves them."""
        return self._memory.part(start, size)

    def close(self, grace_s: float = 0.0) -> bool:
        """End it; `False` where the kernel holds on to it, as with a share that hangs.

        For `grace_s` it may end by itself, as one that has a device to give back.
        """
        with self._telling, suppress(OSError):
            self._connection.close()
        if grace_s:
            self.has_ended(grace_s)
        self._process.kill()
        self._memory.close()
        return self.has_ended(_DYING_S)

    def is_asleep(self) -> bool:
        """Whether its main thread waits for something else than a processor or a disk."""
        with suppress(OSError):
            after_name = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2]
            return after_name.split()[0] in _ASLEEP
        return False

    def has_ended(self, within_s: float = 0.0) -> bool:
        """Whether the process has gone."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._process.returncode is not None

    def _end(self) -> str:
        if not self.has_ended(_DYING_S):
            return "closed its connection"
        code = self._process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


class SharedPixels:
    """An anonymous file that both ends map; `pixels` is a view of it."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._map: mmap.mmap | None = None

    def pixels(self, shape: tuple[int, ...]) -> Pixels:
        """Memory for a picture of this shape; only one view of it may be in use."""
        size = int(np.prod(shape))
        if self._map is None or not size <= len(self._map) <= 4 * size + mmap.PAGESIZE:
            self._forget()
            if os.fstat(self.file).st_size < size:
                os.ftruncate(self.file, size)
            self._map = mmap.mmap(self.file, size)
        return np.frombuffer(self._map, np.uint8, size).reshape(shape)

    def part(self, start: int, size: int) -> Pixels:
        """A view of a part of it, which must be there: `ValueError` where the file ends before."""
        if self._map is None or len(self._map) < start + size:
            self._forget()
            self._map = mmap.mmap(self.file, os.fstat(self.file).st_size)
        return np.frombuffer(self._map, np.uint8, size, start)

    def copy(self, shape: tuple[int, ...]) -> Pixels:
        """A copy of the picture of this shape, which does not count twice in this process."""
        shared = self.pixels(shape).reshape(-1)
        copied = np.empty(shape, np.uint8)
        assert self._map is not None
        for start in range(0, shared.size, _PIECE):
            piece = slice(start, min(start + _PIECE, shared.size))
            copied.reshape(-1)[piece] = shared[piece]
            if shared.size > _PIECE:
                self._map.madvise(mmap.MADV_DONTNEED, start, piece.stop - start)
        return copied

    def put(self, pixels: Pixels) -> None:
        """Lay a picture there, and give back what a much larger one before it has taken."""
        if os.fstat(self.file).st_size > 4 * pixels.nbytes + mmap.PAGESIZE:
            self._forget()
            os.ftruncate(self.file, pixels.nbytes)
        np.copyto(self.pixels(pixels.shape), pixels)

    def close(self) -> None:
        """Forget the memory."""
        self._forget()
        os.close(self.file)

    def _forget(self) -> None:
        self._map = None  # unmapped with the last view of it
