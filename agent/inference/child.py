"""The inspection in a child process, which can be killed when it hangs.

    agent ── frame in shared memory, its shape in a packet ──▶ child: the same two passes
          ◀── maps in shared memory, everything else in a packet ──

Each worker thread has its own connection and memory; all share the child and its network. Both
sides map the same anonymous memory, so nothing is left behind however one of them ends. The child
is `agent/inference/worker.py`. Why a process: `docs/adr/0012-inference-in-a-child.md`.
"""

import json
import logging
import math
import mmap
import os
import queue
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, Self

import numpy as np

from agent.inference.start import StartingChild
from agent.logs import LogFormat
from engine.backends.base import MAX_PIXELS, BackendName, FallbackName
from engine.bundle import Precision, Sha256
from engine.errors import BackendError, InspectionError, NoAnswerError
from engine.frame import Bayer, Box, FoundRegion, Inspection, Map, Pass, Pixels
from engine.image import demosaiced
from engine.spec import spec

REQUEST: Final = struct.Struct("<QIII")
"""Bytes of shared memory, then the frame's height, width and channels; 0 channels for mono."""
BAYER: Final[tuple[Bayer, ...]] = ("bayer_rggb", "bayer_grbg", "bayer_gbrg", "bayer_bggr")
FIRST_BAYER: Final = 16
"""As channels: raw pixels of the first of these patterns."""
PACKET: Final = 65_536
_ALIGNMENT: Final = 64
_LOG: Final = logging.getLogger("atac_agent.inference")
_TIMEOUT_S: Final = 2.0
"""Without an answer for this long the child is killed, unless its network is known to be slow."""
_SLOW_S: Final = 1.0
"""Without an answer for this long health reports a fault."""
_PASSES: Final = 10
"""A slow network may take this many times the duration of its warm-up."""
_MAX_EXTENSIONS: Final = 10
"""How often the timeout is extended by half while the child is runnable but gets no CPU."""
_START_S: Final = 120.0
"""How long a start may take: a TensorRT plan may have some hundred megabytes."""
_RESTART_S: Final = 10.0
"""How long a part without a deadline waits for a new child."""
_DYING_S: Final = 5.0
"""How long a killed process may take to end: it needs the CPU once more."""
_FIRST_RETRY_S: Final = 0.25
_LAST_RETRY_S: Final = 5.0


@spec
class Setup:
    """What the child opens: as `open_bundle` and `open_inspector` take it.

    The child opens by path what the agent has opened before: `bundle_id` says that it is the same.
    It writes its log as the agent does.
    """

    bundle: Path
    bundle_id: Sha256
    signed_by: Path | None = None
    backend: BackendName = "onnxruntime"
    precision: Precision = "fp32"
    fallback: FallbackName | None = None
    max_megapixels: float = MAX_PIXELS / 1e6
    log: LogFormat = "text"


def _packed(setup: Setup) -> bytes:
    return json.dumps(asdict(setup), default=str).encode()


class ChildInspector:
    """An `Inspector` whose passes run in a child process; a context manager.

    Entering starts the child and waits until it is ready; raises `BackendError` if it cannot start.
    A child that does not answer, or whose runtime has failed, is killed; it and a child that has
    died are replaced. The part that it was inspecting gets `NoAnswerError` or `BackendError`, the
    next one waits for the new child, but not beyond `deadline_s`. Parts in progress on other
    threads are retried. If children keep failing, restarts use exponential back-off. `workers`
    threads may inspect at once, as many as `backend`, here by its full name, serves; any thread may
    read `fault`.

    Args:
        setup: What the child opens.
        deadline_s: How long a part may wait for a child; None: ten seconds.
        first: A child that was started before. It gets the setup at once, and belongs to this
            inspector from entering on.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        deadline_s: float | None = None,
        first: StartingChild | None = None,
    ) -> None:
        self._setup = setup
        self._first = first
        if first is not None:
            first.give(_packed(setup))
        self._deadline_s = deadline_s
        self._child: _Child | None = None
        self._failure: str | None = None
        self._asked: dict[int, float] = {}  # by thread
        self._changing = threading.RLock()
        self.workers = 1
        self.backend = ""
        self.takes_bayer = False
        self._retry_s = _FIRST_RETRY_S
        self._retry_at = 0.0
        self._has_answered = True
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The child's process id; `None` while there is none."""
        return None if self._child is None else self._child.pid

    @property
    def fault(self) -> str | None:
        """Why there are no answers, in one line; `None` while answers arrive."""
        child, asked = self._child, min(tuple(self._asked.values()), default=None)
        if self._failure is not None:
            return self._failure
        if child is not None and asked is not None and monotonic() - asked > child.slow_s:
            return "has not answered for a while"
        if child is not None and (end := child.end()) is not None:
            return end
        return None

    def __enter__(self) -> Self:
        self._child = _Child(self._setup, self._first)
        try:
            is_ready = self._child.is_ready(_START_S)
        except BackendError:
            self._close()
            raise
        if not is_ready:
            self._close()
            raise BackendError(f"inference was not ready after {_START_S:g} s")
        self.workers, self.backend = self._child.workers, self._child.backend
        self.takes_bayer = self._child.takes_bayer
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def inspect(self, pixels: Pixels, bayer: Bayer | None = None) -> Inspection:
        """As an `OpenInspector` does, by the child; raw pixels become RGB where it wants that."""
        child = self._ready_child()
        if bayer is not None and not child.takes_bayer:
            pixels, bayer = demosaiced(pixels, bayer), None
        limit_s = max(_TIMEOUT_S, child.slow_s, self._deadline_s or 0.0)
        self._asked[threading.get_ident()] = monotonic()
        try:
            inspection = child.inspect(pixels, bayer, limit_s)
        except NoAnswerError as error:
            self._lose(child, str(error))
            raise
        except BackendError as error:
            if self._lose(child, str(error)):
                raise
            inspection = None
        finally:
            del self._asked[threading.get_ident()]
        if inspection is None:  # the child ended because of another thread's part
            return self.inspect(pixels, bayer)
        self._has_answered = True
        self._retry_s = _FIRST_RETRY_S
        if self._failure is not None:
            _LOG.warning("inference answers again")
            self._failure = None
        return inspection

    def moved(self, bundle: Path) -> None:
        """The same bundle lies in another folder from now on."""
        self._setup = replace(self._setup, bundle=bundle)

    def _ready_child(self) -> "_Child":
        """The child, waited for as long as a part may wait; starts one if there is none."""
        until = monotonic() + (_RESTART_S if self._deadline_s is None else self._deadline_s)
        with self._changing:
            if self._child is not None and (end := self._child.end()) is not None:
                self._lose(self._child, end)
            if self._child is None:
                sleep(max(0.0, min(self._retry_at, until) - monotonic()))
                if monotonic() < self._retry_at:
                    raise BackendError(f"inference {self._failure}")
                self._child = _Child(self._setup)
            try:
                is_ready = self._child.is_ready(max(0.0, until - monotonic()))
            except BackendError as error:
                self._fail_to_start(str(error))
                raise
            if not is_ready:
                if self._child.age_s() > _START_S:
                    self._fail_to_start(f"was not ready after {_START_S:g} s")
                raise NoAnswerError("inference is being restarted")
            self.backend = self._child.backend
            return self._child

    def _lose(self, child: "_Child", reason: str) -> bool:
        """Replace a `child` that hangs, fails or has died; at once if a part succeeded since.

        `False` if it has been replaced already.
        """
        with self._changing:
            if self._child is not child:
                return False
            _LOG.error("inference %s; restarting it", reason)
            self.restarts += 1
            self._close()
            if self._has_answered:
                self._failure = f"{reason}; it was restarted"
                self._child = _Child(self._setup)
            else:
                self._failure = f"{reason}, repeatedly"
                self._wait_longer()
            self._has_answered = False
            return True

    def _fail_to_start(self, reason: str) -> None:
        if reason != self._failure:
            _LOG.error("inference cannot start, trying again: %s", reason)
        self._failure = reason
        self._close()
        self._wait_longer()

    def _wait_longer(self) -> None:
        self._retry_at = monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _Child:
    """One child process with its connections; it starts when it is created."""

    def __init__(self, setup: Setup, starting: StartingChild | None = None) -> None:
        self._started = monotonic()
        self._is_ready = False
        self._closing = threading.Lock()
        self._is_closed = False
        self._free: queue.SimpleQueue[_Connection] = queue.SimpleQueue()
        self._start_s = 0.0
        self.slow_s = _SLOW_S
        self.workers = 1
        self.backend = ""
        self.takes_bayer = False
        if starting is None:
            starting = StartingChild()
            starting.give(_packed(setup))
        self._process = starting.taken().process
        self._connections = [_Connection(ours, memory) for ours, memory in starting.connections]

    @property
    def pid(self) -> int:
        return self._process.pid

    def age_s(self) -> float:
        return monotonic() - self._started

    def end(self) -> str | None:
        """How the process ended, in words; `None` while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def is_ready(self, within_s: float) -> bool:
        """Wait until it answers; False after `within_s`. Raises `BackendError` if it failed."""
        if self._is_ready:
            return True
        try:
            answer = self._connections[0].hear(within_s)
        except ConnectionError as error:
            raise self._ended() from error
        if answer is None:
            return False
        if "error" in answer:
            raise BackendError(answer["error"])
        self._is_ready = True
        self._start_s = answer["start_s"]
        self.slow_s = max(_SLOW_S, _PASSES * answer["pass_s"])
        self.workers, self.backend = answer["workers"], answer["backend"]
        self.takes_bayer = answer["takes_bayer"]
        for number, connection in enumerate(self._connections):
            if number < self.workers:
                self._free.put(connection)
            else:
                connection.close()
        return True

    def inspect(self, pixels: Pixels, bayer: Bayer | None, within_s: float) -> Inspection:
        """Inspect; any thread may call, more than `workers` of them wait for each other."""
        connection = self._free.get()
        if connection.frame_shape != pixels.shape:
            # For a new size a GPU allocates memory and captures a graph, as its start did.
            connection.frame_shape = pixels.shape
            within_s = max(within_s, self._start_s)
        try:
            return connection.inspect(pixels, bayer, within_s, self.pid)
        except ConnectionError as error:
            raise self._ended() from error
        finally:
            with self._closing:
                if self._is_closed:
                    connection.close()
                else:
                    self._free.put(connection)

    def close(self) -> None:
        """End it; a process that the kernel cannot end is left to the kernel.

        A thread that waits on a connection is woken, and closes that connection.
        """
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING_S)
        with self._closing:
            self._is_closed = True
            if not self._is_ready:
                for connection in self._connections:
                    connection.close()
                return
            for connection in self._connections[: self.workers]:
                connection.hang_up()
            with suppress(queue.Empty):
                while True:
                    self._free.get_nowait().close()

    def _ended(self) -> BackendError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return BackendError(self.end() or "closed its connection")


class _Connection:
    """One connection to the child: a socket, and the memory of its frame and maps."""

    def __init__(self, ours: socket.socket, memory: int) -> None:
        self._socket = ours
        self.memory = Memory(memory)
        self.frame_shape: tuple[int, ...] = ()  # the last frame's

    def inspect(self, pixels: Pixels, bayer: Bayer | None, within_s: float, pid: int) -> Inspection:
        """Raises `ConnectionError` if the child has ended, `BackendError` if its runtime failed."""
        height, width = pixels.shape[:2]
        self.memory.hold(pixels.nbytes)
        np.copyto(self.memory.pixels(pixels.shape), pixels)
        channels = pixels.shape[2] if pixels.ndim == 3 else 0
        if bayer is not None:
            channels = FIRST_BAYER + BAYER.index(bayer)
        with suppress(ConnectionError):  # it has just died; the next line notices
            self._socket.send(REQUEST.pack(self.memory.size, height, width, channels))
        answer = self._extended_hear(within_s, pid)
        if answer is None:
            raise NoAnswerError(f"did not answer within {within_s:.1f} s")
        if "failed" in answer:
            raise BackendError(answer["failed"])
        if "error" in answer:
            raise InspectionError(answer["error"])
        self.memory.map(answer["size"])
        attention, score_map = self.memory.maps(pixels.nbytes, answer["shapes"])
        return Inspection(
            score=answer["score"],
            deviation=answer["deviation"],
            passes=tuple(Pass(**each | {"box": Box(**each["box"])}) for each in answer["passes"]),
            attention=attention.copy(),
            score_map=score_map.copy(),
            attention_s=answer["attention_s"],
            map_threshold=answer["map_threshold"],
            regions=tuple(FoundRegion.told(each) for each in answer["regions"]),
        )

    def _extended_hear(self, within_s: float, pid: int) -> dict[str, Any] | None:
        """As `hear`; the timeout is extended while the child gets no CPU."""
        answer = self.hear(within_s / 2)
        for _ in range(_MAX_EXTENSIONS):
            if answer is not None:
                break
            before = _queued_ns(pid)
            answer = self.hear(within_s / 2)
            after = _queued_ns(pid)
            queued_ns = max((after.get(task, was) - was for task, was in before.items()), default=0)
            if queued_ns / 1e9 < within_s / 4:
                break
        return answer

    def hear(self, within_s: float) -> dict[str, Any] | None:
        """The next packet, `None` if there is none in time; `ConnectionError` at the end."""
        self._socket.settimeout(max(within_s, 1e-3))
        try:
            packet = self._socket.recv(PACKET)
        except TimeoutError:
            return None
        if not packet:
            raise ConnectionResetError
        answer: dict[str, Any] = json.loads(packet)
        return answer

    def hang_up(self) -> None:
        """Wake a thread that waits here."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        self.memory.close()


def _queued_ns(pid: int) -> dict[str, int]:
    """How long each thread of a process has been runnable without a CPU."""
    found = {}
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, IndexError):
                found[task.name] = int((task / "schedstat").read_text().split()[1])
    return found


class Memory:
    """The shared memory of `file`, which grows: a frame, then the maps of its inspection."""

    def __init__(self, file: int) -> None:
        self.file: Final = file
        self.size = 0
        self.lend: Callable[[Pixels | None], object] = lambda _memory: None
        """Hears of each mapping, and that one is about to go."""
        self._mapped: mmap.mmap | None = None

    def hold(self, size: int) -> None:
        """Grow to `size` bytes at least; the content is kept."""
        if size > self.size:
            os.ftruncate(self.file, size)
            self.map(size)

    def map(self, size: int) -> None:
        """Map `size` bytes, if they are not mapped yet."""
        if size != self.size:
            self.lend(None)
            self._mapped, self.size = mmap.mmap(self.file, size), size
            self.lend(self.pixels((size,)))

    def pixels(self, shape: tuple[int, ...]) -> Pixels:
        """The frame, uint8 of `shape`, without a copy."""
        assert self._mapped is not None
        return np.frombuffer(self._mapped, np.uint8, math.prod(shape)).reshape(shape)

    def maps(self, after: int, shapes: Sequence[Sequence[int]]) -> list[Map]:
        """Float32 arrays of `shapes`, without a copy, behind a frame of `after` bytes."""
        assert self._mapped is not None
        found, offset = [], after + -after % _ALIGNMENT
        for shape in shapes:
            count = math.prod(shape)
            found.append(np.frombuffer(self._mapped, np.float32, count, offset).reshape(shape))
            offset += 4 * count
        return found

    @staticmethod
    def needed(after: int, maps: Sequence[Map]) -> int:
        """Bytes for a frame of `after` bytes and these maps."""
        return after + -after % _ALIGNMENT + sum(each.nbytes for each in maps)

    def close(self) -> None:
        """Free the memory; the mapping ends with the last array over it."""
        self._mapped = None
        os.close(self.file)
