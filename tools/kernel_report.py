"""Registers and spills of every kernel on every architecture, as nvcc reports them, without a GPU.

Ends with 1 where a kernel spills or takes too many registers.

make builders
.venv/bin/python tools/kernel_report.py
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "engine" / "gpu" / "cuda"
ARCHITECTURES = ("75", "86", "89", "90", "120")
MOST_REGISTERS = 64
"""1024 threads of more do not fit on a multiprocessor."""
_REPORT = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\d+)'"
    r".*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One kernel on one architecture; `spilled` is in bytes, stores and loads together."""

    kernel: str
    architecture: str
    registers: int
    spilled: int


def find_nvcc() -> Path | None:
    """nvcc of the extra `nvcc`, or the one on the path."""
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / "nvcc"
    found = packaged if packaged.exists() else shutil.which("nvcc")
    return None if found is None else Path(found)


def compiled(nvcc: Path, source: Path, architectures: Sequence[str]) -> list[Compiled]:
    """Every kernel of `source` for these; raises `RuntimeError` with nvcc's words."""
    targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in architectures]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "kernels.fatbin"
        done = subprocess.run(  # noqa: S603 - the compiler that was found
            [nvcc, "-fatbin", *targets, "-fmad=false", "-Xptxas", "-v", source, "-o", output],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [
        Compiled(
            kernel=kernel,
            architecture=architecture,
            registers=int(registers),
            spilled=int(stores) + int(loads),
        )
        for kernel, architecture, stores, loads, registers in _REPORT.findall(done.stderr)
    ]


def main() -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("nvcc is not here; install it with: make builders")
    print("registers".ljust(14), *(f"sm_{each}".rjust(7) for each in ARCHITECTURES), " spilled")
    is_good = True
    for source in sorted(SOURCES.glob("*.cu")):
        found = compiled(nvcc, source, ARCHITECTURES)
        is_good &= all(not each.spilled and each.registers <= MOST_REGISTERS for each in found)
        for kernel in sorted({each.kernel for each in found}):
            row = {each.architecture: each for each in found if each.kernel == kernel}
            registers = [f"{row[each].registers:7}" for each in ARCHITECTURES]
            print(kernel.ljust(14), *registers, f"{sum(e.spilled for e in row.values()):8}")
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
