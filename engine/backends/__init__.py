"""Runtimes that can run a bundle's network. All differ in one method only."""

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from engine.frame import Pixels

Maps = npt.NDArray[np.float32]

BackendName = Literal["auto", "onnxruntime", "openvino", "tensorrt"]
"""`auto` is OpenVINO where it is installed, else ONNX Runtime."""
FallbackName = Literal["onnxruntime"]
"""What may take over where the backend asked for cannot be used."""

MOST_LANES: Final = 4
"""Parts in hand on a CPU with more cores: beyond that each only waits longer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkOutput:
    """What the network says of N views: two float32 `(N, h, w)` maps.

    `score_map` is a_mp (Eq 3 and 7), signed; `attention` is C_attn (Eq 4), not negative.
    """

    score_map: Maps
    attention: Maps


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

    def run(self, views: Pixels) -> NetworkOutput: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
