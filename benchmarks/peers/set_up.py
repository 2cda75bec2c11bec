"""What `benchmarks.peers` compares: an environment of their own for the peers, and the models.

    python -m benchmarks.peers.set_up --bundle runs/real_line/mvtec_bottle/bundle \
        --data ../shared/data/mvtec_bottle

Needs about 3 GB below `build/peers`. What cannot be installed or exported is written to
`exports.json` with the line that says why, and the rest goes on. The bundle is copied there and
gets an int8 network, as `agent export` makes it, where it has none.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.turns import EXPORTS, PEERS, told
from engine.bundle import open_bundle
from train.datasets import find_source
from train.export.gate import add_precision

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="this product's")
    parser.add_argument("--data", type=Path, required=True, help="what the bundle was trained on")
    parser.add_argument("--out", type=Path, default=PEERS)
    options = parser.parse_args()
    out, data = options.out.resolve(), options.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    copy_bundle(options.bundle, data, out / "bundle")
    python = out / "venv" / "bin" / "python"
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
            missing[group] = told(installed.stderr.strip().splitlines()[-1])
    good = data / "train" / "good"
    done = subprocess.run(
        [python, "-m", "benchmarks.peers.export", "--good", good, "--out", out],
        cwd=HERE.parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = {"exported": [], "missing": {}}
    if done.returncode:
        missing["export.py"] = f"ended with {done.returncode}"
    else:
        found = json.loads(done.stdout.splitlines()[-1])
    found["missing"] = missing | found["missing"]
    (out / EXPORTS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def copy_bundle(source: Path, data: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    bundle = open_bundle(target)
    if "int8" not in bundle.manifest.networks:
        add_precision(bundle, "int8", find_source(data, None, None))


if __name__ == "__main__":
    main()
