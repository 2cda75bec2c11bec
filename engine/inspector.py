"""Two passes of one network over a frame: the heart of ATAC-Net at inference."""

import math
from time import perf_counter
from typing import Protocol

from engine.attention import CropSpec, attention_box
from engine.backends import Backend
from engine.errors import InspectionError
from engine.frame import Box, Inspection, Pixels, StageTimes
from engine.score import ScoreSpec, deviation, top_k_mean
from engine.view import ViewSpec, view, zoomed


class Inspector(Protocol):
    """Anything that turns a frame's pixels into an inspection."""

    def inspect(self, pixels: Pixels) -> Inspection: ...


class Optics(Protocol):
    """How views, boxes and scores are made: a bundle's `Manifest`, or a model still in training."""

    @property
    def view(self) -> ViewSpec: ...

    @property
    def crop(self) -> CropSpec: ...

    @property
    def score(self) -> ScoreSpec: ...


class TwoPassInspector:
    """The two passes on any backend, views and boxes on the host."""

    def __init__(self, backend: Backend, optics: Optics) -> None:
        self._backend = backend
        self._optics = optics

    def inspect(self, pixels: Pixels) -> Inspection:
        """Inspect uint8 `pixels`, `(H, W)` mono or `(H, W, 3)` RGB, of any size.

        A box that covers the whole frame would repeat pass 1 exactly, so pass 2 is skipped and
        its score is that of pass 1. Raises `InspectionError` when a score is not finite.
        """
        spec, crop, scoring = self._optics.view, self._optics.crop, self._optics.score
        frame_box = Box.around(pixels)

        t0 = perf_counter()
        whole = view(pixels, frame_box, spec)
        t1 = perf_counter()
        first = self._backend.run(whole[None])
        t2 = perf_counter()
        attention = first.attention[0]
        score_1 = top_k_mean(first.score_map[0], scoring.top_k)
        box = attention_box(attention, spec.box, crop)
        t3 = t4 = t5 = perf_counter()
        score_2 = score_1
        if box != spec.box:
            closer, frame_box = zoomed(pixels, whole, box, spec)
            t4 = perf_counter()
            second = self._backend.run(closer[None])
            score_2 = top_k_mean(second.score_map[0], scoring.top_k)
            t5 = perf_counter()

        score = (score_1 + score_2) / 2
        if not math.isfinite(score):
            raise InspectionError(
                f"{self._backend.name} answered a score of {score}: the network or its runtime "
                "is broken; check with: agent doctor"
            )
        return Inspection(
            score=score,
            pass_scores=(score_1, score_2),
            deviation=deviation(score, scoring),
            box=frame_box,
            zoomed=box != spec.box,
            attention=attention,
            score_map=first.score_map[0],
            times=StageTimes(
                view_1=t1 - t0,
                pass_1=t2 - t1,
                attention=t3 - t2,
                view_2=t4 - t3,
                pass_2=t5 - t4,
            ),
        )
