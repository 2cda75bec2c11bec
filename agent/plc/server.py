"""The agent as a Modbus TCP server: a PLC reads its block and writes its own.

One thread serves all connections and waits for none. Whoever is not allowed, sends what is no
Modbus, does not read its answers, or is one too many, is closed and counted; it is one PLC that
writes, and others may read.
"""

import ipaddress
import logging
import select
import socket
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Self

from agent.listening import listening
from agent.plc.blocks import (
    AGENT_REGISTERS,
    FLAGS,
    PLC_REGISTERS,
    AgentBlock,
    PlcBlock,
    agent_bytes,
    plc_block,
    plc_bytes,
)
from agent.plc.exchange import Exchange
from agent.plc.modbus import (
    BUSY,
    ILLEGAL_ADDRESS,
    Frame,
    MalformedError,
    ModbusError,
    answer,
    frames,
)
from engine.errors import SinkError

_LOG: Final = logging.getLogger("atac_agent.plc")
MOST_CONNECTIONS: Final = 8
_TICK_S: Final = 0.05
_REQUESTS: Final = 50
"""Of the PLC in one tick; more wait for the next."""
_OTHERS: Final = 5
"""The same of each other connection."""
_ACCEPTED: Final = 4
"""Connections that are looked at in one tick."""
_BEAT: Final = 2
"""Bytes of the PLC's heartbeat, which come first."""
_UNREAD: Final = 4096
"""Bytes of answers that a peer may leave unread."""
_IDLE_TICKS: Final = 1200
NOBODY: Final = "no PLC is connected"
_JOIN_S: Final = 5.0


@dataclass(slots=True, eq=False)
class _Peer:
    connection: socket.socket
    address: str
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    requests: int = 0
    idle_ticks: int = 0
    watched: int = select.EPOLLIN


class ModbusServer:
    """Serves `exchange`; a context manager with a thread of its own.

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
        self._written = bytearray(plc_bytes(PlcBlock()))
        self._heard = b""
        self._shown = AgentBlock(), agent_bytes(AgentBlock())
        self._peers: dict[int, _Peer] = {}
        """By the numbers of their sockets."""
        self._writer: _Peer | None = None
        self._speaking: _Peer | None = None
        self._leaving = threading.Event()
        self._poll = select.epoll()
        self._thread = threading.Thread(target=self._run, name="atac-plc", daemon=True)
        self.port = 0
        """Where it listens, once entered."""

    def __enter__(self) -> Self:
        host, port = self._listen
        try:
            listener = listening(host, port, backlog=MOST_CONNECTIONS)
        except OSError as error:
            raise SinkError(str(error.strerror)) from None
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._poll.register(listener, select.EPOLLIN)
        self._exchange.fails(NOBODY)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join(_JOIN_S)
        for peer in list(self._peers.values()):
            self._close(peer)
        self._listener.close()
        self._poll.close()

    # ---- what Modbus asks

    def read(self, start: int, count: int) -> bytes:
        """Registers of one of the two blocks."""
        if (first := start - self._agent_at) >= 0 and first + count <= AGENT_REGISTERS:
            is_read = first <= FLAGS < first + count and self._speaking is self._writer
            block = self._exchange.block(is_read=is_read)
            if block is not self._shown[0]:
                self._shown = block, agent_bytes(block)
            return self._shown[1][2 * first : 2 * (first + count)]
        first = self._place(start, count)
        return bytes(self._written[2 * first : 2 * (first + count)])

    def write(self, start: int, data: bytes) -> None:
        """Registers of the PLC's block; refused while another PLC writes."""
        first = self._place(start, len(data) // 2)
        if self._writer is not self._speaking:
            if self._writer is not None and self._exchange.hears:
                raise ModbusError(BUSY)
            self._writer = self._speaking
            self._exchange.fails(None)
        self._written[2 * first : 2 * first + len(data)] = data
        # In most scans only the heartbeat is new.
        written = bytes(self._written)
        if written[_BEAT:] == self._heard[_BEAT:]:
            self._exchange.beats(int.from_bytes(written[:_BEAT]))
        else:
            self._exchange.heard(plc_block(written))
        self._heard = written

    def _place(self, start: int, count: int) -> int:
        first = start - self._plc_at
        if first < 0 or first + count > PLC_REGISTERS:
            raise ModbusError(ILLEGAL_ADDRESS)
        return first

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._leaving.is_set():
                self._tick()
        except Exception as error:
            self._exchange.fails(f"the thread that serves the PLC has died: {error}")
            _LOG.exception("the thread that serves the PLC has died")
            raise

    def _tick(self) -> None:
        """What has come, and every 50 ms what is due by time."""
        until = monotonic() + _TICK_S
        accepted = 0
        for peer in list(self._peers.values()):
            was_cut_short = peer.requests >= self._limit(peer)
            peer.requests = 0
            peer.idle_ticks += 1
            if peer.idle_ticks > _IDLE_TICKS:
                self._close(peer)
            elif was_cut_short:
                self._serve(peer)
        while (left := until - monotonic()) > 0 and not self._leaving.is_set():
            for number, events in self._poll.poll(left):
                if number == self._listener.fileno():
                    accepted += 1
                    self._accept()
                    if accepted >= _ACCEPTED:
                        self._poll.modify(self._listener, 0)
                elif (speaker := self._peers.get(number)) is None:
                    continue  # closed since
                elif events & select.EPOLLOUT:
                    self._send(speaker)
                else:
                    self._receive(speaker)
        if accepted >= _ACCEPTED:
            self._poll.modify(self._listener, select.EPOLLIN)
        self._exchange.passed()

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError:
            return
        source = ipaddress.ip_address(address[0].split("%")[0])
        if isinstance(source, ipaddress.IPv6Address) and source.ipv4_mapped is not None:
            source = source.ipv4_mapped
        is_allowed = any(source in network for network in self._allowed)
        if not is_allowed or len(self._peers) >= MOST_CONNECTIONS:
            self._exchange.peers.refused += 1
            if self._exchange.peers.refused == 1:
                why = "there are 8 already" if is_allowed else "it is not in `allow`"
                _LOG.warning("a connection from %s is refused: %s", source, why)
            connection.close()
            return
        connection.setblocking(False)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD)
        peer = _Peer(connection, str(source))
        self._peers[connection.fileno()] = peer
        self._poll.register(connection, select.EPOLLIN)

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(peer)
            return
        peer.received += data
        peer.idle_ticks = 0
        self._serve(peer)

    def _serve(self, peer: _Peer) -> None:
        """Answer as many requests as one connection may ask in one tick."""
        self._speaking = peer
        try:
            for frame in frames(peer.received):
                reply = answer(frame.pdu, self)
                self._exchange.peers.refused += reply[0] >> 7
                peer.unsent += bytes(
                    Frame(transaction=frame.transaction, unit=frame.unit, pdu=reply)
                )
                peer.requests += 1
                if peer.requests >= self._limit(peer):
                    break
        except MalformedError as error:
            self._exchange.peers.refused += 1
            _LOG.debug("the connection from %s is closed: %s", peer.address, error)
            self._close(peer)
            return
        finally:
            self._speaking = None
        self._send(peer)

    def _limit(self, peer: _Peer) -> int:
        return _REQUESTS if peer is self._writer else _OTHERS

    def _send(self, peer: _Peer) -> None:
        try:
            while peer.unsent:
                del peer.unsent[: peer.connection.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._close(peer)
            return
        if len(peer.unsent) > _UNREAD:
            self._exchange.peers.refused += 1
            self._close(peer)
            return
        wanted = 0 if peer.requests >= self._limit(peer) else select.EPOLLIN
        wanted |= select.EPOLLOUT if peer.unsent else 0
        if wanted != peer.watched:
            peer.watched = wanted
            self._poll.modify(peer.connection, wanted)

    def _close(self, peer: _Peer) -> None:
        self._peers.pop(peer.connection.fileno(), None)
        peer.connection.close()  # which ends its being watched
        if self._writer is peer:
            self._writer = None
            self._exchange.fails(NOBODY)
