"""Modbus TCP as bytes: frames, requests and answers; no sockets.

    | transaction 2 | protocol 2 = 0 | length 2 | unit 1 | function 1 | … |

Holding registers alone: functions 3, 4, 6, 16 and 23. What is not a frame cannot be resynchronised,
and ends the connection; a request that cannot be obeyed gets an exception code.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

_HEAD: Final = struct.Struct(">HHHB")
_TWO: Final = struct.Struct(">HH")
_FOUR: Final = struct.Struct(">HHHH")
LONGEST: Final = 260
"""A frame, in bytes."""
MOST_READ: Final = 125
MOST_WRITTEN: Final = 123
READ_HOLDING: Final = 3
WRITE: Final = 16
READ_AND_WRITE: Final = 23
_MOST_WRITTEN_OF_BOTH: Final = 121

ILLEGAL_FUNCTION: Final = 1
ILLEGAL_ADDRESS: Final = 2
ILLEGAL_VALUE: Final = 3
BUSY: Final = 6


class MalformedError(ValueError):
    """These bytes are not Modbus TCP."""


class ModbusError(Exception):
    """A request is refused with an exception `code`."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"exception {code}")


class Registers(Protocol):
    """What a server has, two bytes each, the high one first.

    Both raise `ModbusError` where there are no such registers.
    """

    def read(self, start: int, count: int) -> bytes: ...
    def write(self, start: int, data: bytes) -> None: ...


class Frame(NamedTuple):
    """One request or answer."""

    transaction: int
    unit: int
    pdu: bytes

    def __bytes__(self) -> bytes:
        return _HEAD.pack(self.transaction, 0, len(self.pdu) + 1, self.unit) + self.pdu


def frames(received: bytearray) -> Iterator[Frame]:
    """Take the complete frames from what was received; raises `MalformedError`."""
    while len(received) >= _HEAD.size:
        transaction, protocol, length, unit = _HEAD.unpack_from(received)
        if protocol or not 2 <= length <= LONGEST - 6:
            raise MalformedError(f"protocol {protocol}, length {length}")
        end = _HEAD.size - 1 + length
        if len(received) < end:
            return
        pdu = bytes(received[_HEAD.size : end])
        del received[:end]
        yield Frame(transaction=transaction, unit=unit, pdu=pdu)


def answer(pdu: bytes, registers: Registers) -> bytes:
    """The answer to the request in `pdu`, which may be any bytes."""
    try:
        return _answer(pdu, registers)
    except ModbusError as error:
        return bytes((pdu[0] | 0x80, error.code))


def reading(start: int, count: int) -> bytes:
    """The request for registers."""
    return struct.pack(">BHH", READ_HOLDING, start, count)


def writing(start: int, values: Sequence[int]) -> bytes:
    """The request that writes registers."""
    count = len(values)
    return struct.pack(f">BHHB{count}H", WRITE, start, count, 2 * count, *values)


def read_values(pdu: bytes, count: int) -> list[int]:
    """The registers of an answer to `reading`; raises `ModbusError` or `MalformedError`."""
    _check_answer(pdu, READ_HOLDING)
    if len(pdu) != 2 + 2 * count or pdu[1] != 2 * count:
        raise MalformedError("an answer of another length")
    return list(struct.unpack_from(f">{count}H", pdu, 2))


def check_written(pdu: bytes, start: int, count: int) -> None:
    """Check the answer to `writing`; raises `ModbusError` or `MalformedError`."""
    _check_answer(pdu, WRITE)
    if pdu[1:] != _TWO.pack(start, count):
        raise MalformedError("an answer to another request")


def _answer(pdu: bytes, registers: Registers) -> bytes:
    function, body = pdu[0], pdu[1:]
    match function:
        case 3 | 4:
            start, count = _words(body, _TWO)
            return _values(function, _read(registers, start, count))
        case 6:
            start, _ = _words(body, _TWO)
            registers.write(start, body[2:])
            return pdu
        case 16:
            start, count = _words(body[:4], _TWO)
            registers.write(start, _written(body[4:], count, MOST_WRITTEN))
            return pdu[:5]
        case 23:
            start, count, into, written = _words(body[:8], _FOUR)
            data = _written(body[8:], written, _MOST_WRITTEN_OF_BOTH)
            _check(count, MOST_READ)
            registers.write(into, data)
            return _values(function, _read(registers, start, count))
        case _:
            raise ModbusError(ILLEGAL_FUNCTION)


def _check_answer(pdu: bytes, function: int) -> None:
    if pdu[0] == function | 0x80 and len(pdu) > 1:
        raise ModbusError(pdu[1])
    if pdu[0] != function:
        raise MalformedError("an answer to another request")


def _read(registers: Registers, start: int, count: int) -> bytes:
    _check(count, MOST_READ)
    return registers.read(start, count)


def _check(count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ModbusError(ILLEGAL_VALUE)


def _values(function: int, data: bytes) -> bytes:
    return bytes((function, len(data))) + data


def _written(body: bytes, count: int, most: int) -> bytes:
    _check(count, most)
    if not body or body[0] != 2 * count or len(body) != 1 + 2 * count:
        raise ModbusError(ILLEGAL_VALUE)
    return body[1:]


def _words(body: bytes, form: struct.Struct) -> tuple[int, ...]:
    if len(body) != form.size:
        raise ModbusError(ILLEGAL_VALUE)
    return form.unpack(body)
