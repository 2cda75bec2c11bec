"""Runtimes that can run a bundle's network. All differ in one method only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self, get_args

import numpy as np
import numpy.typing as npt

from engine.bundle import Precision
from engine.errors import BackendError
from engine.frame import Pixels

Outputs = Mapping[str, npt.NDArray[np.float32]]
"""What the network says of N views: its outputs by name, float32 `(N, ...)`."""

BackendName = Literal["onnxruntime", "openvino", "tensorrt"]
BACKENDS: Final[tuple[BackendName, ...]] = get_args(BackendName)
BackendChoice = Literal["auto", BackendName]
"""`auto` is what the threshold was made with, or the fastest that keeps the verdicts (ADR 13)."""
PrecisionChoice = Literal["auto", Precision]
FallbackName = Literal["onnxruntime"]
"""What may take over where the backend asked for cannot be used."""

MOST_LANES: Final = 4
"""Parts in hand on a CPU with more cores: beyond that each only waits longer."""
MAX_PIXELS: Final = 24_000_000
"""The largest frame that a GPU keeps memory for, unless it is told another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What scores, and so thresholds, belong to: a backend and the precision it computes in."""

    backend: BackendName
    precision: Precision

    @property
    def cpu_name(self) -> str:
        """What records call it, where it runs on a CPU: `onnxruntime cpu fp32`."""
        return f"{self.backend} cpu {self.precision}"


def joined(turns: Sequence[Outputs]) -> Outputs:
    """The outputs of several turns, at least one, one after the other."""
    return {name: np.concatenate([turn[name] for turn in turns]) for name in turns[0]}


def require_views(views: Pixels, side: int, name: str) -> None:
    """Raise `BackendError` for what is not uint8 `(N, side, side, 3)`, N ≥ 1; `name` says who."""
    if views.dtype != np.uint8 or views.shape[1:] != (side, side, 3) or not len(views):
        raise BackendError(
            f"{name} takes uint8 (N, {side}, {side}, 3), not {views.dtype} {views.shape}"
        )


class Backend(Protocol):
    """A network, loaded and ready; a context manager that owns its memory and threads.

    `run` takes uint8 RGB views `(N, side, side, 3)`, N ≥ 1, in C order. As many threads as `lanes`
    says may call it at once. Raises `BackendError` when the runtime fails.
    """

    @property
    def name(self) -> str:
        """Runtime, device and precision, for records: `onnxruntime cpu fp32`."""
        ...

    @property
    def lanes(self) -> int:
        """How many parts are worth having in hand at once."""
        ...

    def run(self, views: Pixels) -> Outputs: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
