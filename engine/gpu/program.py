"""Memory on the GPU and the work on it for one set of frame sizes, recorded as one CUDA graph."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.attention import CropSpec
from engine.frame import Pixels
from engine.gpu.context import CudaContext
from engine.gpu.device import RED, DeviceNetwork, Geometry
from engine.methods import NetworkSpec
from engine.methods.atac import Optics
from engine.score import top_k_count

_THREADS: Final = 256
COPIERS: Final = 4
"""Threads that copy a large frame: one alone is slower than the bus."""
_PART: Final = 1 << 20
_MOST_BLOCKS: Final = 4096  # kernels walk over what is left
_SPREAD: Final = 64  # threads of a block where there is too little work for large ones
_FEW: Final = 16_384
KERNELS: Final = {
    "view": (
        *("demosaic", "weights", "reduce", "first_step", "second_step"),
        *("lightness", "histogram", "lookup", "equalise", "colour"),
    ),
    "box": ("peaks", "extents", "boxes"),
    "score": ("chosen", "scores"),
}
"""The kernels of each source in `cuda/`."""
_BOX_BYTES: Final = 16  # struct Box of portable.h: four int32
_CROP: Final = np.dtype(
    [
        *((name, np.float64) for name in ("omega", "gate", "padding")),
        *((name, np.int32) for name in ("min_side", "square")),
    ],
    align=True,
)
_PEAK_BYTES: Final = 8  # struct Peak of box.cu
_EXTENT_BYTES: Final = 16  # struct Extent of box.cu
_PLAN_BYTES: Final = 48  # struct ViewPlan of view.cu


class Program:
    """Memory and work for one set of frame sizes; made and run while the context is current.

    Args:
        gpu: The context that owns the memory.
        stream: Everything is enqueued here.
        kernels: The compiled kernels by their names, those of `KERNELS`.
        network: What both passes run.
        optics: How views, boxes and scores are made.
        spec: The tensors of the network.
        constants: The addresses of `tables` and `crop`, which all programs share.
        copiers: Copy parts of large frames at the same time.
        geometries: The sizes of the frames that are inspected together.
    """

    def __init__(
        self,
        gpu: CudaContext,
        stream: Any,
        kernels: dict[str, Any],
        network: DeviceNetwork,
        optics: Optics,
        spec: NetworkSpec,
        constants: dict[str, int],
        copiers: Executor,
        geometries: tuple[Geometry, ...],
    ) -> None:
        self._gpu = gpu
        self._stream = stream
        self._kernels = kernels
        self._network = network
        self._optics = optics
        self._patches = spec.outputs["score_map"]
        self._constants = constants
        self._copiers = copiers
        self.geometries = geometries
        with ExitStack() as stack:
            self._allocate(stack)
            # First of all when it closes: nothing may still be running over what is given back.
            stack.callback(gpu.settled, stream)
            # The first run sets up what a capture may not.
            for staged in self._frames:
                staged[...] = 0
            self._upload()
            self._enqueue()
            stream.synchronize()
            self._graph = stack.enter_context(closing(network.capture(stream, self._enqueue)))
            self._resources = stack.pop_all()

    def run(self, frames: Sequence[Pixels], lent: Pixels | None = None) -> None:
        """Inspect `frames`; `answers` holds what was found until the next run.

        What lies in `lent` the GPU reads where it is. Other frames go through pinned memory, the
        first part already up while the next is copied.
        """
        try:
            for slot, pixels in enumerate(frames):
                self._send(slot, pixels, lent)
            self._graph.launch()
        except BaseException:
            self._gpu.settled(self._stream)  # nothing may still read what the caller gave
            raise
        self._stream.synchronize()

    def _send(self, slot: int, pixels: Pixels, lent: Pixels | None) -> None:
        cuda, raw, staged = self._gpu.cuda, self._device[f"raw_{slot}"], self._frames[slot]
        if lent is not None and pixels.flags.c_contiguous and np.may_share_memory(pixels, lent):
            cuda.memcpy_htod_async(raw, pixels, self._stream)
            return
        rows = np.linspace(0, len(staged), 1 + -(-staged.nbytes // _PART), dtype=int)
        spans = list(pairwise(sorted({*map(int, rows)})))
        copies = [self._copiers.submit(np.copyto, staged[a:b], pixels[a:b]) for a, b in spans]
        for (first, last), copy in zip(spans, copies, strict=True):
            copy.result()
            place = int(raw) + first * staged[0].nbytes
            cuda.memcpy_htod_async(place, staged[first:last], self._stream)

    def close(self) -> None:
        with self._gpu.current():
            self._resources.close()

    def _allocate(self, stack: ExitStack) -> None:
        optics, count = self._optics, len(self.geometries)
        side, tiles = optics.view.side, optics.view.clahe_tiles
        maps = (count, *self._patches)
        self._frames: list[Any] = []
        self.answers: dict[str, npt.NDArray[Any]] = {}
        # Freed pinned memory must not stay reachable as an array.
        stack.callback(self._frames.clear)
        stack.callback(self.answers.clear)
        for each in self.geometries:
            self._frames.append(self._gpu.pinned(stack, each.shape, np.uint8))
        for name, shape, kind in (
            ("scores", (2, count), np.dtype(np.float64)),
            ("boxes", (count, 4), np.dtype(np.int32)),
            ("zooms", (count,), np.dtype(np.int32)),
            ("attention", maps, np.dtype(np.float32)),
            ("score_map", maps, np.dtype(np.float32)),
        ):
            self.answers[name] = self._gpu.pinned(stack, shape, kind)
        # The frames are seen one after the other, so what a view needs beside its frame they share.
        longest = max(max(each.width, each.height, side) for each in self.geometries)
        largest = max(max(each.size, 3 * side * side) for each in self.geometries)
        taps = 2 * math.ceil(2 * max(1.0, longest / side)) + 1
        patches = int(np.prod(maps))
        sizes = {
            "plan": _PLAN_BYTES,
            "reduced": largest // 2 + 3 * longest,
            "spans": 2 * side * 2 * 4,
            "table": 2 * side * taps * 4,
            "halfway": longest * side * 3,
            "small": 3 * side * side,
            "plane": largest,
            "histograms": tiles * tiles * 256 * 4,
            "levels": tiles * tiles * 256,
            # Peaks, then extents: they are emptied together.
            "attended": count * (_PEAK_BYTES + _EXTENT_BYTES),
            "whole": count * _BOX_BYTES,
            "in_view": count * _BOX_BYTES,
            "in_frame": count * _BOX_BYTES,
            "zooms": count * 4,
            "kept": patches * 4,
            "scores": 2 * count * 8,
            **{
                f"{name}_{each}": patches * 4
                for name in ("score_map", "attention")
                for each in (1, 2)
            },
            **{f"views_{each}": count * 3 * side * side for each in (1, 2)},
        }
        for slot, geometry in enumerate(self.geometries):
            sizes[f"raw_{slot}"] = self._frames[slot].nbytes
            if self._is_changed(geometry):
                sizes[f"frame_{slot}"] = geometry.size
        self._taps = taps
        self._device = {name: self._gpu.device_memory(stack, size) for name, size in sizes.items()}
        self._zeroed = tiles * tiles * 256
        self._passes = [
            self._network.bound(
                **{
                    name: int(self._device[f"{name}_{number}"])
                    for name in ("views", "score_map", "attention")
                }
            )
            for number in (1, 2)
        ]
        stack.callback(self._passes.clear)
        whole = [(0, 0, each.width, each.height) for each in self.geometries]
        self._gpu.cuda.memcpy_htod(self._device["whole"], np.array(whole, np.int32))

    def stages(self) -> dict[str, Callable[[], None]]:
        """Everything that happens on the device, in order; each of them enqueues its share."""
        return {"upload": self._upload, **self._captured()}

    def _captured(self) -> dict[str, Callable[[], None]]:
        """What is the same for all frames: they are up already, from wherever they lay."""
        return {
            "view_1": self._view_1,
            "pass_1": partial(self._pass, 1),
            "attention": self._boxes,
            "view_2": self._view_2,
            "pass_2": partial(self._pass, 2),
            "download": self._download,
        }

    def views(self) -> tuple[Pixels, Pixels]:
        """What the network saw of the first frame in the last run, in pass 1 and in pass 2."""
        side = self._optics.view.side
        seen = np.empty((2, side, side, 3), np.uint8)
        for number in (1, 2):
            self._gpu.cuda.memcpy_dtoh(seen[number - 1], self._device[f"views_{number}"])
        return seen[0], seen[1]

    def _enqueue(self) -> None:
        for stage in self._captured().values():
            stage()

    def _upload(self) -> None:
        for slot, staged in enumerate(self._frames):
            self._gpu.cuda.memcpy_htod_async(self._device[f"raw_{slot}"], staged, self._stream)

    def _view_1(self) -> None:
        pixels = 3 * self._optics.view.side**2
        for slot, geometry in enumerate(self.geometries):
            self._prepare_frame(slot, geometry)
            whole = self._at("whole", slot * _BOX_BYTES)
            views = self._at("views_1", slot * pixels)
            self._view(slot, geometry, whole, views)

    def _view_2(self) -> None:
        pixels = 3 * self._optics.view.side**2
        for slot, geometry in enumerate(self.geometries):
            views = self._at("views_2", slot * pixels)
            if self._optics.view.crop_from == "frame":
                self._view(slot, geometry, self._at("in_frame", slot * _BOX_BYTES), views)
            else:
                box, whole = (
                    self._at("in_view", slot * _BOX_BYTES),
                    self._at("views_1", slot * pixels),
                )
                self._closer(box, whole, views)

    def _download(self) -> None:
        for name, source in (
            ("scores", "scores"),
            ("boxes", "in_frame"),
            ("zooms", "zooms"),
            ("attention", "attention_1"),
            ("score_map", "score_map_1"),
        ):
            self._gpu.cuda.memcpy_dtoh_async(self.answers[name], self._device[source], self._stream)

    def _prepare_frame(self, slot: int, geometry: Geometry) -> None:
        """The frame as views are cut from it: RGB or grey, equalised where the native frame is."""
        width, height, view = geometry.width, geometry.height, self._optics.view
        if geometry.form in RED:
            red_x, red_y = RED[geometry.form]
            self._launch(
                "demosaic",
                width * height,
                self._at(f"raw_{slot}"),
                np.int32(width),
                np.int32(height),
                np.int32(red_x),
                np.int32(red_y),
                self._at(f"frame_{slot}"),
            )
        if view.equalise == "before_resize":
            source = self._source(slot, geometry, ready=False)
            self._equalise(source, geometry.channels, width, height, self._at(f"frame_{slot}"))

    def _source(self, slot: int, geometry: Geometry, *, ready: bool = True) -> np.uintp:
        changed = self._is_changed(geometry) if ready else geometry.form in RED
        return self._at(f"frame_{slot}" if changed else f"raw_{slot}")

    def _is_changed(self, geometry: Geometry) -> bool:
        """Whether views are cut from something else than what the camera gave."""
        return geometry.form in RED or self._optics.view.equalise == "before_resize"

    def _view(self, slot: int, geometry: Geometry, box: np.uintp, views: np.uintp) -> None:
        """`engine.view.view` of one frame, its box read on the device."""
        view = self._optics.view
        self._resize(
            self._source(slot, geometry),
            geometry.width,
            geometry.height,
            geometry.channels,
            box,
            cubic=True,
            reducing_gap=view.reducing_gap or 0.0,
            confined=False,
        )
        if view.equalise == "after_resize":
            small = self._at("small")
            self._equalise(small, geometry.channels, view.side, view.side, views, shown=True)
        else:
            self._colour(geometry.channels, views)

    def _closer(self, box: np.uintp, whole: np.uintp, views: np.uintp) -> None:
        """Algorithm 1, lines 5-7: `engine.view.zoomed` of the view of pass 1."""
        side = self._optics.view.side
        self._resize(whole, side, side, 3, box, cubic=False, reducing_gap=0.0, confined=True)
        self._colour(3, views)

    def _resize(
        self,
        source: np.uintp,
        width: int,
        height: int,
        channels: int,
        box: np.uintp,
        *,
        cubic: bool,
        reducing_gap: float,
        confined: bool,
    ) -> None:
        """One box of an image → `small`, `(side, side, channels)`."""
        side = np.int32(self._optics.view.side)
        plan, reduced = self._at("plan"), self._at("reduced")
        spans, table, taps = self._at("spans"), self._at("table"), np.int32(self._taps)
        halfway, small = self._at("halfway"), self._at("small")
        self._launch(
            "weights",
            2 * int(side),
            box,
            np.int32(width),
            np.int32(height),
            side,
            np.int32(cubic),
            np.float64(reducing_gap),
            np.int32(confined),
            taps,
            plan,
            spans,
            table,
        )
        if reducing_gap:
            self._launch(
                "reduce",
                width * height * channels // 2,
                source,
                np.int32(width),
                np.int32(channels),
                plan,
                reduced,
            )
        self._launch(
            "first_step",
            max(width, height) * int(side) * channels,
            source,
            np.int32(width),
            np.int32(channels),
            reduced,
            plan,
            side,
            taps,
            spans,
            table,
            halfway,
        )
        self._launch(
            "second_step",
            int(side) ** 2 * channels,
            halfway,
            np.int32(channels),
            plan,
            side,
            taps,
            spans,
            table,
            small,
        )

    def _equalise(
        self,
        source: np.uintp,
        channels: int,
        width: int,
        height: int,
        result: np.uintp,
        *,
        shown: bool = False,
    ) -> None:
        """`engine.view.equalised`; `result` may be `source`. `shown`: as the network takes it."""
        view = self._optics.view
        tiles, tables = np.int32(view.clahe_tiles), np.uintp(self._constants["tables"])
        plane, histograms, levels = (self._at(n) for n in ("plane", "histograms", "levels"))
        count, size = width * height, (np.int32(width), np.int32(height), tiles)
        if channels == 1:
            plane = source
        else:
            self._launch("lightness", count, source, np.int64(count), tables, plane)
        self._gpu.cuda.memset_d32_async(self._device["histograms"], 0, self._zeroed, self._stream)
        self._launch("histogram", count, plane, *size, histograms)
        limit = np.float64(view.clahe_clip_limit)
        self._launch("lookup", int(tiles) ** 2 * 256, histograms, *size, limit, levels)
        self._launch(
            "equalise",
            count,
            source,
            np.int32(channels),
            plane,
            *size,
            levels,
            tables,
            np.int32(shown),
            result,
        )

    def _colour(self, channels: int, views: np.uintp) -> None:
        count = self._optics.view.side**2
        self._launch(
            "colour", 3 * count, self._at("small"), np.int32(channels), np.int64(count), views
        )

    def _pass(self, number: int) -> None:
        """The network on all views of pass `number`, and their scores."""
        count = len(self.geometries)
        patches = self._patches[0] * self._patches[1]
        k = np.int32(top_k_count(patches, self._optics.score.top_k))
        self._passes[number - 1](count, self._stream)
        kept, maps = self._at("kept"), self._at(f"score_map_{number}")
        self._launch("chosen", count * patches, maps, np.int32(count), np.int32(patches), k, kept)
        found = self._at("scores", (number - 1) * count * 8)
        self._launch("scores", count, kept, np.int32(count), k, found)

    def _boxes(self) -> None:
        """`engine.attention.attention_box` of all maps of pass 1."""
        side, count = self._optics.view.side, len(self.geometries)
        attention, crop = self._at("attention_1"), np.uintp(self._constants["crop"])
        peaks, extents = self._at("attended"), self._at("attended", count * _PEAK_BYTES)
        height, width = self._patches
        words = count * (_PEAK_BYTES + _EXTENT_BYTES) // 4
        self._gpu.cuda.memset_d32_async(self._device["attended"], 0, words, self._stream)
        patches = height * width
        self._launch("peaks", count * patches, attention, np.int32(count), np.int32(patches), peaks)
        self._launch(
            "extents",
            count * side * side,
            attention,
            np.int32(count),
            np.int32(height),
            np.int32(width),
            np.int32(side),
            crop,
            peaks,
            extents,
        )
        self._launch(
            "boxes",
            count,
            extents,
            np.int32(count),
            np.int32(side),
            crop,
            self._at("whole"),
            self._at("in_view"),
            self._at("in_frame"),
            self._at("zooms"),
        )

    def _launch(self, name: str, items: int, *arguments: object) -> None:
        """Enqueue kernel `name` with threads for `items`; scalars are numpy's, of C's own size."""
        threads = _SPREAD if items < _FEW else _THREADS
        blocks = min(_MOST_BLOCKS, -(-items // threads) or 1)
        self._kernels[name](
            *arguments, block=(threads, 1, 1), grid=(blocks, 1), stream=self._stream
        )

    def _at(self, name: str, offset: int = 0) -> np.uintp:
        return np.uintp(int(self._device[name]) + offset)


def crop_of(spec: CropSpec) -> npt.NDArray[Any]:
    """`struct Crop` of box.cu."""
    return np.array(
        (
            spec.omega,
            spec.gate,
            spec.padding,
            spec.min_side,
            spec.square,
        ),
        _CROP,
    )
