"""Starts the inference process, whose imports take as long as those of the agent.

    agent: start ── imports, configuration, bundle ──▶ setup ── cameras ──┬─▶ ledger, line
    child:   └──── imports, tables ───────────────────────┴──▶ its inspector ─▶ ready

So that both happen at the same time, this module and what it imports need Python's own alone.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import Final, Self

from agent.child_environment import child_environment

MOST_CONNECTIONS: Final = 4


class StartingChild:
    """A child process that waits for its setup, and what the agent's side shares with it.

    `connections` are sockets of packets, each with the file of an anonymous shared memory. A
    context manager that ends the process and closes all of them, unless it was taken over.
    """

    def __init__(self) -> None:
        self.connections: list[tuple[socket.socket, int]] = []
        self._is_taken = False
        with ExitStack() as theirs:
            ends = []
            for _ in range(MOST_CONNECTIONS):
                ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                memory = os.memfd_create("atac-frame")
                self.connections.append((ours, memory))
                ends.append((theirs.enter_context(end).fileno(), memory))
            self.process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", "-m", "agent.inference.worker", json.dumps(ends)],
                pass_fds=[file for end in ends for file in end],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment(),
                process_group=0,  # a terminal's Ctrl-C must reach the agent alone
            )

    def give(self, setup: bytes) -> None:
        """Tell it what to open; if it has died, whoever takes it over notices."""
        with suppress(ConnectionError):
            self.connections[0][0].send(setup)

    def taken(self) -> Self:
        """Itself; the caller then ends the process and closes everything."""
        self._is_taken = True
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_taken:
            return
        self.process.kill()
        self.process.wait()
        for ours, memory in self.connections:
            ours.close()
            os.close(memory)
