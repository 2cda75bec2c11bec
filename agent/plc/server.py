"""The agent as a Modbus TCP server: a PLC reads its block and writes its own.

Each connection has a thread that waits for its requests and for nothing else, as this costs the
line least. Whoever is not allowed, sends what is no Modbus, does not read its answers, or is one
too many, is closed and counted; it is one PLC that writes, and others may read.
"""

import ipaddress
import logging
import socket
import struct
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Final, Self

from agent.listening import listening
from agent.plc.blocks import (
    AGENT_REGISTERS,
    FLAGS,
    PLC_REGISTERS,
    PlcBlock,
    plc_block,
    plc_block_like,
    plc_bytes,
)
from agent.plc.exchange import Exchange
from agent.plc.modbus import (
    BUSY,
    ILLEGAL_ADDRESS,
    LONGEST,
    READ_AND_WRITE,
    Frame,
    MalformedError,
    ModbusError,
    answer,
    frames,
    reading,
    writing,
)
from engine.errors import SinkError

_LOG: Final = logging.getLogger("atac_agent.plc")
MOST_CONNECTIONS: Final = 8
_TICK_S: Final = 0.05
_REQUESTS: Final = 50
"""Of the PLC in one tick; more wait for the next."""
_OTHERS: Final = 5
"""The same of each other connection."""
_ACCEPT_S: Final = 0.0125
"""From one connection that is looked at to the next."""
_BEAT: Final = 2
_DATA: Final = 4
"""Where what follows the PLC's heartbeat begins in its block, and what follows its flags."""
_UNREAD: Final = 4096
"""Bytes of answers that a peer may leave unread, and for how long it may leave more."""
_UNREAD_S: Final = 1
_IDLE_S: Final = 60
NOBODY: Final = "no PLC is connected"
_JOIN_S: Final = 5.0
_HEAD: Final = struct.Struct(">HH")
_TIME: Final = struct.Struct("@ll")
"""A `timeval`."""


@dataclass(slots=True, eq=False)
class _Peer:
    connection: socket.socket
    address: str
    requests: int = 0
    """In the tick that began at `began`."""
    began: float = 0.0


class _Scan:
    """A request for whole blocks, and its answer, in pieces; between them are unit and registers.

    Args:
        asked: The PDU of the request, up to the registers that it writes.
        answer: That of the answer, up to the registers that it reads.
        writes: Whether it writes the PLC's block.
        reads: Whether it reads the agent's.
    """

    def __init__(self, asked: bytes, answer: bytes, *, writes: bool, reads: bool) -> None:
        self.asked, self.answer, self.writes, self.reads = asked, answer, writes, reads
        self.end = 7 + len(asked)
        self.size = self.end + 2 * PLC_REGISTERS * writes
        self.head = _HEAD.pack(0, self.size - 6)
        self.answer_head = _HEAD.pack(0, 1 + len(answer) + 2 * AGENT_REGISTERS * reads)


def _scans(agent_at: int, plc_at: int) -> dict[int, _Scan]:
    """What a PLC may ask in each scan, by the size of the request."""
    reads = reading(agent_at, AGENT_REGISTERS)
    writes = writing(plc_at, [0] * PLC_REGISTERS)[: -2 * PLC_REGISTERS]
    both, size = bytes((READ_AND_WRITE,)), bytes((2 * AGENT_REGISTERS,))
    scans = (
        _Scan(reads, reads[:1] + size, writes=False, reads=True),
        _Scan(writes, writes[:-1], writes=True, reads=False),
        _Scan(both + reads[1:] + writes[1:], both + size, writes=True, reads=True),
    )
    return {scan.size: scan for scan in scans}


class ModbusServer:
    """Serves `exchange`; a context manager with threads of its own.

    Args:
        exchange: What the PLC's writes mean, and what it reads.
        listen: Address and port.
        allowed: The addresses or networks from which a PLC may come.
        agent_at: The first register of the agent's block.
        plc_at: The first register of the PLC's block.

    Entering raises `SinkError` when the port cannot be had.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        listen: tuple[str, int],
        allowed: Collection[str],
        agent_at: int,
        plc_at: int,
    ) -> None:
        self._exchange = exchange
        self._listen = listen
        self._allowed = [ipaddress.ip_network(each, strict=False) for each in allowed]
        self._agent_at, self._plc_at = agent_at, plc_at
        self._written = plc_bytes(PlcBlock())
        self._heard: PlcBlock | None = None
        """The same, once it was heard."""
        self._scans = _scans(agent_at, plc_at)
        self._peers: dict[_Peer, threading.Thread] = {}
        self._writer: _Peer | None = None
        self._speaking: _Peer | None = None
        self._lock = threading.Lock()
        """Held while one request is obeyed."""
        self._leaving = threading.Event()
        self._thread = self._started_by(self._accept)
        self.port = 0
        """Where it listens, once entered."""

    def __enter__(self) -> Self:
        host, port = self._listen
        try:
            listener = listening(host, port, backlog=MOST_CONNECTIONS)
        except OSError as error:
            raise SinkError(str(error.strerror)) from None
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._exchange.fails(NOBODY)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        _end(self._listener)
        self._thread.join(_JOIN_S)
        self._listener.close()
        for peer, thread in list(self._peers.items()):
            _end(peer.connection)
            thread.join(_JOIN_S)

    # ---- what Modbus asks

    def read(self, start: int, count: int) -> bytes:
        """Registers of one of the two blocks."""
        if (first := start - self._agent_at) >= 0 and first + count <= AGENT_REGISTERS:
            is_read = first <= FLAGS < first + count and self._speaking is self._writer
            return self._exchange.registers(is_read=is_read)[2 * first : 2 * (first + count)]
        first = self._place(start, count)
        return self._written[2 * first : 2 * (first + count)]

    def write(self, start: int, data: bytes) -> None:
        """Registers of the PLC's block; refused while another PLC writes."""
        first = self._place(start, len(data) // 2)
        if self._writer is not self._speaking:
            if self._writer is not None and self._exchange.hears:
                raise ModbusError(BUSY)
            self._writer = self._speaking
            self._exchange.fails(None)
        before = self._written
        self._hear(before[: 2 * first] + data + before[2 * first + len(data) :])

    def _hear(self, written: bytes) -> None:
        heard, before, self._written = self._heard, self._written, written
        if heard is None or written[_DATA:] != before[_DATA:]:
            self._heard = plc_block(written)
        elif written[_BEAT:] != before[_BEAT:]:
            self._heard = plc_block_like(heard, written)
        else:
            self._exchange.heard_again(heard, written[0] << 8 | written[1])
            return
        self._exchange.heard(self._heard)

    def _place(self, start: int, count: int) -> int:
        first = start - self._plc_at
        if first < 0 or first + count > PLC_REGISTERS:
            raise ModbusError(ILLEGAL_ADDRESS)
        return first

    # ---- the threads

    def _started_by(self, run: Callable[..., None], *arguments: object) -> threading.Thread:
        def guarded() -> None:
            try:
                run(*arguments)
            except Exception as error:
                self._exchange.fails(f"a thread that serves the PLC has died: {error}")
                _LOG.exception("a thread that serves the PLC has died")
                raise

        return threading.Thread(target=guarded, name="atac-plc", daemon=True)

    def _accept(self) -> None:
        while not self._leaving.wait(_ACCEPT_S):
            with suppress(OSError):  # it has gone again, or we go
                self._meet(*self._listener.accept())

    def _meet(self, connection: socket.socket, address: tuple[str, int]) -> None:
        source = ipaddress.ip_address(address[0].split("%")[0])
        if isinstance(source, ipaddress.IPv6Address) and source.ipv4_mapped is not None:
            source = source.ipv4_mapped
        is_allowed = any(source in network for network in self._allowed)
        if not is_allowed or len(self._peers) >= MOST_CONNECTIONS:
            if not self._exchange.peers.refused:
                why = "there are 8 already" if is_allowed else "it is not in `allow`"
                _LOG.warning("a connection from %s is refused: %s", source, why)
            self._exchange.peers.refused += 1
            connection.close()
            return
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD)
            # Not `settimeout`, with which each reading and sending asks the system once more.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIME.pack(_IDLE_S, 0))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(_UNREAD_S, 0))
        peer = _Peer(connection, str(source))
        self._peers[peer] = thread = self._started_by(self._serve, peer)
        thread.start()

    def _serve(self, peer: _Peer) -> None:
        """Answer one connection until it ends."""
        received = bytearray()
        try:
            while data := peer.connection.recv(LONGEST):
                if received or not self._answer_scan(peer, data):
                    received += data
                    self._answer(peer, received)
        except MalformedError as error:
            self._exchange.peers.refused += 1
            _LOG.debug("the connection from %s is closed: %s", peer.address, error)
        except OSError:
            pass
        finally:
            with self._lock:
                del self._peers[peer]
                if self._writer is peer:
                    self._writer = None
                    self._exchange.fails(NOBODY)
            peer.connection.close()

    def _answer_scan(self, peer: _Peer, data: bytes) -> bool:
        """Answer what the PLC asks in each scan: its whole block, the agent's, or both.

        This is not taken apart and put together, as whatever is looked up costs the line.
        """
        scan = self._scans.get(len(data))
        if scan is None or peer is not self._writer:
            return False
        if data[2:6] != scan.head or data[7 : scan.end] != scan.asked:
            return False
        registers = b""
        if scan.writes:
            self._hear(data[scan.end :])
        if scan.reads:
            registers = self._exchange.registers(is_read=True)
        self._send(peer, data[:2] + scan.answer_head + data[6:7] + scan.answer + registers)
        peer.requests += 1
        if peer.requests >= _REQUESTS:
            self._rest(peer)
        return True

    def _answer(self, peer: _Peer, received: bytearray) -> None:
        """Answer all requests that are complete."""
        answers = b""
        for frame in frames(received):
            with self._lock:
                self._speaking = peer
                reply = answer(frame.pdu, self)
            self._exchange.peers.refused += reply[0] >> 7
            answers += bytes(Frame(transaction=frame.transaction, unit=frame.unit, pdu=reply))
            peer.requests += 1
            if peer.requests >= (_REQUESTS if peer is self._writer else _OTHERS):
                self._send(peer, answers)
                answers = b""
                self._rest(peer)
        self._send(peer, answers)

    def _rest(self, peer: _Peer) -> None:
        """It has asked as much as it may in one tick."""
        self._leaving.wait(peer.began + _TICK_S - monotonic())
        peer.requests, peer.began = 0, monotonic()

    def _send(self, peer: _Peer, answers: bytes) -> None:
        try:
            peer.connection.sendall(answers)
        except BlockingIOError:
            self._exchange.peers.refused += 1
            raise


def _end(connection: socket.socket) -> None:
    """Nothing waits for it any longer."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
