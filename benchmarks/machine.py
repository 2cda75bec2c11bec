"""On what machine, with which code, a figure was made."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("numpy", "onnxruntime", "opencv-python-headless", "paho-mqtt", "pillow", "torch")
_EXTRAS = ("onnxruntime-gpu", "openvino")


def described() -> dict[str, object]:
    """Processor, cores, memory, versions and commit of this run."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "vector": [
            name for name in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if name in flags
        ],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": extras(_LIBRARIES) | extras(),
        "commit": commit(),
    }


def extras(names: tuple[str, ...] = _EXTRAS) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def processor() -> str:
    return next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )


def write_result(result: Mapping[str, Any], out: Path | None) -> None:
    """Print a result as JSON; keep it in `out` too."""
    text = json.dumps(result, indent=2)
    print(text)
    if out is not None:
        out.write_text(f"{text}\n", encoding="utf-8")


def commit() -> str:
    """The commit of the code, or of a copy without its history the hash of its sources."""
    try:
        return _described_commit()
    except (OSError, subprocess.CalledProcessError):
        return f"sources {sources()}"


def sources() -> str:
    """A hash of all Python and CUDA sources, by which a copy is known without git."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("agent", "benchmarks", "calibration", "engine", "train"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".cu", ".h"}:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _described_commit() -> str:
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()


def resident_mb(process: int | str | None) -> float:
    """The resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_s(*processes: int | str | None) -> float:
    """The processor time that processes have used so far, in seconds."""
    ticks = 0
    for process in processes:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        fields = text.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
