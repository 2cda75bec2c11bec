"""Inspections of one's own choice, for what is done with them."""

import numpy as np

from engine.frame import Box, Inspection, Map, Pass

_NOTHING = np.zeros((8, 8), np.float32)


def inspection(
    score: float,
    whole: Box,
    *closer: Box,
    attention: Map = _NOTHING,
    score_map: Map = _NOTHING,
) -> Inspection:
    """A pass over each box, all of the same score."""
    return Inspection(
        score=score,
        deviation=score,
        passes=tuple(
            Pass(box=box, score=score, view_s=1e-4, network_s=1e-3) for box in (whole, *closer)
        ),
        attention=attention,
        score_map=score_map,
        attention_s=1e-5,
    )
