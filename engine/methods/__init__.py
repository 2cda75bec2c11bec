"""Methods: what makes an inspection of a frame's pixels, from the network of a bundle.

Each is one module of this package, or of an installed one (`engine/registry.py`). It exports its
spec, a `MethodSpec` with `type: Literal[...]`, which the manifest holds, and
`open(spec, backend)`, which gives an `Inspector` over an open backend.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import numpy as np
from pydantic import Field

from engine.errors import InspectionError
from engine.frame import Inspection, Pixels
from engine.inspector import Inspector, OpenInspector
from engine.region_spec import RegionsSpec
from engine.registry import Kinds
from engine.spec import spec

if TYPE_CHECKING:
    from engine.backends.base import Backend
    from engine.gpu.device import DeviceOpening

Shape = tuple[Annotated[int, Field(ge=1)], ...]


@spec
class NetworkSpec:
    """The network's one input and its outputs, the same in every precision.

    The input `views` is uint8 `(N, side, side, 3)` RGB. Each of `outputs` is float32 `(N, *shape)`.
    """

    side: Annotated[int, Field(ge=1)]
    outputs: Annotated[dict[str, Shape], Field(min_length=1)]

    @property
    def tensors(self) -> "dict[str, tuple[Shape, np.dtype[Any]]]":
        """Shape after the batch, and type, of `views` and of each output."""
        views = ((self.side, self.side, 3), np.dtype(np.uint8))
        outputs = {name: (shape, np.dtype(np.float32)) for name, shape in self.outputs.items()}
        return {"views": views, **outputs}


@spec
class MethodSpec:
    """What a bundle's method is and how it works; each method has a class of its own for it.

    `regions` are what of a frame it inspects; `None`: all of it.
    """

    network: NetworkSpec
    regions: RegionsSpec | None = None

    def on_device(self, opening: "DeviceOpening", *, max_pixels: int) -> OpenInspector | None:
        """The whole inspection on the device of this network; `None`: only the network runs there.

        `max_pixels` is the largest frame that the device keeps memory for.
        """
        del opening, max_pixels
        return None


METHODS: Final = Kinds("engine.methods", MethodSpec, noun="method")
AnyMethod = Annotated[MethodSpec, METHODS]


def open_method(method: MethodSpec, backend: "Backend") -> OpenInspector:
    """The inspector of `method` over an open `backend`, which it closes when it is left."""
    from engine.region_inspector import in_regions

    opened = METHODS.of(method).open(method, backend)
    return in_regions(method, _MethodInspector(opened, backend, method.network.side))


class _MethodInspector:
    """What a method has found, checked; the rest is its backend's."""

    def __init__(self, inspector: Inspector, backend: "Backend", side: int) -> None:
        self._inspector = inspector
        self._backend = backend
        self._side = side

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def workers(self) -> int:
        return self._backend.workers

    def warm_up(self) -> None:
        self._backend.run(np.zeros((1, self._side, self._side, 3), np.uint8))

    def lend(self, memory: Pixels | None) -> None:
        """The views are made here, on the host."""

    def inspect(self, pixels: Pixels) -> Inspection:
        found = self._inspector.inspect(pixels)
        require_score(found.score, self.name)
        return found

    def __enter__(self) -> Self:
        self._backend.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._backend.__exit__(*error)


def require_score(score: float, name: str) -> None:
    """Raise `InspectionError` for a score that is not finite; `name` is what answered it."""
    if not math.isfinite(score):
        raise InspectionError(
            f"{name} answered a score of {score}: the network or its runtime is broken; "
            "check with: agent doctor"
        )
