"""The figures G1 to G12 of docs/delivery.md: short by default, complete with `--faults-full`.

A complete run keeps what it saw in `benchmarks/results/faults_<figure>.json`, with the machine's
description; a short one does the same below `build/faults/`.
"""

import json
from pathlib import Path

import pytest

from benchmarks.machine import described

_ROOT = Path(__file__).parents[2]


def pytest_addoption(parser):
    parser.addoption(
        "--faults-full", action="store_true", help="figures at their full length (hours)"
    )
    parser.addoption(
        "--faults-bundle", type=Path, help="a bundle of agent train, for G10 on a line's network"
    )


@pytest.fixture(scope="session")
def is_full(pytestconfig) -> bool:
    """Whether the figures are to be shown at full length."""
    # This file is read late when the whole suite runs: then the option does not exist.
    return bool(pytestconfig.getoption("--faults-full", default=False))


@pytest.fixture(scope="session")
def record(is_full):
    """`record("g7", "camera", cycles=100, …)` keeps what one part of a figure has shown."""
    folder = _ROOT / "benchmarks" / "results" if is_full else _ROOT / "build" / "faults"

    def keep(figure: str, part: str, **seen: object) -> None:
        path = folder / f"faults_{figure}.json"
        folder.mkdir(parents=True, exist_ok=True)
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.is_file() else {}
        parts[part] = {"machine": described(), **seen}
        text = json.dumps({"command": "make faults", "parts": parts}, indent=2, ensure_ascii=False)
        path.write_text(f"{text}\n", encoding="utf-8")

    return keep
