"""The two-stage network: one pass over a frame gives its score and where it looks normal."""

from time import perf_counter
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from engine.backends.base import Backend
from engine.frame import Box, Inspection, Pass, Pixels
from engine.methods import MethodSpec
from engine.spec import spec
from engine.view import ViewSpec, view

OUTPUTS: Final = ("score", "attention")
"""What the network gives: -log D(F_nor) of ADGAN, and A_gen, 1 where the part looks normal."""
_NOTICEABLE: Final = 0.5
"""How much attention must be missing in a place for it to count as a finding in pictures."""


@spec
class TwoStageMethod(MethodSpec):
    """How the view is made, and how good training images scored: their mean and deviation."""

    type: Literal["two_stage"] = "two_stage"
    view: ViewSpec
    good_mean: float = 0.0
    good_std: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _outputs(self) -> Self:
        side = self.view.side
        if self.network.outputs != {"score": (1,), "attention": (side, side)}:
            raise ValueError(f"the network should have score and attention of {side} × {side}")
        if self.network.side != side:
            raise ValueError("the network should take views of the size that is made")
        return self


def open(method: TwoStageMethod, backend: Backend) -> "OnePassInspector":
    """The one pass over an open backend."""
    return OnePassInspector(method, backend)


class OnePassInspector:
    """One pass over an open backend, the view made on the host."""

    def __init__(self, method: TwoStageMethod, backend: Backend) -> None:
        self._method = method
        self._backend = backend

    def inspect(self, pixels: Pixels) -> Inspection:
        """Inspect uint8 `pixels`, `(H, W)` mono or `(H, W, 3)` RGB, of any size.

        The score map is what is missing of the attention: 1 - A_gen.
        """
        method, frame_box = self._method, Box.around(pixels)
        t0 = perf_counter()
        seen = view(pixels, frame_box, method.view)
        t1 = perf_counter()
        found = self._backend.run(seen[None])
        t2 = perf_counter()
        score, attention = float(found["score"][0, 0]), found["attention"][0]
        only = Pass(box=frame_box, score=score, view_s=t1 - t0, network_s=t2 - t1)
        return Inspection(
            score=score,
            deviation=(score - method.good_mean) / method.good_std,
            passes=(only,),
            attention=attention,
            score_map=np.float32(1) - attention,
            map_threshold=_NOTICEABLE,
        )
