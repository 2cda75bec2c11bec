"""The whole inspection on the GPU: a frame goes up, a few floats and the maps of pass 1 come back.

    frame ─▶ view ─▶ network (pass 1) ─▶ box ─▶ view ─▶ network (pass 2) ─▶ scores
    └────────────── one CUDA graph for each set of frame sizes, nobody waits in between ──────────┘

The kernels are those of `cuda/`. Both passes always run, since the host does not hear of the box
before the end: where it covers the whole frame, pass 1 alone counts, as in
`engine/methods/atac.py`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from engine.backends.base import MAX_PIXELS
from engine.errors import BackendError, InspectionError
from engine.frame import Bayer, Box, Inspection, Pass, Pixels
from engine.gpu.compiler import compile_kernels
from engine.gpu.context import CudaContext
from engine.gpu.device import (
    MAX_BATCH,
    DeviceOpening,
    Form,
    Geometry,
    NoRoomError,
    geometry_of,
    sizes_of,
)
from engine.gpu.driver import probe_gpu
from engine.gpu.lab import lab_tables
from engine.gpu.program import COPIERS, KERNELS, Program, crop_of
from engine.methods import NetworkSpec, require_score
from engine.methods.atac import Optics
from engine.score import deviation

_KEPT: Final = 8
"""Sets of frame sizes whose memory and graphs are kept; the one that was not used longest goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one stage of an inspection takes; `kernels` are `None` where that is not known."""

    seconds: float
    kernels: int | None


class DeviceInspector:
    """An `OpenInspector` that needs the GPU's answer only.

    Memory and a CUDA graph are made when a set of frame sizes is first seen, and used again after
    that; `prepare` makes them earlier. One thread at a time may call; the one that opened it closes
    it.

    Args:
        opening: Makes the network while the context is current.
        optics: How views, boxes and scores are made.
        network: The tensors of the network.
        max_pixels: Larger frames are refused, since their memory is kept.
    """

    takes_bayer = True

    def __init__(
        self,
        opening: DeviceOpening,
        optics: Optics,
        network: NetworkSpec,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        gpu = probe_gpu()
        self._optics = optics
        self._spec = network
        self._max_pixels = max_pixels
        kernels = compile_kernels(gpu)
        with ExitStack() as stack:
            self._gpu = CudaContext(stack, f"inspection on {gpu.name}")
            self._gpu.free_with(stack, self._forget)
            with self._gpu.explained("cannot start"), self._gpu.current():
                self._modules = {
                    name: self._gpu.cuda.module_from_buffer(code) for name, code in kernels.items()
                }
                self._kernels = {
                    name: self._modules[source].get_function(name)
                    for source, names in KERNELS.items()
                    for name in names
                }
                self._stream = self._gpu.cuda.Stream()
                self._network = opening(self._gpu.lasting(stack), self._stream)
                self._name = f"{self._network.name}, all on the device"
                self._constants = {
                    "tables": self._constant(stack, lab_tables()),
                    "crop": self._constant(stack, crop_of(optics.crop)),
                }
            self._lent: Pixels | None = None
            stack.callback(self.lend, None)
            self._copiers = ThreadPoolExecutor(COPIERS, thread_name_prefix="atac-copy")
            stack.callback(self._copiers.shutdown)
            self._programs: OrderedDict[tuple[Geometry, ...], Program] = OrderedDict()
            self._gpu.free_with(stack, self._close_programs)
            self._resources = stack.pop_all()

    @property
    def name(self) -> str:
        """Runtime, device and precision, for records."""
        return self._name

    @property
    def workers(self) -> int:
        return 1

    def warm_up(self) -> None:
        """One run over nothing: TensorRT loads what it needs when it first runs."""
        blank = np.zeros((self._spec.side, self._spec.side), np.uint8)
        try:
            with self._gpu.explained("cannot start"), self._gpu.current():
                self._program((geometry_of(blank),)).run([blank])
        except InspectionError as error:
            raise BackendError(f"{self.name} cannot start: {error}") from error

    def lend(self, memory: Pixels | None) -> None:
        """See `OpenInspector.lend`; frames that lie elsewhere are copied first."""
        if self._lent is not None:
            self._gpu.unlock(self._lent)
            self._lent = None
        if memory is not None and self._gpu.lock(memory):
            self._lent = memory

    def inspect(self, pixels: Pixels, bayer: Bayer | None = None) -> Inspection:
        """As `TwoPassInspector.inspect`; all of its time is under `pass_1`."""
        return self.inspect_all([pixels], None if bayer is None else [bayer])[0]

    def inspect_all(
        self, frames: Sequence[Pixels], forms: Sequence[Form] | None = None
    ) -> list[Inspection]:
        """Inspect one frame of each of several cameras together, in turns of `MAX_BATCH`.

        Raises `InspectionError` when a frame cannot be used or a score is not finite.
        """
        given: Sequence[Form | None] = forms or [None] * len(frames)
        sizes = [geometry_of(each, form) for each, form in zip(frames, given, strict=True)]
        found: list[Inspection] = []
        for start in range(0, len(frames), MAX_BATCH):
            turn = slice(start, start + MAX_BATCH)
            found += self._turn(frames[turn], tuple(sizes[turn]))
        return found

    def prepare(self, geometries: Sequence[Geometry]) -> None:
        """Allocate and record for frames of these sizes, at most `MAX_BATCH`, before any comes."""
        with (
            self._gpu.explained(f"cannot prepare for {sizes_of(geometries)}"),
            self._gpu.current(),
        ):
            self._program(tuple(geometries))

    def views(self, pixels: Pixels) -> tuple[Pixels, Pixels]:
        """What the network sees of a frame in both passes, to be compared with `engine.view`."""
        geometry = geometry_of(pixels)
        with self._gpu.explained(f"failed on {sizes_of([geometry])}"), self._gpu.current():
            program = self._program((geometry,))
            program.run([pixels])
            return program.views()

    def stages(self, geometries: Sequence[Geometry], repeats: int) -> dict[str, Stage]:
        """What each stage takes on the device alone, the mean of `repeats` in a row.

        Each stage is a graph of its own, launched again and again over the same memory.
        """
        with self._gpu.explained(f"failed on {sizes_of(geometries)}"), self._gpu.current():
            program = self._program(tuple(geometries))
            found = {}
            for name, stage in program.stages().items():
                with closing(self._network.capture(self._stream, stage)) as graph:
                    graph.launch()
                    self._stream.synchronize()
                    begun = perf_counter()
                    for _ in range(repeats):
                        graph.launch()
                    self._stream.synchronize()
                    seconds = (perf_counter() - begun) / repeats
                    found[name] = Stage(seconds=seconds, kernels=graph.kernels)
            return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def _turn(self, frames: Sequence[Pixels], geometries: tuple[Geometry, ...]) -> list[Inspection]:
        begun = perf_counter()
        with self._gpu.explained(f"failed on {sizes_of(geometries)}"), self._gpu.current():
            program = self._program(geometries)
            program.run(frames, self._lent)
            seconds = perf_counter() - begun
            return [self._answer(program, slot, seconds) for slot in range(len(frames))]

    def _answer(self, program: "Program", slot: int, seconds: float) -> Inspection:
        answer = program.answers
        zooms = bool(answer["zooms"][slot])
        score_1, score_2 = (float(answer["scores"][each, slot]) for each in (0, 1))
        score = (score_1 + score_2) / 2 if zooms else score_1
        require_score(score, self.name)
        left, top, right, bottom = (int(place) for place in answer["boxes"][slot])
        geometry = program.geometries[slot]
        whole = Box.whole(geometry.width, geometry.height)
        passes = [Pass(box=whole, score=score_1, view_s=0.0, network_s=seconds)]
        if zooms:
            box = Box(left=left, top=top, right=right, bottom=bottom)
            passes.append(Pass(box=box, score=score_2, view_s=0.0, network_s=0.0))
        return Inspection(
            score=score,
            deviation=deviation(score, self._optics.score),
            passes=tuple(passes),
            attention=answer["attention"][slot].copy(),
            score_map=answer["score_map"][slot].copy(),
            attention_s=0.0,
        )

    def _program(self, geometries: tuple[Geometry, ...]) -> "Program":
        for each in geometries:
            if each.width * each.height > self._max_pixels:
                raise InspectionError(
                    f"a frame of {each.width}×{each.height} pixels is larger than the "
                    f"{self._max_pixels / 1e6:g} megapixels that the GPU keeps memory for; "
                    "set bundle.max_megapixels"
                )
        program = self._programs.get(geometries)
        if program is None:
            while len(self._programs) >= _KEPT:
                self._programs.popitem(last=False)[1].close()
            program = self._programs[geometries] = self._new_program(geometries)
        self._programs.move_to_end(geometries)
        return program

    def _new_program(self, geometries: tuple[Geometry, ...]) -> "Program":
        """Where the GPU has no room for one more, that of all others is given up."""
        made = partial(
            Program,
            self._gpu,
            self._stream,
            self._kernels,
            self._network,
            self._optics,
            self._spec,
            self._constants,
            self._copiers,
            geometries,
        )
        no_room = (self._gpu.cuda.MemoryError, NoRoomError)
        with suppress(*no_room):
            return made()
        self._close_programs()
        try:
            return made()
        except no_room as error:
            raise InspectionError(
                f"the GPU has no memory for frames of {sizes_of(geometries)}: {error}; "
                "see nvidia-smi"
            ) from error

    def _constant(self, stack: ExitStack, values: npt.NDArray[Any]) -> int:
        memory = self._gpu.device_memory(stack, values.nbytes)
        self._gpu.cuda.memcpy_htod(memory, values)
        return int(memory)

    def _close_programs(self) -> None:
        while self._programs:
            self._programs.popitem()[1].close()

    def _forget(self) -> None:
        """Drop network, kernels and stream, as far as they were made, in their context."""
        for name in ("_network", "_kernels", "_modules", "_stream"):
            vars(self).pop(name, None)
