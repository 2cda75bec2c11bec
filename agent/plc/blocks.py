"""What PLC and agent tell each other: one block each way, and the registers that hold it.

A block is a value; `AGENT_MAP` and `PLC_MAP` say where each of its fields lies. Text has two bytes
of UTF-8 a register, the high byte first; numbers of 32 bits have their high word first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Final, TypeVar

ID_REGISTERS: Final = 16
ID_BYTES: Final = 2 * ID_REGISTERS
LARGEST: Final = 0xFFFF
UNKNOWN: Final = -(1 << 31)
"""Stands for a score or threshold that a part does not have."""


class Condition(IntEnum):
    """Why the agent is not ready, or that it is."""

    READY = 1
    NO_SESSION = 2
    NO_HEARTBEAT = 3
    DISABLED = 4
    PAUSED = 5
    FAULT = 6
    OVERRUN = 7
    STOPPING = 8


class ResultCode(IntEnum):
    """How a part ended; all but OK assert NG, and those above NG also Error."""

    NONE = 0
    OK = 1
    NG = 2
    TIMEOUT = 3
    DROPPED = 4
    NO_FRAME = 5
    ERROR = 6
    LATE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class PlcBlock:
    """What the PLC writes."""

    heartbeat: int = 0
    trigger_enable: bool = False
    trigger: bool = False
    results_ack: bool = False
    session: int = 0
    count: int = 0
    part_id: str = ""
    product: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBlock:
    """What the agent shows."""

    heartbeat: int = 0
    ready: bool = False
    trigger_ack: bool = False
    busy: bool = False
    results_valid: bool = False
    ok: bool = False
    ng: bool = False
    error: bool = False
    overrun: bool = False
    missed_trigger: bool = False
    late: bool = False
    session: int = 0
    condition: Condition = Condition.NO_SESSION
    held: int = 0
    taken: int = 0
    missed: int = 0
    count: int = 0
    code: ResultCode = ResultCode.NONE
    score: int = UNKNOWN
    threshold: int = UNKNOWN
    late_ms: int = 0
    part_id: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field lies: `offset` and `size` in registers, or `bits` of one from `bit` on."""

    field: str
    offset: int
    meaning: str
    size: int = 1
    bit: int | None = None
    bits: int = 1


AGENT_MAP: Final = (
    Place("heartbeat", 0, "heartbeat: counts up twice a second"),
    Place("ready", 1, "Ready: a trigger will be taken", bit=0),
    Place("trigger_ack", 1, "TriggerAck: the trigger was taken; falls with Trigger", bit=1),
    Place("busy", 1, "Busy: a part that was taken has no result yet", bit=2),
    Place("results_valid", 1, "ResultsValid: the result below is to be read", bit=3),
    Place("ok", 1, "OK: the part is good; only with ResultsValid", bit=4),
    Place("ng", 1, "NG: reject the part; only with ResultsValid", bit=5),
    Place("error", 1, "Error: the part was not inspected; NG is set too", bit=6),
    Place("overrun", 1, "Overrun: 8 results wait for ResultsAck", bit=7),
    Place("missed_trigger", 1, "MissedTrigger: not taken; falls with Trigger", bit=8),
    Place("late", 1, "Late: the result came after its time; NG is set too", bit=9),
    Place("session", 2, "session that the agent is in; 0: none"),
    Place("condition", 3, "condition: why Ready is low, or that it is high"),
    Place("held", 4, "results that wait for ResultsAck"),
    Place("taken", 5, "triggers taken in this session"),
    Place("missed", 6, "triggers missed in this session"),
    Place("count", 7, "result: the part's trigger count"),
    Place("code", 8, "result code: how the part ended"),
    Place("score", 9, "result: score × 1000, signed", size=2),
    Place("threshold", 11, "result: threshold × 1000, signed", size=2),
    Place("late_ms", 13, "result: by how many ms it came late"),
    Place("part_id", 16, "result: the part's id", size=ID_REGISTERS),
)
PLC_MAP: Final = (
    Place("heartbeat", 0, "heartbeat: changes at least once a second"),
    Place("trigger_enable", 1, "TriggerEnable: triggers may come", bit=0),
    Place("trigger", 1, "Trigger: a part is there; until TriggerAck or MissedTrigger", bit=1),
    Place("results_ack", 1, "ResultsAck: the result was read; until ResultsValid falls", bit=2),
    Place("product", 1, "number of the part's product; 0: not said", bit=8, bits=8),
    Place("session", 2, "session: the PLC's number for it, 1 to 65 535"),
    Place("count", 3, "count: one more with each part"),
    Place("part_id", 4, "part id; all 0 where there is none", size=ID_REGISTERS),
)
AGENT_REGISTERS: Final = 32
PLC_REGISTERS: Final = 20
FLAGS: Final = 1
"""The register of all flags, in both blocks."""

Block = TypeVar("Block", AgentBlock, PlcBlock)


def agent_registers(block: AgentBlock) -> list[int]:
    """The registers that the PLC reads."""
    return _registers(block, AGENT_MAP, AGENT_REGISTERS)


def plc_registers(block: PlcBlock) -> list[int]:
    """The registers that a PLC writes."""
    return _registers(block, PLC_MAP, PLC_REGISTERS)


def agent_block(registers: Sequence[int]) -> AgentBlock:
    """What a PLC understands of the registers that it has read."""
    found = dict(_found(registers, AGENT_MAP, AgentBlock))
    found["condition"] = Condition(found["condition"])
    found["code"] = ResultCode(found["code"])
    return AgentBlock(**found)


def plc_block(registers: Sequence[int]) -> PlcBlock:
    """What the agent understands of what a PLC has written; any registers have a meaning."""
    return PlcBlock(**dict(_found(registers, PLC_MAP, PlcBlock)))


def shown_id(part_id: str) -> str:
    """A part's id as it fits into its registers."""
    return part_id.encode(errors="replace")[:ID_BYTES].decode(errors="ignore")


def text(registers: Sequence[int]) -> str:
    """The text in registers, up to the first zero byte."""
    data = b"".join(each.to_bytes(2) for each in registers)
    found = data.split(b"\0")[0].decode(errors="replace")
    # What cannot be printed must reach no log and no topic.
    return "".join(c if c.isprintable() else "�" for c in found).strip()


def thousandths(value: float | None) -> int:
    """A score or threshold as the PLC reads it."""
    largest = (1 << 31) - 1
    return UNKNOWN if value is None else round(max(-largest, min(largest, value * 1000)))


def _registers(block: AgentBlock | PlcBlock, places: Sequence[Place], size: int) -> list[int]:
    registers = [0] * size
    for place in places:
        value = getattr(block, place.field)
        if place.bit is not None:
            registers[place.offset] |= (int(value) & _ones(place)) << place.bit
        elif isinstance(value, str):
            data = shown_id(value).encode().ljust(2 * place.size, b"\0")
            for index in range(place.size):
                pair = data[2 * index : 2 * index + 2]
                registers[place.offset + index] = int.from_bytes(pair)
        else:
            bits = int(value) & ((1 << 16 * place.size) - 1)
            for index in range(place.size):
                shift = 16 * (place.size - 1 - index)
                registers[place.offset + index] = bits >> shift & LARGEST
    return registers


def _ones(place: Place) -> int:
    return (1 << place.bits) - 1


def _found(
    registers: Sequence[int], places: Sequence[Place], kind: type[Block]
) -> Iterator[tuple[str, Any]]:
    texts = {field.name for field in fields(kind) if field.type is str}
    for place in places:
        raw = registers[place.offset : place.offset + place.size]
        if place.bit is not None:
            found = raw[0] >> place.bit & _ones(place)
            yield place.field, found if place.bits > 1 else bool(found)
        elif place.field in texts:
            yield place.field, text(raw)
        elif place.size == 2:
            value = raw[0] << 16 | raw[1]
            yield place.field, value - (1 << 32) if value >> 31 else value
        else:
            yield place.field, raw[0]
