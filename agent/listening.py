"""Sockets on which services listen."""

import os
import socket


def listening(host: str, port: int, *, backlog: int) -> socket.socket:
    """A socket that listens there; raises `OSError` whose `strerror` says why there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise OSError(number, f"cannot listen at {host}:{port}: {reason}") from None
