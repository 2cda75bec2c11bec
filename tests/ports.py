"""Free ports for servers of tests."""

import itertools
import os
import socket

_FIRST, _SHARE, _WORKERS = 10_000, 2_500, 8
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_NUMBERS = itertools.cycle(range(os.getpid() % _SHARE, os.getpid() % _SHARE + _SHARE))


def free_port(kind=socket.SOCK_STREAM) -> int:
    """A port of the loopback interface that nobody has.

    It lies below those that the system gives to outgoing connections: one of these could take the
    port before the server does, and a client that tries such a port before its server is there
    may reach itself. Each worker of the suite has ports of its own.
    """
    for number in _NUMBERS:
        port = _FIRST + _SHARE * _WORKER + number % _SHARE
        with socket.socket(type=kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError
