"""Starts the inference process, which imports for as long as the agent itself does.

    agent: start ── imports, configuration, bundle ──▶ setup ── cameras ──┬─▶ ledger, line
    child:   └──── imports, tables ───────────────────────┴──▶ its inspector ─▶ ready

So that both happen at once, this module imports nothing but Python's own.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import Final, Self

MOST_LANES: Final = 4


class StartingChild:
    """A child process that waits for its setup, and what the agent's side shares with it.

    `lanes` has a socket of packets and the file of an anonymous shared memory for each lane. A
    context manager that ends the process and closes all of them, unless somebody took it over.
    """

    def __init__(self) -> None:
        self.lanes: list[tuple[socket.socket, int]] = []
        self._is_taken = False
        with ExitStack() as theirs:
            ends = []
            for _ in range(MOST_LANES):
                ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                memory = os.memfd_create("atac-frame")
                self.lanes.append((ours, memory))
                ends.append((theirs.enter_context(end).fileno(), memory))
            self.process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", "-m", "agent.inference.worker", json.dumps(ends)],
                pass_fds=[file for end in ends for file in end],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # a terminal's Ctrl-C is the agent's, from the first moment
            )

    def give(self, setup: bytes) -> None:
        """Tell it what to open; one that has died is found out by whoever takes it over."""
        with suppress(ConnectionError):
            self.lanes[0][0].send(setup)

    def taken(self) -> Self:
        """Itself; whoever asks ends the process and closes everything."""
        self._is_taken = True
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_taken:
            return
        self.process.kill()
        self.process.wait()
        for ours, memory in self.lanes:
            ours.close()
            os.close(memory)
