"""What PLC and agent tell each other: one block each way, and the registers that hold it.

A block is a value; `AGENT_MAP` and `PLC_MAP` say where each of its fields lies. Text has two bytes
of UTF-8 a register, the high byte first; numbers of 32 bits have their high word first.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

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


# Both blocks are values, and nobody changes one. They are not frozen, as a frozen one takes several
# times as long to make, and a PLC has one made with each of its scans.


@dataclass(slots=True, kw_only=True)
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


@dataclass(slots=True, kw_only=True)
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
_AGENT: Final = struct.Struct(f">9H2iH4x{ID_BYTES}s")
_PLC: Final = struct.Struct(f">4H{ID_BYTES}s")


def agent_bytes(block: AgentBlock) -> bytes:
    """The registers that the PLC reads, each with its high byte first.

    The four functions say once more what the maps say, and a test compares them: whatever they
    look up costs the line more than what they compute.
    """
    flags = (
        block.ready
        | block.trigger_ack << 1
        | block.busy << 2
        | block.results_valid << 3
        | block.ok << 4
        | block.ng << 5
        | block.error << 6
        | block.overrun << 7
        | block.missed_trigger << 8
        | block.late << 9
    )
    return _AGENT.pack(
        block.heartbeat,
        flags,
        block.session,
        block.condition,
        block.held,
        block.taken,
        block.missed,
        block.count,
        block.code,
        block.score,
        block.threshold,
        block.late_ms,
        shown_id(block.part_id),
    )


def plc_bytes(block: PlcBlock) -> bytes:
    """The registers that a PLC writes, each with its high byte first."""
    flags = (
        block.trigger_enable
        | block.trigger << 1
        | block.results_ack << 2
        | (block.product & 0xFF) << 8
    )
    return _PLC.pack(block.heartbeat, flags, block.session, block.count, shown_id(block.part_id))


def agent_registers(block: AgentBlock) -> list[int]:
    """The registers that the PLC reads."""
    return words(agent_bytes(block))


def plc_registers(block: PlcBlock) -> list[int]:
    """The registers that a PLC writes."""
    return words(plc_bytes(block))


def agent_block(registers: Sequence[int]) -> AgentBlock:
    """What a PLC understands of the registers that it has read."""
    heartbeat, flags, *others, text = _AGENT.unpack(register_bytes(registers))
    session, condition, held, taken, missed, count, code, score, threshold, late_ms = others
    return AgentBlock(
        heartbeat=heartbeat,
        ready=flags & 1 > 0,
        trigger_ack=flags & 2 > 0,
        busy=flags & 4 > 0,
        results_valid=flags & 8 > 0,
        ok=flags & 16 > 0,
        ng=flags & 32 > 0,
        error=flags & 64 > 0,
        overrun=flags & 128 > 0,
        missed_trigger=flags & 256 > 0,
        late=flags & 512 > 0,
        session=session,
        condition=Condition(condition),
        held=held,
        taken=taken,
        missed=missed,
        count=count,
        code=ResultCode(code),
        score=score,
        threshold=threshold,
        late_ms=late_ms,
        part_id=_text(text),
    )


def plc_block(registers: Sequence[int] | bytes) -> PlcBlock:
    """What the agent understands of what a PLC has written; any registers have a meaning."""
    data = registers if isinstance(registers, bytes) else register_bytes(registers)
    heartbeat, flags, session, count, text = _PLC.unpack(data)
    return _plc_block(heartbeat, flags, session, count, _text(text))


def plc_block_like(block: PlcBlock, data: bytes) -> PlcBlock:
    """The same, where only heartbeat and flags are other than in `block`."""
    heartbeat, flags = data[0] << 8 | data[1], data[2] << 8 | data[3]
    return _plc_block(heartbeat, flags, block.session, block.count, block.part_id)


def _plc_block(heartbeat: int, flags: int, session: int, count: int, part_id: str) -> PlcBlock:
    return PlcBlock(
        heartbeat=heartbeat,
        trigger_enable=flags & 1 > 0,
        trigger=flags & 2 > 0,
        results_ack=flags & 4 > 0,
        session=session,
        count=count,
        part_id=part_id,
        product=flags >> 8,
    )


def words(data: bytes | bytearray) -> list[int]:
    """Registers from their bytes."""
    return list(struct.unpack(f">{len(data) // 2}H", data))


def register_bytes(registers: Sequence[int]) -> bytes:
    """The bytes of registers."""
    return struct.pack(f">{len(registers)}H", *registers)


def shown_id(part_id: str) -> bytes:
    """A part's id as it fits into its registers."""
    data = part_id.encode(errors="replace")
    return data if len(data) <= ID_BYTES else data[:ID_BYTES].decode(errors="ignore").encode()


def text(registers: Sequence[int]) -> str:
    """The text in registers, up to the first zero byte."""
    return _text(register_bytes(registers))


def thousandths(value: float | None) -> int:
    """A score or threshold as the PLC reads it."""
    largest = (1 << 31) - 1
    return UNKNOWN if value is None else round(max(-largest, min(largest, value * 1000)))


def _text(data: bytes) -> str:
    end = data.find(b"\0")
    found = (data if end < 0 else data[:end]).decode(errors="replace")
    # What cannot be printed must reach no log and no topic.
    if not found.isprintable():
        found = "".join(c if c.isprintable() else "�" for c in found)
    return found.strip()
