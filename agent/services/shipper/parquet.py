"""Parts as Parquet: a column for each field of an event, under its own name."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import duckdb

from agent.record.feed import to_json
from agent.record.rows import Event

_TYPES: Final[dict[object, str]] = {
    int: "BIGINT",
    float: "DOUBLE",
    bool: "BOOLEAN",
    int | None: "BIGINT",
    float | None: "DOUBLE",
}
_ABSENT: Final = frozenset({"agent_id", "passes", "thumbnail"})
"""The agent is in the object's name, and all of two passes would be half of a file."""
COLUMNS: Final = {
    **{
        field.name: _TYPES.get(field.type, "VARCHAR")
        for field in fields(Event)
        if field.name not in _ABSENT
    },
    "attention_s": "FLOAT",
    "box": "INTEGER[]",
    "passes_s": "FLOAT",
}
"""Of a file, with DuckDB's types. `box` is that of the last pass, `passes_s` the time that all of
them took; `regions` is JSON."""
_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "threads": 1,
    "memory_limit": "256MB",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def to_parquet(parts: Sequence[Event], folder: Path) -> bytes:
    """The parts as a Parquet file; `folder` has room for them for a moment.

    Raises `OSError` where it has not.
    """
    # Rows one by one, by `executemany`, take DuckDB twenty times as long as reading JSON.
    with TemporaryDirectory(dir=folder, prefix="parts-") as name:
        rows, made = Path(name, "rows.json"), Path(name, "parts.parquet")
        with rows.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(_row(part)) + "\n" for part in parts)
        with duckdb.connect(config=_SETTINGS) as database:
            found = database.read_json(str(rows), format="newline_delimited", columns=COLUMNS)
            found.write_parquet(str(made), compression="zstd")
        return made.read_bytes()


def _row(part: Event) -> dict[str, object]:
    row: dict[str, object] = {key: said for key, said in to_json(part).items() if key in COLUMNS}
    if part.passes:
        box = part.passes[-1].box
        row["box"] = [box.left, box.top, box.right, box.bottom]
        row["passes_s"] = sum(each.view_s + each.network_s for each in part.passes)
    return row
