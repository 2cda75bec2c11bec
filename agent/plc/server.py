"""The agent as a Modbus TCP server: a PLC reads its block and writes its own.

One thread serves all connections and waits for none. Whoever is not allowed, sends what is no
Modbus, does not read its answers, or is one too many, is closed and counted; it is one PLC that
writes, and others may read.
"""

import ipaddress
import logging
import selectors
import socket
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final, Self

from agent.listening import listening
from agent.plc.blocks import (
    AGENT_REGISTERS,
    FLAGS,
    PLC_REGISTERS,
    AgentBlock,
    PlcBlock,
    agent_registers,
    plc_block,
    plc_registers,
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
    watched: int = 0


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
        self._words = plc_registers(PlcBlock())
        self._heard, self._heard_words = PlcBlock(), self._words[1:]
        self._shown = AgentBlock(), agent_registers(AgentBlock())
        self._peers: dict[socket.socket, _Peer] = {}
        self._writer: _Peer | None = None
        self._speaking: _Peer | None = None
        self._leaving = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="atac-plc", daemon=True)
        self.refused = 0
        """Connections and requests that were not served."""
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
        self._selector.register(listener, selectors.EVENT_READ)
        self._exchange.fails(NOBODY)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join(_JOIN_S)
        for peer in list(self._peers.values()):
            self._close(peer)
        self._listener.close()
        self._selector.close()

    # ---- what Modbus asks

    def read(self, start: int, count: int) -> Sequence[int]:
        """Registers of one of the two blocks."""
        if (first := start - self._agent_at) >= 0 and first + count <= AGENT_REGISTERS:
            block = self._exchange.block()
            if first <= FLAGS < first + count and self._speaking is self._writer:
                self._exchange.seen(block)
            if block is not self._shown[0]:
                self._shown = block, agent_registers(block)
            return self._shown[1][first : first + count]
        first = self._place(start, count)
        return self._words[first : first + count]

    def write(self, start: int, values: Sequence[int]) -> None:
        """Registers of the PLC's block; refused while another PLC writes."""
        first = self._place(start, len(values))
        if self._writer not in (None, self._speaking) and self._exchange.hears:
            raise ModbusError(BUSY)
        if self._writer is not self._speaking:
            self._writer = self._speaking
            self._exchange.fails(None)
        self._words[first : first + len(values)] = values
        # In most scans only the heartbeat is new.
        if self._words[1:] == self._heard_words:
            self._heard = replace(self._heard, heartbeat=self._words[0])
        else:
            self._heard, self._heard_words = plc_block(self._words), self._words[1:]
        self._exchange.heard(self._heard)

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
        begun = monotonic()
        accepted = 0
        for peer in list(self._peers.values()):
            was_cut_short = peer.requests >= self._limit(peer)
            peer.requests = 0
            peer.idle_ticks += 1
            if peer.idle_ticks > _IDLE_TICKS:
                self._close(peer)
            elif was_cut_short:
                self._serve(peer)
        while (left := begun + _TICK_S - monotonic()) > 0 and not self._leaving.is_set():
            ready = self._selector.select(left)
            for key, events in ready:
                if key.data is None:
                    accepted += 1
                    self._accept()
                    if accepted >= _ACCEPTED:
                        self._selector.unregister(self._listener)
                elif events & selectors.EVENT_WRITE:
                    self._send(key.data)
                else:
                    self._receive(key.data)
        if accepted >= _ACCEPTED:
            self._selector.register(self._listener, selectors.EVENT_READ)
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
            self.refused += 1
            if self.refused == 1:
                why = "there are 8 already" if is_allowed else "it is not in `allow`"
                _LOG.warning("a connection from %s is refused: %s", source, why)
            connection.close()
            return
        connection.setblocking(False)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD)
        peer = _Peer(connection, str(source))
        self._peers[connection] = peer
        self._watch(peer, selectors.EVENT_READ)

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
                self.refused += reply[0] >> 7
                peer.unsent += bytes(
                    Frame(transaction=frame.transaction, unit=frame.unit, pdu=reply)
                )
                peer.requests += 1
                if peer.requests >= self._limit(peer):
                    break
        except MalformedError as error:
            self.refused += 1
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
            self.refused += 1
            self._close(peer)
            return
        wanted = 0 if peer.requests >= self._limit(peer) else selectors.EVENT_READ
        wanted |= selectors.EVENT_WRITE if peer.unsent else 0
        self._watch(peer, wanted)

    def _watch(self, peer: _Peer, wanted: int) -> None:
        if wanted == peer.watched:
            return
        if not peer.watched:
            self._selector.register(peer.connection, wanted, peer)
        elif not wanted:
            self._selector.unregister(peer.connection)
        else:
            self._selector.modify(peer.connection, wanted, peer)
        peer.watched = wanted

    def _close(self, peer: _Peer) -> None:
        self._peers.pop(peer.connection, None)
        self._watch(peer, 0)
        peer.connection.close()
        if self._writer is peer:
            self._writer = None
            self._exchange.fails(NOBODY)
