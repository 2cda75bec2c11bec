"""An environment of their own for the peers, and their models as OpenVINO files.

    python -m benchmarks.peers.set_up --images ../shared/data/mvtec_bottle/test

Needs about 2 GB below `build/peers`. What cannot be installed or exported is written to
`exports.json` with the line that says why, and the rest goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

PEERS = Path("build/peers")
EXPORTS = "exports.json"
SIDE = 256
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="for the ranges of int8")
    parser.add_argument("--out", type=Path, default=PEERS)
    options = parser.parse_args()
    python = options.out / "venv" / "bin" / "python"
    options.out.mkdir(parents=True, exist_ok=True)
    missing = {}
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    for group in ("requirements.txt", "requirements-int8.txt"):
        installed = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "-r", HERE / group],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode:
            missing[group] = installed.stderr.strip().splitlines()[-1]
    arguments = ["--images", options.images, "--out", options.out, "--side", str(SIDE)]
    done = subprocess.run(
        [python, HERE / "export.py", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    found = {"exported": [], "missing": {}}
    if done.returncode:
        missing["export.py"] = f"ended with {done.returncode}"
    else:
        found = json.loads(done.stdout.splitlines()[-1])
    found["missing"] = missing | found["missing"]
    (options.out / EXPORTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
