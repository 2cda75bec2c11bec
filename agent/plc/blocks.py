"""What PLC and agent tell each other: one block each way, and the registers that hold it.

A block is a value; `AGENT_MAP` and `PLC_MAP` say where each of its fields lies. Text has two bytes
of UTF-8 a register, the high byte first; numbers of 32 bits have their high word first.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

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


def agent_bytes(block: AgentBlock) -> bytes:
    """The registers that the PLC reads, each with its high byte first."""
    return _packed(block, _AGENT)


def plc_bytes(block: PlcBlock) -> bytes:
    """The registers that a PLC writes, each with its high byte first."""
    return _packed(block, _PLC)


def agent_registers(block: AgentBlock) -> list[int]:
    """The registers that the PLC reads."""
    return words(agent_bytes(block))


def plc_registers(block: PlcBlock) -> list[int]:
    """The registers that a PLC writes."""
    return words(plc_bytes(block))


def agent_block(registers: Sequence[int]) -> AgentBlock:
    """What a PLC understands of the registers that it has read."""
    found = _found(register_bytes(registers), _AGENT)
    found["condition"] = Condition(found["condition"])
    found["code"] = ResultCode(found["code"])
    return AgentBlock(**found)


def plc_block(registers: Sequence[int] | bytes | bytearray) -> PlcBlock:
    """What the agent understands of what a PLC has written; any registers have a meaning."""
    data = registers if isinstance(registers, bytes | bytearray) else register_bytes(registers)
    return PlcBlock(**_found(data, _PLC))


def words(data: bytes | bytearray) -> list[int]:
    """Registers from their bytes."""
    return list(struct.unpack(f">{len(data) // 2}H", data))


def register_bytes(registers: Sequence[int]) -> bytes:
    """The bytes of registers."""
    return struct.pack(f">{len(registers)}H", *registers)


def shown_id(part_id: str) -> str:
    """A part's id as it fits into its registers."""
    return part_id.encode(errors="replace")[:ID_BYTES].decode(errors="ignore")


def text(registers: Sequence[int]) -> str:
    """The text in registers, up to the first zero byte."""
    return _text(register_bytes(registers))


def thousandths(value: float | None) -> int:
    """A score or threshold as the PLC reads it."""
    largest = (1 << 31) - 1
    return UNKNOWN if value is None else round(max(-largest, min(largest, value * 1000)))


class _Layout:
    """A block's registers as `struct` packs them: the flags are one number, texts are bytes."""

    def __init__(self, places: Sequence[Place], registers: int) -> None:
        self.flags = tuple(
            (place.field, place.bit, (1 << place.bits) - 1)
            for place in places
            if place.bit is not None
        )
        """Each with its lowest bit, and as many ones as it has bits."""
        self.fields: list[str | None] = []
        """Of each value in turn; `None`: the flags."""
        self.texts = {place.field for place in places if place.size > 2}
        form, end = ">", 0
        for place in places:
            if place.offset < end:
                continue  # one more flag
            size = 2 * place.size
            form += "xx" * (place.offset - end)
            form += f"{size}s" if place.size > 2 else "Hi"[place.size - 1]
            self.fields.append(place.field if place.bit is None else None)
            end = place.offset + place.size
        self.struct = struct.Struct(form + "xx" * (registers - end))


_AGENT: Final = _Layout(AGENT_MAP, AGENT_REGISTERS)
_PLC: Final = _Layout(PLC_MAP, PLC_REGISTERS)


def _packed(block: AgentBlock | PlcBlock, layout: _Layout) -> bytes:
    values: list[int | bytes] = []
    for name in layout.fields:
        if name is None:
            flags = 0
            for flag, bit, ones in layout.flags:
                flags |= (getattr(block, flag) & ones) << bit
            values.append(flags)
        elif name in layout.texts:
            values.append(shown_id(getattr(block, name)).encode())
        else:
            values.append(getattr(block, name))
    return layout.struct.pack(*values)


def _found(data: bytes | bytearray, layout: _Layout) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in zip(layout.fields, layout.struct.unpack(data), strict=True):
        if name is None:
            for flag, bit, ones in layout.flags:
                bits = value >> bit & ones
                found[flag] = bits if ones > 1 else bool(bits)
        else:
            found[name] = _text(value) if name in layout.texts else value
    return found


def _text(data: bytes) -> str:
    found = data.split(b"\0", 1)[0].decode(errors="replace")
    # What cannot be printed must reach no log and no topic.
    if not found.isprintable():
        found = "".join(c if c.isprintable() else "�" for c in found)
    return found.strip()
