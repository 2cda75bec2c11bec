"""A method of another package: one pass of a network that gives the score itself.

The package names it by an entry point of the group `atac_agent.methods`: `one_pass`.
"""

from time import perf_counter
from typing import Literal

from engine.backends.base import Backend
from engine.frame import Box, Inspection, Pass, Pixels
from engine.methods import MethodSpec
from engine.spec import spec
from engine.view import ViewSpec, view


@spec
class OneScore(MethodSpec):
    type: Literal["one_pass"] = "one_pass"
    view: ViewSpec


class OnePass:
    def __init__(self, method: OneScore, backend: Backend) -> None:
        self._view, self._backend = method.view, backend

    def inspect(self, pixels: Pixels) -> Inspection:
        whole, begun = Box.around(pixels), perf_counter()
        seen = view(pixels, whole, self._view)
        view_s, begun = perf_counter() - begun, perf_counter()
        found = self._backend.run(seen[None])
        score, heat = float(found["score"][0, 0]), found["attention"][0]
        only = Pass(box=whole, score=score, view_s=view_s, network_s=perf_counter() - begun)
        return Inspection(
            score=score, deviation=score, passes=(only,), attention=heat, score_map=heat
        )


open = OnePass
