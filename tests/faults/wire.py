"""A wire between the agent and its broker that counts, holds back and alters acknowledgements."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_PUBLISH, _PUBACK = 3, 4


class Wire:
    """Listens on `port` and passes everything on to `broker_port`; a context manager.

    `peak` is the most messages of QoS 1 that were ever unacknowledged on one connection.
    Acknowledgements take `hold_s` and go through `alter`, which gets and gives the packet's body.
    """

    def __init__(
        self,
        broker_port: int,
        *,
        hold_s: float = 0.0,
        alter: Callable[[bytes], bytes] = lambda body: body,
    ) -> None:
        self._broker_port = broker_port
        self._hold_s = hold_s
        self._alter = alter
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port = self._server.getsockname()[1]
        self.peak = 0
        self.connections = 0

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *_error):
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for end in self._ends:
            _hang_up(end)
        for thread in self._threads:
            thread.join()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                agent, _ = self._server.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self._broker_port))
                except OSError:
                    agent.close()
                    continue
                for end in (agent, broker):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._ends += [agent, broker]
                self.connections += 1
                unacknowledged: set[int] = set()
                self._start(self._carry, agent, broker, unacknowledged, self._sent)
                self._start(self._carry, broker, agent, unacknowledged, self._answered)

    def _carry(
        self,
        source: socket.socket,
        target: socket.socket,
        unacknowledged: set[int],
        look: Callable[[int, bytes, set[int]], bytes],
    ) -> None:
        with suppress(OSError), source.makefile("rb") as stream:
            while (packet := _packet(stream)) is not None:
                head, body = packet
                body = look(head, body, unacknowledged)
                target.sendall(bytes([head]) + _length(len(body)) + body)
        _hang_up(source)
        _hang_up(target)

    def _sent(self, head: int, body: bytes, unacknowledged: set[int]) -> bytes:
        if head >> 4 == _PUBLISH and head >> 1 & 3:
            after_topic = 2 + int.from_bytes(body[:2], "big")
            unacknowledged.add(int.from_bytes(body[after_topic : after_topic + 2], "big"))
            self.peak = max(self.peak, len(unacknowledged))
        return body

    def _answered(self, head: int, body: bytes, unacknowledged: set[int]) -> bytes:
        if head >> 4 == _PUBACK:
            time.sleep(self._hold_s)
            unacknowledged.discard(int.from_bytes(body[:2], "big"))
            return self._alter(body)
        return body


def _packet(stream) -> tuple[int, bytes] | None:
    head = stream.read(1)
    if not head:
        return None
    length = shift = 0
    while True:
        byte = stream.read(1)
        if not byte:
            return None
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return head[0], stream.read(length)


def _length(length: int) -> bytes:
    digits = bytearray()
    while True:
        length, digit = length >> 7, length & 0x7F
        digits.append(digit | (0x80 if length else 0))
        if not length:
            return bytes(digits)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
