"""Two passes of one network over a frame: the heart of ATAC-Net at inference."""

import math
from time import perf_counter
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from engine.attention import CropSpec, attention_box
from engine.backends import Backend
from engine.errors import InspectionError
from engine.frame import Box, Inspection, Pass, Pixels
from engine.score import ScoreSpec, deviation, top_k_mean
from engine.view import ViewSpec, view, zoomed


class Inspector(Protocol):
    """Anything that turns a frame's pixels into an inspection."""

    def inspect(self, pixels: Pixels) -> Inspection: ...


class OpenInspector(Inspector, Protocol):
    """An `Inspector` that is ready; a context manager that owns its network, memory and threads.

    As many threads as `lanes` says may call `inspect` at once. It raises `InspectionError` when
    one frame cannot be inspected and others may be, `BackendError` when the runtime has failed.
    """

    @property
    def name(self) -> str:
        """Runtime, device and precision, for records: `onnxruntime cpu fp32`."""
        ...

    @property
    def lanes(self) -> int:
        """How many parts are worth having in hand at once."""
        ...

    def warm_up(self) -> None:
        """One run over nothing: what a first run sets up is not on a part's time."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Optics(Protocol):
    """How views, boxes and scores are made: a bundle's `Manifest`, or a model still in training."""

    @property
    def view(self) -> ViewSpec: ...

    @property
    def crop(self) -> CropSpec: ...

    @property
    def score(self) -> ScoreSpec: ...


class TwoPassInspector:
    """The two passes on any backend, views and boxes on the host.

    An `OpenInspector` over an open backend, which it closes where it is used as a context manager.
    """

    def __init__(self, backend: Backend, optics: Optics) -> None:
        self._backend = backend
        self._optics = optics

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def lanes(self) -> int:
        return self._backend.lanes

    def warm_up(self) -> None:
        side = self._optics.view.side
        self._backend.run(np.zeros((1, side, side, 3), np.uint8))

    def __enter__(self) -> Self:
        self._backend.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._backend.__exit__(kind, error, trace)

    def inspect(self, pixels: Pixels) -> Inspection:
        """Inspect uint8 `pixels`, `(H, W)` mono or `(H, W, 3)` RGB, of any size.

        A box that covers the whole frame would repeat pass 1 exactly, so pass 2 is skipped.
        Raises `InspectionError` when a score is not finite.
        """
        spec, crop, scoring = self._optics.view, self._optics.crop, self._optics.score
        frame_box = Box.around(pixels)

        t0 = perf_counter()
        whole = view(pixels, frame_box, spec)
        t1 = perf_counter()
        first = self._backend.run(whole[None])
        t2 = perf_counter()
        attention = first.attention[0]
        score = score_1 = top_k_mean(first.score_map[0], scoring.top_k)
        passes = [Pass(box=frame_box, score=score_1, view_s=t1 - t0, network_s=t2 - t1)]
        box = attention_box(attention, spec.box, crop)
        t3 = perf_counter()
        if box != spec.box:
            closer, frame_box = zoomed(pixels, whole, box, spec)
            t4 = perf_counter()
            second = self._backend.run(closer[None])
            score_2 = top_k_mean(second.score_map[0], scoring.top_k)
            t5 = perf_counter()
            passes.append(Pass(box=frame_box, score=score_2, view_s=t4 - t3, network_s=t5 - t4))
            score = (score_1 + score_2) / 2

        if not math.isfinite(score):
            raise InspectionError(
                f"{self._backend.name} answered a score of {score}: the network or its runtime "
                "is broken; check with: agent doctor"
            )
        return Inspection(
            score=score,
            deviation=deviation(score, scoring),
            passes=tuple(passes),
            attention=attention,
            score_map=first.score_map[0],
            attention_s=t3 - t2,
        )
