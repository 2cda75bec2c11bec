"""Score map → score → deviation (Eq 8-11; docs/method.md, Scores)."""

from typing import Annotated

import numpy as np
from pydantic import Field

from engine.frame import Map
from engine.spec import spec


@spec
class ScoreSpec:
    """How a score map becomes a score; belongs to the bundle.

    `top_k` is the share of the map that counts (K = floor(share · h · w), at least 1).
    `reference_mean` and `reference_std` are μ_R and σ_R of Eq 11, drawn once in training.
    """

    top_k: Annotated[float, Field(gt=0, le=1)] = 0.10
    reference_mean: float = 0.0
    reference_std: Annotated[float, Field(gt=0)] = 1.0


def top_k_count(patches: int, share: float) -> int:
    """K of Eq 8 for a map of `patches` patches: 49 → 4, 196 → 19 at 10 %."""
    return max(1, int(share * patches))


def top_k_mean(score_map: Map, share: float) -> float:
    """The mean of the K largest absolute values of a map of any shape (Eq 8 and 9)."""
    magnitudes = np.abs(score_map.ravel())
    k = top_k_count(magnitudes.size, share)
    return float(np.partition(magnitudes, magnitudes.size - k)[-k:].mean(dtype=np.float64))


def deviation(score: float, spec: ScoreSpec) -> float:
    """dev(x) = (γ(x) − μ_R) / σ_R (Eq 11)."""
    return (score - spec.reference_mean) / spec.reference_std
