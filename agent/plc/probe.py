"""Whether a PLC speaks Modbus as the handshake wants it, before the line needs it."""

import threading
from time import monotonic
from typing import Final

from agent.clock import SystemClock
from agent.plc.blocks import AGENT_REGISTERS, PLC_REGISTERS, PlcBlock, plc_block
from agent.plc.client import ModbusConnection
from agent.plc.exchange import Exchange
from agent.plc.handshake import HEARTBEAT_S
from agent.plc.server import NOBODY, ModbusServer
from engine.errors import SinkError

_LOOK_S: Final = 0.05
_PATIENCE_S: Final = 3.0


def probe_server(
    host: str, port: int, *, unit: int, agent_at: int, plc_at: int
) -> tuple[PlcBlock, bool]:
    """What the PLC has in its registers, and whether its heartbeat changes; writes nothing.

    Raises `SinkError` where its registers, or ours there, cannot be read.
    """
    try:
        with ModbusConnection(host, port, unit) as connection:
            connection.read(agent_at, AGENT_REGISTERS)
            first = block = plc_block(connection.read(plc_at, PLC_REGISTERS))
            until = monotonic() + HEARTBEAT_S
            while block.heartbeat == first.heartbeat and monotonic() < until:
                threading.Event().wait(_LOOK_S)
                block = plc_block(connection.read(plc_at, PLC_REGISTERS))
    except OSError as error:
        raise SinkError(f"{host}:{port}: {error.strerror or error}") from None
    return block, block.heartbeat != first.heartbeat


def probe_client(
    listen: tuple[str, int], *, allowed: tuple[str, ...], agent_at: int, plc_at: int
) -> str | None:
    """Listen as the agent would, not ready for parts; says what the PLC lacks, if anything.

    Raises `SinkError` where the port cannot be had.
    """
    exchange = Exchange(due_s=None, clock=SystemClock())
    server = ModbusServer(
        exchange, listen=listen, allowed=allowed, agent_at=agent_at, plc_at=plc_at
    )
    with server:
        until = monotonic() + _PATIENCE_S
        while (fault := exchange.fault) is not None and monotonic() < until:
            threading.Event().wait(_LOOK_S)
        if fault is not None and exchange.peers.refused:
            return "somebody else was refused: is the PLC's address in `allow`?"
    if fault != NOBODY:
        return fault
    return f"{fault} within {_PATIENCE_S:g} s: does its program run, and call this address?"
