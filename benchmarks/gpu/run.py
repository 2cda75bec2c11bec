"""Everything that has to be seen on a GPU, in one command, without a network.

    python3 -m benchmarks.gpu.run --wheels gpu-wheels --out benchmarks/results/gpu.json

`--wheels` is a folder of wheels for what this Python lacks (pycuda, pydantic, TensorRT-RTX); they
are unpacked into a temporary folder and nothing is installed. `--dry` does the same on the CPU,
with the stand-ins of the tests and small frames: it shows that the script works, its figures say
nothing. See benchmarks/gpu/measure.py for what is measured.
"""

import argparse
import importlib
import sys
import tempfile
import zipfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="folder of wheels to unpack")
    parser.add_argument("--bundle", type=Path, default=Path("agent/demo_bundle"))
    parser.add_argument("--images", type=Path, help="folder of real images, to compare verdicts on")
    parser.add_argument("--train", type=Path, help="train the bundle from this data set instead")
    parser.add_argument("--weights", type=Path, help="of the backbone, with --train")
    parser.add_argument("--network", help="judge by the network whose name begins so: cuda")
    parser.add_argument("--repeats", type=int, default=200, help="inspections for each figure")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with stand-ins")
    parser.add_argument("--out", type=Path, help="write the results here, after each part")
    # The script starts itself with these, to try a runtime apart.
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    parser.add_argument("--plans", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dry and options.out:
        parser.error("--dry measures nothing: it has no --out")
    with tempfile.TemporaryDirectory() as folder:
        for wheel in sorted(options.wheels.glob("*.whl")) if options.wheels else ():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        sys.path.insert(0, folder)
        importlib.import_module("benchmarks.gpu.measure").main(options)


if __name__ == "__main__":
    main()
