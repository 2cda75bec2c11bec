"""A process beside the agent, for a service, a sink or a trigger: one that hangs costs no part.

    agent: atac-NAME      ◀── questions: one each second at least ──  child: its pulse
           atac-NAME-ask  ◀── questions that may wait for a disk ───         its requests
           atac-feed      ── recorded parts ─────────────────────▶         its history

The child asks and the agent answers. A child that ends, or asks nothing for a while, is replaced:
after a second where it was stopped, after two where it sleeps. One that waits for a busy processor
or a disk is given more time. Sockets on which the child listens
are the agent's: who connects between two children waits for the next one.
"""

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any, Final, Self

from agent.child_environment import child_environment
from agent.record.feed import Feed, FeedClient

_LOG: Final = logging.getLogger("atac_agent.service")
_LOOKED_AT_S: Final = 1.0
"""After so long without a question, its threads are looked at. One that was stopped never asks."""
_SILENT_S: Final = 2.0
"""A child that sleeps and has asked nothing for so long hangs."""
_STARVED: Final = 8
"""A child that waits for the processor or the disk has this many times as long."""
_IDLE_LOOKS: Final = 4
"""This many looks in a row it was seen to sleep."""
_START_S: Final = 30.0
_ENDING_S: Final = 2.0
_FIRST_RETRY_S: Final = 0.2
_LAST_RETRY_S: Final = 30.0
_LASTED_S: Final = 10.0
"""A child that has lived so long is no failed start."""
_ANSWER_S: Final = 10.0

Answer = tuple[object, Sequence[bytes]]
"""What is said, as JSON can hold it, and bytes that go with it."""


class RefusedError(Exception):
    """The agent does not do what it was asked to; the message says why."""


class ServiceChild:
    """The agent's end; a context manager with two threads.

    Args:
        name: Names threads and log lines.
        module: What the child runs: `python -m MODULE`, with `main()` that calls `AgentEnd.taken`.
        setup: What the child is told first, as JSON.
        feed: What it reads parts from; `None`: it reads none.
        answer: Answers the question of this name with these values; any `RefusedError` goes back.
            It is called by two threads: questions of the pulse must not wait.
        listening: Sockets that the child serves.
    """

    def __init__(
        self,
        name: str,
        module: str,
        *,
        setup: Mapping[str, Any],
        feed: Feed | None,
        answer: Callable[[str, dict[str, Any]], Answer],
        listening: Sequence[socket.socket] = (),
    ) -> None:
        self._name = name
        self._module = module
        self._setup = setup
        self._feed = feed
        self._answer = answer
        self._listening = listening
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"atac-{name}", daemon=True)
        self.fault: str | None = None
        self.pid: int | None = None
        self.starts = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        retry_s = _FIRST_RETRY_S
        while not self._leaving.is_set():
            began = monotonic()
            try:
                end = self._serve_one()
            except Exception as error:  # noqa: BLE001 - a fault of the service, not of the line
                _LOG.exception("the process of %s cannot be served", self._name)
                end = f"cannot be served: {type(error).__name__}: {error}"
            if self._leaving.is_set():
                return
            if monotonic() - began > _LASTED_S:
                retry_s = _FIRST_RETRY_S
            self.fault = f"its process {end}; another is started"
            _LOG.warning("%s: its process %s; inspection is not affected", self._name, end)
            self._leaving.wait(retry_s)
            retry_s = min(_LAST_RETRY_S, 2 * retry_s)

    def _serve_one(self) -> str:
        """Serve one child until it ends; says how it ended."""
        with ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(3)]
            for ours, _ in pairs:
                stack.enter_context(ours)
            with ExitStack() as theirs:
                ends = [theirs.enter_context(end).fileno() for _, end in pairs]
                files = [*ends, *(each.fileno() for each in self._listening)]
                process = subprocess.Popen(  # noqa: S603 - our own program
                    [sys.executable, "-P", "-m", self._module, json.dumps(files)],
                    pass_fds=files,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=child_environment() | {"OMP_NUM_THREADS": "1"},
                    process_group=0,  # a terminal's Ctrl-C is the agent's
                )
            stack.callback(_ended, process)
            self.pid, self.starts = process.pid, self.starts + 1
            pulse, asking = (Connection(ours.detach()) for ours, _ in pairs[:2])
            stack.callback(pulse.close)
            if self._feed is not None:
                stack.enter_context(self._feed.serve(pairs[2][0]))
            thread = threading.Thread(
                target=self._serve, args=(asking,), name=f"atac-{self._name}-ask", daemon=True
            )
            thread.start()
            with suppress(OSError):
                pulse.send_bytes(json.dumps(self._setup, default=str).encode())
            return self._watch(process, pulse)

    def _watch(self, process: subprocess.Popen[bytes], pulse: Connection) -> str:
        """Answer the pulse for as long as there is one."""
        heard, limit_s, idle = monotonic(), _START_S, 0
        while not self._leaving.is_set():
            try:
                if pulse.poll(0.25):
                    self._reply(pulse)
                    self.fault, heard, limit_s = None, monotonic(), _SILENT_S
                    idle = 0
            except (EOFError, OSError):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_ENDING_S)
                return _how(process)
            silent_s = monotonic() - heard
            if silent_s < _LOOKED_AT_S:
                continue
            states = _states(process.pid)
            # Busy at any of its last looks, it is starved and does not hang.
            idle = 0 if states & _BUSY else idle + 1
            is_late = silent_s > limit_s and (idle >= _IDLE_LOOKS or silent_s > _STARVED * limit_s)
            if is_late or states == _STOPPED:
                process.kill()
                return f"has not answered for {silent_s:.0f} s"
        return "was stopped"

    def _serve(self, connection: Connection) -> None:
        with connection, suppress(EOFError, OSError):
            while not self._leaving.is_set():
                if connection.poll(0.5):
                    self._reply(connection)

    def _reply(self, connection: Connection) -> None:
        asked = json.loads(connection.recv_bytes())
        blobs: Sequence[bytes] = ()
        told: dict[str, object]
        try:
            said, blobs = self._answer(asked["ask"], asked["with"])
            told = {"said": said, "blobs": len(blobs)}
        except RefusedError as error:
            told = {"refused": str(error)}
        except Exception as error:  # noqa: BLE001 - the child shall live
            _LOG.exception("%s: the question %s failed", self._name, asked["ask"])
            told = {"refused": f"{type(error).__name__}: {error}"}
        connection.send_bytes(json.dumps(told, default=str).encode())
        for blob in blobs:
            connection.send_bytes(blob)


class AgentEnd:
    """The agent as its child sees it; `ask` may be called by any thread.

    `pulse` and `ask` raise `ConnectionError` once the agent has gone.
    """

    def __init__(self, pulse: Connection, asking: Connection, feed: socket.socket) -> None:
        self._pulse = pulse
        self._asking = asking
        self._locks = {id(pulse): threading.Lock(), id(asking): threading.Lock()}
        self.feed: Final = FeedClient(feed)
        self.setup: dict[str, Any] = json.loads(pulse.recv_bytes())

    @classmethod
    def taken(cls, argument: str) -> tuple[Self, list[socket.socket]]:
        """What this process was started with: the agent, and the sockets to listen on."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        files = json.loads(argument)
        pulse, asking = (Connection(file) for file in files[:2])
        agent = cls(pulse, asking, socket.socket(fileno=files[2]))
        return agent, [socket.socket(fileno=file) for file in files[3:]]

    def pulse(self, question: str, /, **values: object) -> Answer:
        """Ask what is answered at once; asked all the time, as it shows that this process lives."""
        return self._answered(self._pulse, question, values)

    def ask(self, question: str, /, **values: object) -> Answer:
        """Ask what may take a while; raises `RefusedError` where the agent says no."""
        return self._answered(self._asking, question, values)

    def _answered(
        self, connection: Connection, question: str, values: Mapping[str, object]
    ) -> Answer:
        with self._locks[id(connection)]:
            try:
                connection.send_bytes(json.dumps({"ask": question, "with": values}).encode())
                if not connection.poll(_ANSWER_S):
                    connection.close()  # what comes later is the answer to nothing
                    raise ConnectionError("the agent does not answer")
                told = json.loads(connection.recv_bytes())
                blobs = [connection.recv_bytes() for _ in range(told.get("blobs", 0))]
            except (EOFError, OSError) as error:
                raise ConnectionError(f"the agent has gone: {error}") from None
        if "refused" in told:
            raise RefusedError(told["refused"])
        return told["said"], blobs


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait until a child has gone; its connections are closed, which tells it to go."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()
    process.wait()


def _how(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code is None:
        return "closed its connection"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


_BUSY: Final = frozenset("RD")
"""It waits for a processor, or for a disk."""
_STOPPED: Final = frozenset("T")


def _states(pid: int) -> frozenset[str]:
    """The states of a process's threads, a letter each, as `/proc` has them."""
    found = set()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, IndexError):
                found.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return frozenset(found)
