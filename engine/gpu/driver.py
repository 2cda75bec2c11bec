"""NVIDIA's driver, asked through ctypes before any library that would crash without it."""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import BackendError

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
_NO_DEVICE: Final = 100
_REMEDY: Final = "or run on the CPU with bundle.backend: onnxruntime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU: its name, its compute capability (`8.6`), and the CUDA version of its driver."""

    name: str
    capability: str
    driver: str


def load_driver() -> Any:
    """The driver's library; raises `BackendError` where none is installed."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise BackendError(
            f"no NVIDIA driver here ({_LIBRARY} cannot be loaded); install it, {_REMEDY}"
        ) from error


def probe_gpu(driver: Any | None = None) -> Gpu:
    """The machine's first GPU; `driver` is `load_driver`'s answer, or a stand-in.

    Raises `BackendError` when there is no driver, no GPU, or the driver fails.
    """
    driver = driver or load_driver()
    _check(driver.cuInit(0), "cuInit")
    version, device, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    _check(driver.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    _check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _check(driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    for attribute, value in ((_MAJOR, major), (_MINOR, minor)):
        _check(
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device),
            "cuDeviceGetAttribute",
        )
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=f"{major.value}.{minor.value}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _check(code: int, call: str) -> None:
    if code == _NO_DEVICE:
        raise BackendError(f"the NVIDIA driver finds no GPU here; add one, {_REMEDY}")
    if code:
        raise BackendError(
            f"the NVIDIA driver failed ({call} answered {code}); see nvidia-smi, {_REMEDY}"
        )
