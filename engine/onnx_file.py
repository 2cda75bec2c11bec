"""What an ONNX file says of other files; read without the package `onnx`, which no device needs.

A tensor may name a file, a place in it and a length in place of its values. Runtimes open such a
file by themselves, at an absolute path or in the working directory, and no manifest has its hash.
"""

from collections.abc import Iterator
from typing import Final

_Below = dict[int, "_Below"]

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_TENSOR: Final[_Below] = {_EXTERNAL_DATA: {}, _DATA_LOCATION: {}}
_SPARSE_TENSOR: Final[_Below] = {1: _TENSOR, 2: _TENSOR}
_ATTRIBUTE: Final[_Below] = {5: _TENSOR, 10: _TENSOR, 22: _SPARSE_TENSOR, 23: _SPARSE_TENSOR}
_NODE: Final[_Below] = {5: _ATTRIBUTE}
_GRAPH: Final[_Below] = {1: _NODE, 5: _TENSOR, 15: _SPARSE_TENSOR}
_ATTRIBUTE.update({6: _GRAPH, 11: _GRAPH})
_MODEL: Final[_Below] = {7: _GRAPH, 20: {1: _GRAPH, 2: _GRAPH}, 25: {7: _NODE, 11: _ATTRIBUTE}}
"""The fields of ONNX's messages, by their numbers, in which tensors can be."""

_MOST_BITS: Final = 70
_MOST_LEVELS: Final = 100


def names_other_files(model: bytes) -> bool:
    """Whether a tensor of this model has its values elsewhere; `ValueError`: this is no ONNX."""
    waiting = [(memoryview(model), _MODEL, 0)]
    while waiting:
        message, below, level = waiting.pop()
        if level > _MOST_LEVELS:
            raise ValueError("is nested too deeply")
        for field, value in _fields(message):
            if field not in below:
                continue
            if below is _TENSOR:
                if field == _EXTERNAL_DATA or value:
                    return True
            elif isinstance(value, memoryview):
                waiting.append((value, below[field], level + 1))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The numbers and values of a message's fields: integers, or the bytes of all that is none."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag >> 3, value
                continue
            case 1:
                length = 8
            case 5:
                length = 4
            case 2:
                length, at = _varint(message, at)
            case kind:
                raise ValueError(f"has a field of the unknown kind {kind}")
        if at + length > len(message):
            raise ValueError("ends too early")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < _MOST_BITS:
        if at == len(message):
            raise ValueError("ends too early")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("has a number that is too long")
