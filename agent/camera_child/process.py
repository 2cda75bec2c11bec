"""Both ends of a camera's child process: messages over a socket, pixels in shared memory."""

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np

from agent.child_environment import child_environment
from engine.frame import Pixels

Message = dict[str, Any]
_DYING_S: Final = 1.0
_PIECE: Final = 8 << 20
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # FFmpeg reads files and nothing else, whatever a file names.
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file",
    "OPENCV_LOG_LEVEL": "OFF",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}


class CameraChild:
    """The agent's end; made, the child is starting. `ConnectionError` means that it has ended."""

    def __init__(self, kind: str, settings: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        self._memory = SharedPixels(os.memfd_create("atac-camera"))
        with theirs:
            ends = [theirs.fileno(), self._memory.file]
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", "-m", "agent.camera_child.main", kind, json.dumps(ends)],
                pass_fds=ends,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment() | _ENVIRONMENT,
                process_group=0,  # a terminal's Ctrl-C is the agent's
            )
        self._connection = Connection(ours.detach())
        self.has_spoken = False
        self.tell(settings)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a request or an answer."""
        with suppress(ConnectionError):  # it has just died, as who listens will find
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

    def close(self) -> bool:
        """End it; `False` where the kernel holds on to it, as with a share that hangs."""
        self._process.kill()
        with suppress(OSError):
            self._connection.close()
        self._memory.close()
        return self.has_ended(_DYING_S)

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


class GoneError(OSError):
    """A source cannot be used now; `str` says why, as "is not a folder" does."""


def why(error: OSError) -> str:
    """Why a source cannot be used now, in words that follow its name."""
    if isinstance(error, GoneError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "is not there"
    return f"cannot be read ({error.strerror or error})"


def send(connection: Connection, message: Mapping[str, Any]) -> None:
    """Send one message."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Message:
    """Wait for the next message; `EOFError` when there will be none."""
    message: Message = json.loads(connection.recv_bytes())
    return message
