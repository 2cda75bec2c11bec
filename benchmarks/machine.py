"""On what machine, with which code, a figure was made."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

_LIBRARIES = ("numpy", "onnxruntime", "opencv-python-headless", "paho-mqtt", "pillow", "torch")


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
        "versions": {name: version(name) for name in _LIBRARIES},
        "commit": commit(),
    }


def processor() -> str:
    return next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )


def commit() -> str:
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
