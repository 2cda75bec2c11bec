"""How the learning rate falls."""

import math
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from engine.spec import spec


@spec
class Steps:
    """By the factor `factor` after every `every` epochs."""

    type: Literal["steps"] = "steps"
    every: Annotated[int, Field(ge=1)]
    factor: Annotated[float, Field(gt=0)]


@spec
class Cosine:
    """To nothing along half a cosine, from the first step to the last."""

    type: Literal["cosine"] = "cosine"


Schedule = Annotated[Steps | Cosine, Field(discriminator="type")]


def learning_rate(first: float, schedule: Steps | Cosine, epochs: float, *, of: int) -> float:
    """The rate of the step that begins after `epochs` epochs, which need not be whole.

    Args:
        first: The rate at the start.
        schedule: How it falls.
        epochs: How much of the training is done.
        of: How many epochs the training has.
    """
    if isinstance(schedule, Cosine):
        return first * (1 + math.cos(math.pi * epochs / of)) / 2
    return first * schedule.factor ** math.floor(epochs / schedule.every)


def stretched(schedule: Steps | Cosine, share: float) -> Steps | Cosine:
    """`schedule` for a training that is `share` times as long."""
    if isinstance(schedule, Cosine):
        return schedule
    return replace(schedule, every=max(1, round(schedule.every * share)))
