"""Payloads of Sparkplug B in protobuf's wire format: those that an edge node sends and hears.

    Payload  1 timestamp, 2 metrics, 3 seq
    Metric   1 name, 3 timestamp, 4 datatype, 5 is_historical, 7 is_null,
             11 long_value, 13 double_value, 14 boolean_value, 15 string_value

Numbers are field numbers of the specification's schema. Written by hand, as it is so little; see
docs/adr.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

Value = bool | int | float | str | None
_VARINT: Final = 0
_FIXED_64: Final = 1
_BYTES: Final = 2
_METRICS: Final = 2
_NAME: Final = 1
_BOOLEAN_VALUE: Final = 14


class DataType(IntEnum):
    """Those of the specification that are used here."""

    INT64 = 4
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATETIME = 13
    """Milliseconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One value with its name; `time_ms` is when it was so, in UTC since 1970.

    A value of `None` is sent as null. `is_historical`: it tells of earlier, and not of now.
    """

    name: str
    datatype: DataType
    value: Value
    time_ms: int
    is_historical: bool = False


def encoded(
    metrics: tuple[Metric, ...], *, time_ms: int, seq: int | None, has_types: bool = True
) -> bytes:
    """A payload.

    Args:
        metrics: In chronological order.
        time_ms: When it is sent.
        seq: Its number in the session; `None`: a death has none.
        has_types: Whether each metric says its data type.

    Returns:
        What is published.
    """
    parts = [_number(1, time_ms)]
    parts += [_text(_METRICS, _metric(each, has_types=has_types)) for each in metrics]
    parts += [] if seq is None else [_number(3, seq)]
    return b"".join(parts)


def booleans(data: bytes) -> dict[str, bool]:
    """The Boolean metrics of a payload, by name; raises `ValueError` for what is no payload."""
    found = {}
    for number, content in _fields(data):
        if number != _METRICS:
            continue
        if not isinstance(content, bytes):
            raise ValueError("its metrics are no messages")  # noqa: TRY004 - of the sender
        metric = dict(_fields(content))
        name, value = metric.get(_NAME), metric.get(_BOOLEAN_VALUE)
        if isinstance(name, bytes) and isinstance(value, int):
            found[name.decode()] = bool(value)
    return found


def _metric(metric: Metric, *, has_types: bool) -> bytes:
    parts = [_text(_NAME, metric.name.encode(errors="replace")), _number(3, metric.time_ms)]
    parts += [_number(4, metric.datatype)] if has_types else []
    parts += [_number(5, 1)] if metric.is_historical else []
    parts.append(_number(7, 1) if metric.value is None else _value(metric))
    return b"".join(parts)


def _value(metric: Metric) -> bytes:
    match metric.datatype, metric.value:
        case ((DataType.INT64 | DataType.DATETIME), int(whole)):
            return _number(11, whole)
        case DataType.DOUBLE, (float() | int()) as real:
            return _key(13, _FIXED_64) + struct.pack("<d", real)
        case DataType.BOOLEAN, bool(truth):
            return _number(_BOOLEAN_VALUE, truth)
        case DataType.STRING, str(text):
            return _text(15, text.encode(errors="replace"))
        case datatype, value:
            raise ValueError(f"{metric.name}: {value!r} is no {datatype.name}")


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _number(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value & (1 << 64) - 1)


def _text(number: int, content: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: their numbers, and numbers or bytes as they stand there."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        match key & 7:
            case 0:  # _VARINT
                value, at = _read_varint(data, at)
                yield key >> 3, value
                continue
            case 1:  # _FIXED_64
                size = 8
            case 2:  # _BYTES
                size, at = _read_varint(data, at)
            case 5:  # 32 bits
                size = 4
            case kind:
                raise ValueError(f"protobuf has no wire type {kind} here")
        if size > len(data) - at:
            raise ValueError("it ends too early")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number has no end")
