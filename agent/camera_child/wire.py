"""What agent and camera child say to each other, and how: JSON over a socket.

Imports nothing but Python's own, as a child may run under an interpreter without packages.
"""

import json
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

Message = dict[str, Any]


class GoneError(OSError):
    """A source cannot be used now; `str` says why, as "is not a folder" does."""


class RefusedError(Exception):
    """A source does not take a value of the configuration: `key`, `value` as written, `remedy`."""

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key = key
        self.value = value
        self.remedy = remedy
        super().__init__(f"{key}: {value!r}: {remedy}")


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
