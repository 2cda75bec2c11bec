"""The CUDA kernels, compiled as plain C++ and called in the order in which a GPU would run them."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine.attention import CropSpec
from engine.frame import Box, Map, Pixels
from engine.gpu import compiler
from engine.gpu.lab import lab_tables
from engine.score import top_k_count
from engine.view import ViewSpec

SOURCES = compiler.SOURCES


class CBox(ctypes.Structure):
    _fields_ = tuple((side, ctypes.c_int32) for side in ("left", "top", "right", "bottom"))


class CPlan(ctypes.Structure):
    _fields_ = (
        ("source", CBox),
        *((name, ctypes.c_int32) for name in ("factor_x", "factor_y", "width", "height")),
        *((name, ctypes.c_float) for name in ("x0", "y0", "x1", "y1")),
    )


class CCrop(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("omega", "gate", "padding")),
        *((name, ctypes.c_int32) for name in ("min_side", "square")),
    )


class CPeak(ctypes.Structure):
    _fields_ = (
        ("bits", ctypes.c_int32),
        ("broken", ctypes.c_int32),
    )


class Long(int):
    """An `int64_t` argument; plain integers are `int`."""


class Kernels:
    """The kernels of all sources, built into `folder` once; each method does one stage's work."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            pytest.skip("needs a C++ compiler: apt-get install g++")
        self._libraries = []
        for source in sorted(SOURCES.glob("*.cu")):
            library = folder / f"{source.stem}.so"
            command = [compiler, "-x", "c++", "-std=c++17", "-O3", "-ffp-contract=off"]
            if not library.exists():
                subprocess.run(
                    [*command, "-fPIC", "-shared", str(source), "-o", str(library)], check=True
                )
            self._libraries.append(ctypes.CDLL(str(library)))
        self._tables = lab_tables()

    def view(self, pixels: Pixels, box: Box, spec: ViewSpec, *, confined: bool = False) -> Pixels:
        """What `engine.view.view` makes; `confined` cuts the box out of a view, as pass 2 may."""
        if spec.equalise == "before_resize":
            pixels = self.equalised(pixels, spec)
        small = self.resized(pixels, box, spec, confined=confined)
        if spec.equalise == "after_resize":
            return self.equalised(small, spec, shown=True)
        rgb = np.empty((spec.side, spec.side, 3), np.uint8)
        self._call("colour", small, _channels(small), Long(spec.side**2), rgb)
        return rgb

    def resized(self, pixels: Pixels, box: Box, spec: ViewSpec, *, confined: bool) -> Pixels:
        height, width = pixels.shape[:2]
        channels, side, cubic = _channels(pixels), spec.side, not confined
        plan = CPlan()
        corners = CBox(box.left, box.top, box.right, box.bottom)
        # As much as the largest box of this frame may want, as a GPU's fixed buffer.
        capacity = int(np.ceil(2 * max(1, max(width, height) / side))) * 2 + 1
        spans = np.zeros((2, side, 2), np.int32)
        table = np.zeros((2, side, capacity), np.int32)
        self._call(
            "weights", corners, width, height, side, int(cubic), float(spec.reducing_gap or 0),
            int(confined), capacity, plan, spans, table,
        )  # fmt: skip
        assert spans[..., 1].max() <= capacity
        reduced = np.zeros((plan.height, plan.width, channels), np.uint8)
        self._call("reduce", pixels, width, channels, plan, reduced)
        halfway = np.zeros((max(height, width) * side * channels,), np.uint8)
        self._call(
            "first_step", pixels, width, channels, reduced, plan, side, capacity, spans, table,
            halfway,
        )  # fmt: skip
        small = np.empty((side, side, *pixels.shape[2:]), np.uint8)
        self._call("second_step", halfway, channels, plan, side, capacity, spans, table, small)
        return small

    def equalised(self, pixels: Pixels, spec: ViewSpec, *, shown: bool = False) -> Pixels:
        """`shown`: mono becomes three channels."""
        height, width = pixels.shape[:2]
        channels, tiles = _channels(pixels), spec.clahe_tiles
        plane = pixels if channels == 1 else np.empty((height, width), np.uint8)
        histograms = np.zeros((tiles, tiles, 256), np.int32)
        levels = np.empty((tiles, tiles, 256), np.uint8)
        result = np.empty((height, width, 3) if shown else pixels.shape, np.uint8)
        if channels == 3:
            self._call("lightness", pixels, Long(height * width), self._tables, plane)
        self._call("histogram", plane, width, height, tiles, histograms)
        self._call("lookup", histograms, width, height, tiles, spec.clahe_clip_limit, levels)
        self._call(
            "equalise", pixels, channels, plane, width, height, tiles, levels, self._tables,
            int(shown), result,
        )  # fmt: skip
        return result

    def demosaic(self, raw: Pixels, *, red: tuple[int, int]) -> Pixels:
        """Bayer → RGB; `red` is the column and row, 0 or 1, of the first red pixel."""
        height, width = raw.shape
        frame = np.empty((height, width, 3), np.uint8)
        self._call("demosaic", raw, width, height, *red, frame)
        return frame

    def boxes(
        self, attention: Map, side: int, spec: CropSpec, frame: Box
    ) -> list[tuple[Box, Box, bool]]:
        """For each of N maps: the box in the view, in the frame, and whether pass 2 is wanted."""
        count, map_h, map_w = attention.shape
        crop = CCrop(
            spec.omega, spec.gate, spec.padding, spec.min_side,
            spec.square,
        )  # fmt: skip
        found, in_view, in_frame = ((CBox * count)() for _ in range(3))
        whole = (CBox * count)(*[CBox(0, 0, frame.width, frame.height)] * count)
        peaks = (CPeak * count)()
        zooms = np.zeros(count, np.int32)
        self._call("peaks", attention, count, map_h * map_w, peaks)
        self._call("extents", attention, count, map_h, map_w, side, crop, peaks, found)
        self._call("boxes", found, count, side, crop, whole, in_view, in_frame, zooms)
        answers = zip(in_view, in_frame, zooms, strict=True)
        return [(_box(view), _box(native), bool(zoom)) for view, native, zoom in answers]

    def scores(self, score_maps: Map, share: float) -> list[float]:
        """`engine.score.top_k_mean` of each of N maps."""
        count, patches = len(score_maps), score_maps[0].size
        k = top_k_count(patches, share)
        kept = np.empty((count, k), np.float32)
        found = np.empty(count, np.float64)
        self._call("chosen", score_maps, count, patches, k, kept)
        self._call("scores", kept, count, k, found)
        return [float(score) for score in found]

    def launch(self, name: str, *arguments: object) -> None:
        """One kernel with numpy's scalars, of C's own size, as pycuda takes them."""
        self._call(name, *(_SCALARS[type(value)](value) for value in arguments))

    def _call(self, name: str, *arguments: object) -> None:
        library = next(each for each in self._libraries if hasattr(each, name))
        kernel = getattr(library, name)
        kernel.restype = None
        kernel(*(_argument(value) for value in arguments))


_SCALARS = {
    np.int32: ctypes.c_int32,
    np.int64: ctypes.c_int64,
    np.float64: ctypes.c_double,
    np.uintp: lambda address: ctypes.c_void_p(int(address)),
}


def _channels(pixels: Pixels) -> int:
    return 1 if pixels.ndim == 2 else 3


def _box(corners: CBox) -> Box:
    return Box(left=corners.left, top=corners.top, right=corners.right, bottom=corners.bottom)


def _argument(value):
    match value:
        case np.ndarray():
            assert value.flags.c_contiguous
            return ctypes.c_void_p(value.ctypes.data)
        case Long():
            return ctypes.c_int64(value)
        case float():
            return ctypes.c_double(value)
        case int():
            return ctypes.c_int(value)
        case ctypes._SimpleCData():
            return value
        case _:
            return ctypes.byref(value)
