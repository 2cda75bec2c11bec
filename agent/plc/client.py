"""The agent as a Modbus TCP client: it reads the PLC's block there, and writes its own.

Each cycle is two requests: read, write. What the PLC's program writes while it is read may be half
old: a new trigger is believed when a second reading says the same.
"""

import logging
import socket
import threading
from contextlib import suppress
from time import monotonic
from typing import Final, Self

from agent.plc.blocks import AGENT_REGISTERS, PLC_REGISTERS, PlcBlock, agent_registers, plc_block
from agent.plc.exchange import Exchange
from agent.plc.modbus import (
    Frame,
    MalformedError,
    ModbusError,
    check_written,
    frames,
    read_values,
    reading,
    writing,
)

_LOG: Final = logging.getLogger("atac_agent.plc")
_ANSWER_S: Final = 1.0
_RETRY_S: Final = 0.5
_JOIN_S: Final = 5.0
_EXCEPTIONS: Final = {
    1: "it does not know the function",
    2: "it has no such registers",
    3: "it does not take this many registers",
    4: "it has failed",
    6: "it is busy",
}


class ModbusConnection:
    """A connection to a Modbus TCP server; a context manager. All it raises is `OSError`."""

    def __init__(self, host: str, port: int, unit: int) -> None:
        self._address, self._unit = (host, port), unit
        self._transaction = 0
        self._received = bytearray()

    def __enter__(self) -> Self:
        self._socket = socket.create_connection(self._address, _ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def read(self, start: int, count: int) -> list[int]:
        """Holding registers."""
        try:
            return read_values(self._asked(reading(start, count)), count)
        except (ModbusError, MalformedError) as error:
            raise OSError(f"reading {count} registers at {start}: {_why(error)}") from None

    def write(self, start: int, values: list[int]) -> None:
        """Holding registers, in one request."""
        try:
            check_written(self._asked(writing(start, values)), start, len(values))
        except (ModbusError, MalformedError) as error:
            raise OSError(f"writing {len(values)} registers at {start}: {_why(error)}") from None

    def _asked(self, pdu: bytes) -> bytes:
        self._transaction = (self._transaction + 1) & 0xFFFF
        frame = Frame(transaction=self._transaction, unit=self._unit, pdu=pdu)
        self._socket.sendall(bytes(frame))
        until = monotonic() + _ANSWER_S
        while True:
            for found in frames(self._received):
                if found.transaction == self._transaction:
                    return found.pdu
            if (left_s := until - monotonic()) <= 0:
                raise TimeoutError("no answer among what it says")
            self._socket.settimeout(left_s)
            data = self._socket.recv(4096)
            if not data:
                raise ConnectionError("the connection was closed")
            self._received += data


class ModbusClient:
    """Carries `exchange` to a PLC that is a server; a context manager with a thread of its own.

    Args:
        exchange: What the PLC's registers mean, and what is written there.
        host: The PLC.
        port: Its port.
        unit: Its unit, for gateways.
        agent_at: The first register of the agent's block.
        plc_at: The first register of the PLC's block.
        every_s: From one cycle to the next.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        host: str,
        port: int,
        unit: int,
        agent_at: int,
        plc_at: int,
        every_s: float,
    ) -> None:
        self._exchange = exchange
        self._host, self._port, self._unit = host, port, unit
        self._agent_at, self._plc_at = agent_at, plc_at
        self._every_s = every_s
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atac-plc", daemon=True)

    def __enter__(self) -> Self:
        self._exchange.fails(f"{self._host}:{self._port}: not connected yet")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._leaving.is_set():
            try:
                self._converse()
            except (OSError, MalformedError) as error:
                why = getattr(error, "strerror", None) or str(error) or "no answer"
                self._exchange.fails(f"{self._host}:{self._port}: {why}")
                self._leaving.wait(_RETRY_S)
            except Exception as error:
                self._exchange.fails(f"the thread that serves the PLC has died: {error}")
                _LOG.exception("the thread that serves the PLC has died")
                raise

    def _converse(self) -> None:
        with ModbusConnection(self._host, self._port, self._unit) as connection:
            before = PlcBlock()
            while not self._leaving.is_set():
                begun = monotonic()
                before = self._hear(connection, before)
                block = self._exchange.block()
                connection.write(self._agent_at, agent_registers(block))
                self._exchange.seen(block)
                self._exchange.fails(None)
                self._leaving.wait(max(0.0, begun + self._every_s - monotonic()))
            with suppress(OSError):  # a PLC that has gone need not be told that we go
                connection.write(self._agent_at, [0] * AGENT_REGISTERS)

    def _hear(self, connection: ModbusConnection, before: PlcBlock) -> PlcBlock:
        """Read what the PLC says, twice where a trigger is new; gives what was believed."""
        heard = plc_block(connection.read(self._plc_at, PLC_REGISTERS))
        if heard.trigger and not before.trigger:
            again = plc_block(connection.read(self._plc_at, PLC_REGISTERS))
            if _part(heard) != _part(again):
                return before
            heard = again
        self._exchange.heard(heard)
        return heard


def _part(block: PlcBlock) -> tuple[object, ...]:
    return block.trigger, block.session, block.count, block.part_id, block.product


def _why(error: ModbusError | MalformedError) -> str:
    if isinstance(error, ModbusError):
        return _EXCEPTIONS.get(error.code, f"exception {error.code}")
    return str(error)
