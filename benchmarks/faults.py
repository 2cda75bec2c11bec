"""The results of `make faults` as a table for docs/delivery.md.

.venv/bin/python -m benchmarks.faults
"""

import json
import re
from pathlib import Path

_RESULTS = Path(__file__).parent / "results"
_LONG = 60


def main() -> None:
    print("| | part | seen | code |\n|---|---|---|---|")
    files = _RESULTS.glob("faults_g*.json")
    for path in sorted(files, key=lambda path: int(re.sub(r"\D", "", path.stem))):
        figure = path.stem.removeprefix("faults_").upper()
        for part, seen in json.loads(path.read_text(encoding="utf-8"))["parts"].items():
            commit = seen.pop("machine")["commit"]
            shown = ", ".join(
                f"{key.replace('_', ' ')} {value}"
                for key, value in seen.items()
                if len(str(value)) <= _LONG
            )
            print(f"| {figure} | {part} | {shown} | {commit} |")


if __name__ == "__main__":
    main()
