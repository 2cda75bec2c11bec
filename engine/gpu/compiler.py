"""The kernels of `cuda/` → machine code for one GPU, by NVRTC; needs no GPU and no nvcc."""

import ctypes
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from engine.errors import BackendError
from engine.gpu.driver import Gpu

SOURCES: Final = Path(__file__).with_name("cuda")
_MAJORS: Final = (13, 12)
_HEADERS: Final = {
    # NVRTC has the functions of math.h built in, and no system headers.
    b"math.h": b"",
    b"stdint.h": (
        b"typedef unsigned char uint8_t; typedef int int32_t; typedef unsigned int uint32_t;\n"
        b"typedef long long int64_t;\n"
    ),
}
# The rounding is the CPU's only where a·b+c is not contracted.
_OPTIONS: Final = ("--std=c++17", "--fmad=false")


def load_compiler(driver: str) -> Any:
    """NVRTC, of the CUDA toolkit or of a package; raises `BackendError` where there is none.

    A driver for CUDA `driver` (`13.0`) loads no code that a later major version has made.
    """
    majors = [major for major in _MAJORS if major <= int(driver.partition(".")[0])]
    for place in _places([f"libnvrtc.so.{major}" for major in majors]):
        try:
            # What NVRTC opens by name later is found once it is loaded: packages name no path.
            if place.is_absolute():
                for part in sorted(place.parent.glob("libnvrtc-builtins.so.*")):
                    ctypes.CDLL(str(part))
            return ctypes.CDLL(str(place))
        except OSError:
            continue
    known = " or ".join(map(str, majors)) or f"not newer than {driver}"
    raise BackendError(
        f"NVRTC for CUDA {known} cannot be loaded; install the CUDA toolkit, or: "
        f"pip install {'nvidia-cuda-nvrtc-cu12' if 13 not in majors else 'nvidia-cuda-nvrtc'}"
    )


def compile_kernels(gpu: Gpu, compiler: Any | None = None) -> dict[str, bytes]:
    """Machine code of every source by its name (`view`), for `gpu`."""
    compiler = compiler or load_compiler(gpu.driver)
    return {
        source.stem: _compiled(compiler, source, gpu.capability.replace(".", ""))
        for source in sorted(SOURCES.glob("*.cu"))
    }


def _compiled(compiler: Any, source: Path, architecture: str) -> bytes:
    headers = _HEADERS | {b"portable.h": (SOURCES / "portable.h").read_bytes()}
    program = ctypes.c_void_p()
    _check(
        compiler.nvrtcCreateProgram(
            ctypes.byref(program),
            source.read_bytes(),
            source.name.encode(),
            len(headers),
            (ctypes.c_char_p * len(headers))(*headers.values()),
            (ctypes.c_char_p * len(headers))(*headers),
        ),
        f"cannot read {source.name}",
    )
    try:
        options = [
            option.encode() for option in (*_OPTIONS, f"--gpu-architecture=sm_{architecture}")
        ]
        code = compiler.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*options)
        )
        if code:
            log = _text(compiler, program, "ProgramLog").decode(errors="replace").strip()
            said = log.splitlines()[0] if log else "no reason given"
            _check(code, f"cannot compile {source.name} for sm_{architecture}: {said}")
        return _text(compiler, program, "CUBIN")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _text(compiler: Any, program: ctypes.c_void_p, kind: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(compiler, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)), f"has no {kind}")
    data = ctypes.create_string_buffer(size.value)
    _check(getattr(compiler, f"nvrtcGet{kind}")(program, data), f"has no {kind}")
    return data.raw


def _check(code: int, what: str) -> None:
    if code:
        raise BackendError(f"NVRTC {what} (error {code})")


def _places(names: Sequence[str]) -> Iterator[Path]:
    """Where NVRTC may lie: the loader's own paths, NVIDIA's packages, the toolkit."""
    yield from map(Path, names)
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    for folder in ("cu13", "cuda_nvrtc"):
        yield from (packages / folder / "lib" / name for name in names)
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    yield from (toolkit / "lib64" / name for name in names)
