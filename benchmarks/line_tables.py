"""Writes the tables of docs/cameras.md and docs/triggers.md from the results that are kept.

    python -m benchmarks.gige_campaign --out benchmarks/results/gige_campaign.json
    python -m benchmarks.triggers --out benchmarks/results/triggers.json
    python -m benchmarks.line_tables

A table is known by its first line, and all that follows it up to the next blank line is replaced.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[1]
_RESULTS: Final = _ROOT / "benchmarks" / "results"
_ROWS: Final = {
    "undisturbed": "nothing happens",
    "killed": "its process is killed",
    "frozen": "its process is frozen",
    "unplugged": "the camera is unplugged",
    "packets lost": "5 of 1000 packets are lost",
}
_SOURCES: Final = ("software", "mqtt", "modbus", "opcua", "serial")


def campaign(found: dict[str, Any]) -> Iterator[str]:
    """What came of the parts of the fake GigE camera."""
    yield (
        "| | parts, a second | OK | NO_FRAME | ERROR | wrong frame | faults | "
        "back after, median and longest | trigger to frame p50, p99 |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    rows = [(f"{each['rate_per_s']:g} a second are tried", each) for each in found["rates_tried"]]
    for name, row in [*rows, *((_ROWS[name], row) for name, row in found["rows"].items())]:
        states = [row["states"].get(state, 0) for state in ("OK", "NO_FRAME", "ERROR")]
        back = row["back_after_s"]
        cells = [
            name,
            f"{row['parts']}, {row['rate_per_s']:g}",
            *states,
            row["wrong_frames"],
            row["faults"] or "–",
            "{:.1f} s, {:.1f} s".format(*back) if back else "–",
            "{:.0f}, {:.0f} ms".format(*times) if (times := row["trigger_to_frame_ms"]) else "–",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def latencies(found: dict[str, Any]) -> Iterator[str]:
    """How long each trigger source takes."""
    yield "| | the protocol's own client | part | frame | verdict |"
    yield "|---|---|---|---|---|"
    for kind in _SOURCES:
        one = found["sources"][kind]
        part = one.get("announced_ms") or one["named_ms"]
        cells = [one["bare_ms"], part, one.get("frame_ms"), one.get("verdict_ms")]
        yield f"| `{kind}` | {' | '.join(map(_both, cells))} |"


def _both(spread: dict[str, float] | None) -> str:
    return "–" if spread is None else f"{spread['p50']:.1f} / {spread['p99']:.0f}"


def written(text: str, table: list[str]) -> str:
    """The text with this table in place of the one with the same first line."""
    before, first, rest = text.partition(f"{table[0]}\n")
    assert first, f"no table begins with {table[0]}"
    return before + "\n".join(table) + "\n\n" + rest.partition("\n\n")[2]


def main() -> None:
    """Write both files."""
    for name, result, table in (
        ("cameras", "gige_campaign", campaign),
        ("triggers", "triggers", latencies),
    ):
        path = _ROOT / "docs" / f"{name}.md"
        found = json.loads((_RESULTS / f"{result}.json").read_text())
        path.write_text(written(path.read_text(), list(table(found))))


if __name__ == "__main__":
    main()
