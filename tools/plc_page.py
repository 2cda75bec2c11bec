"""Draws the timing diagram of docs/plc.md from the state machine itself, and its register tables.

    python tools/plc_page.py

In the diagram a PLC writes what `STEPS` say, a scan apart, and reads what the handshake answers.
"""

import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Final

from agent.plc.blocks import (
    AGENT_MAP,
    PLC_MAP,
    AgentBlock,
    Condition,
    Place,
    PlcBlock,
    ResultCode,
)
from agent.plc.handshake import Handshake, Result

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "plc.md"
PICTURE: Final = ROOT / "docs" / "pictures" / "plc.svg"
ROWS: Final = (
    ("PLC", "trigger_enable", "TriggerEnable"),
    ("PLC", "count", "trigger count"),
    ("PLC", "trigger", "Trigger"),
    ("PLC", "results_ack", "ResultsAck"),
    ("agent", "ready", "Ready"),
    ("agent", "trigger_ack", "TriggerAck"),
    ("agent", "missed_trigger", "MissedTrigger"),
    ("agent", "busy", "Busy"),
    ("agent", "result", "result's count"),
    ("agent", "results_valid", "ResultsValid"),
    ("agent", "ok", "OK"),
    ("agent", "ng", "NG"),
)
GOOD: Final = Result(code=ResultCode.OK, score=0, threshold=0)
BAD: Final = Result(code=ResultCode.NG, score=0, threshold=0)
STEPS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"trigger_enable": True},
    {"count": 1},
    {"trigger": True},
    {"trigger": False},
    {"count": 2},
    {"trigger": True},
    {"trigger": False, "ends": (1, GOOD)},
    {},
    {"results_ack": True},
    {"ends": (2, BAD), "results_ack": False},
    {},
    {},
    {"results_ack": True},
    {"results_ack": False},
    {"unready": Condition.PAUSED},
    {"count": 3},
    {"trigger": True},
    {"trigger": False},
    {"unready": None},
    {},
)
NOTES: Final = (
    (3.0, "trigger 1"),
    (6.0, "trigger 2"),
    (8.0, "result 1: OK"),
    (11.0, "result 2: NG"),
    (15.0, "paused"),
    (17.0, "trigger 3 is missed"),
)
_LEFT, _STEP, _ROW, _HIGH, _TOP = 130, 36, 30, 16, 46


def steps() -> list[dict[str, object]]:
    """What each signal is, step by step."""
    handshake, plc = Handshake(), PlcBlock(session=1)
    handshake.heard(plc, 0.0)
    handshake.heard(plc := replace(plc, session=2), 0.01)
    found = []
    for number, step in enumerate(STEPS):
        now, signals = 0.1 + 0.01 * number, dict(step)
        if "unready" in signals:
            handshake.unready = signals.pop("unready")
        ends = signals.pop("ends", None)
        plc = replace(plc, heartbeat=number, **signals)
        handshake.heard(plc, now)
        if ends is not None:
            handshake.offer(*ends, now)
        block = handshake.block(now)
        handshake.seen(block)
        found.append(_signals(plc, block))
    return found


def _signals(plc: PlcBlock, block: AgentBlock) -> dict[str, object]:
    return {
        name: block.count if name == "result" else getattr(plc if side == "PLC" else block, name)
        for side, name, _ in ROWS
    }


def svg() -> str:
    """The picture."""
    found = steps()
    width = _LEFT + _STEP * len(found) + 10
    height = _TOP + _ROW * len(ROWS) + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="12">',
        "<title>The handshake between a PLC and the agent</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for step, note in NOTES:
        x = _LEFT + _STEP * step
        lines.append(
            f'<path d="M{x:g} {_TOP - 16}V{height - 34}" stroke="#bbb" stroke-dasharray="3 3"/>'
            f'<text x="{x + 3:g}" y="{_TOP - 20}" fill="#555" font-size="11">{escape(note)}</text>'
        )
    for row, (side, name, title) in enumerate(ROWS):
        y = _TOP + _ROW * row + _HIGH
        colour = "#0b5394" if side == "PLC" else "#a64d00"
        lines.append(f'<text x="8" y="{y}" fill="{colour}">{escape(title)}</text>')
        values = [each[name] for each in found]
        is_level = isinstance(values[0], bool)
        draw = _level if is_level else _numbers
        lines.append(draw(values, y, colour))
    foot = height - 12
    lines += [
        f'<text x="8" y="{foot}" fill="#0b5394">■ written by the PLC</text>',
        f'<text x="{_LEFT + 20}" y="{foot}" fill="#a64d00">■ written by the agent</text>',
        f'<text x="{_LEFT + 190}" y="{foot}" fill="#555">one step is one scan of the PLC</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _level(values: list[Any], y: int, colour: str) -> str:
    path = f"M{_LEFT} {y - _HIGH * values[0]}"
    for number, value in enumerate(values):
        path += f"V{y - _HIGH * value}H{_LEFT + _STEP * (number + 1)}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _numbers(values: list[Any], y: int, colour: str) -> str:
    drawn, start = [], 0
    for number in range(1, len(values) + 1):
        if number < len(values) and values[number] == values[start]:
            continue
        left, right = _LEFT + _STEP * start, _LEFT + _STEP * number
        drawn.append(
            f'<rect x="{left}" y="{y - _HIGH}" width="{right - left}" height="{_HIGH}" '
            f'fill="none" stroke="{colour}"/>'
        )
        if values[start]:
            x = (left + right) / 2
            drawn.append(
                f'<text x="{x:g}" y="{y - 4}" text-anchor="middle" fill="{colour}">'
                f"{values[start]}</text>"
            )
        start = number
    return "".join(drawn)


def table(places: tuple[Place, ...]) -> str:
    """One block as a table."""
    rows = ["| register | bit | content |", "|---|---|---|"]
    for place in places:
        last = place.offset + place.size - 1
        register = f"+{place.offset}" if place.size == 1 else f"+{place.offset} … +{last}"
        bit = "" if place.bit is None else str(place.bit)
        if place.bits > 1:
            bit += f" … {int(bit) + place.bits - 1}"
        rows.append(f"| {register} | {bit} | {place.meaning} |")
    return "\n".join(rows)


def codes(kind: type[Condition | ResultCode]) -> str:
    """The numbers of an enumeration."""
    return ", ".join(f"{each.value} {each.name}" for each in kind)


def page(text: str) -> str:
    """The page with the present tables and numbers."""
    tables = iter((table(AGENT_MAP), table(PLC_MAP)))
    text = re.sub(r"\| register \| bit .*?(?=\n\n)", lambda _: next(tables), text, flags=re.DOTALL)
    text = re.sub(r"(?<=condition \(\+3\): ).*", f"{codes(Condition)}.", text)
    return re.sub(r"(?<=result code \(\+8\): ).*", f"{codes(ResultCode)}.", text)


if __name__ == "__main__":
    PICTURE.write_text(svg())
    PAGE.write_text(page(PAGE.read_text()))
