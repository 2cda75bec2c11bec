"""What a runtime must do to run a bundle's network, and how the runtimes are found.

Each is one module of this package, or of an installed one (`engine/registry.py`). It exports a
`BackendSpec` with `type: Literal[...]`, and `open(bundle, precision=...)`, which gives a `Backend`.
It imports the runtime itself in `open` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field
from pydantic_core import PydanticKnownError

from engine.bundle import Bundle, Precision
from engine.errors import BackendError, KindError
from engine.extras import install
from engine.frame import Pixels
from engine.inspector import OpenInspector
from engine.registry import Kinds

if TYPE_CHECKING:
    from engine.gpu.verdicts import Verdicts

Outputs = Mapping[str, npt.NDArray[np.float32]]
"""What the network says of N views: its outputs by name, float32 `(N, ...)`."""

BackendName = str
"""The type of a runtime in `BACKENDS`, such as `onnxruntime`."""
PrecisionChoice = Literal["auto", Precision]
FallbackName = Literal["onnxruntime"]
"""What may run instead if the configured backend cannot."""

MOST_WORKERS: Final = 4
"""On a CPU with more cores, further parts at once would only wait longer."""
MAX_PIXELS: Final = 24_000_000
"""The largest frame that a GPU keeps memory for, unless a setting says another."""


Progress = Callable[[str, int, int], None]
"""Hears of a phase of a build: its name, steps done, steps in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A network made ready for the GPU of this machine; whether it runs there is not known yet.

    Args:
        precision: Which network of the bundle.
        told: What was done, in words.
        target: GPU and runtime, in words.
        facts: The same for programs.
        verdicts: How its verdicts compared with ONNX Runtime's.
        open: Opens it, compared or not.
        remedy: What to do where it does not run.
    """

    precision: Precision
    told: str
    target: str
    facts: Mapping[str, object]
    verdicts: "Verdicts"
    open: Callable[[], OpenInspector]
    remedy: str


class BackendSpec:
    """What a runtime is and can do; each module of `engine/backends` has a class of its own.

    `title` is its name for people, `module` what is imported and `extra` what installs it. It runs
    networks of these `precisions`. Those `on_cpu` differ in rounding only; `auto` takes the one of
    the lowest `rank` that is installed.
    """

    title: ClassVar[str]
    module: ClassVar[str]
    extra: ClassVar[str | None] = None
    precisions: ClassVar[tuple[Precision, ...]]
    on_cpu: ClassVar[bool] = False
    rank: ClassVar[int] = 0

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it is there; loads nothing."""
        return find_spec(cls.module) is not None

    @classmethod
    def install(cls) -> str:
        """The command that installs it."""
        return install(cls.extra) if cls.extra else f"pip install {cls.module}"

    @classmethod
    def graph(cls, precision: Precision) -> Precision:
        """Whose network it runs: bf16 is the fp32 network as some processors compute it."""
        return "fp32" if precision == "bf16" else precision

    @classmethod
    def inspector(
        cls, bundle: Bundle, *, precision: Precision, max_pixels: int
    ) -> OpenInspector | None:
        """More of the inspection than the network; `None`: this runtime has no way to do that.

        `max_pixels` is the largest frame that it keeps memory for.
        """
        del bundle, precision, max_pixels
        return None

    @classmethod
    def build(
        cls, bundle: Bundle, *, precision: Precision, cache: Path | None, progress: Progress
    ) -> Built | None:
        """What `agent build` makes, and compares with ONNX Runtime; `None`: there is nothing to do.

        Args:
            bundle: The bundle that holds the network.
            precision: Which network of the bundle.
            cache: Where it is kept, by default in the user's cache folder.
            progress: Hears of each step.

        Raises:
            BackendError: It cannot be made here.
        """
        del bundle, precision, cache, progress
        return None


BACKENDS: Final = Kinds("engine.backends", BackendSpec, noun="backend")
"""The runtimes that there are. The `open` of each takes a bundle and `precision`."""


def cpu_backends(precision: Precision) -> tuple[BackendName, ...]:
    """What runs networks of this precision on the CPU, the fastest first.

    Those that are installed; where none is, all: what is missing is said when it is opened.
    """
    able = [
        kind
        for kind in map(BACKENDS.find, BACKENDS.names())
        if kind.settings.on_cpu and precision in kind.settings.precisions
    ]
    there = [kind for kind in able if kind.settings.is_installed()] or able
    return tuple(kind.name for kind in sorted(there, key=lambda kind: kind.settings.rank))


def backend_of(record: str) -> BackendName | None:
    """The backend that a record names, as in `openvino cpu int8`; `None` where it is none here."""
    word = record.partition(" ")[0]
    return next(
        (name for name in BACKENDS.names() if word == name or word.startswith(f"{name}_")), None
    )


def _known(name: str) -> str:
    if name != "auto":
        try:
            BACKENDS.find(name)
        except KindError:
            known = ", ".join(f"'{each}'" for each in ("auto", *BACKENDS.names()))
            raise PydanticKnownError("literal_error", {"expected": known}) from None
    return name


BackendChoice = Annotated[BackendName, Field(max_length=64), AfterValidator(_known)]
"""`auto` is what the threshold was made with, or the fastest that keeps the verdicts (ADR 13)."""


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

    `run` takes uint8 RGB views `(N, side, side, 3)`, N ≥ 1, in C order; as many threads as
    `workers` says may call it at once. It raises `BackendError` when the runtime fails.
    """

    @property
    def name(self) -> str:
        """Runtime, device and precision, for records: `onnxruntime cpu fp32`."""
        ...

    @property
    def workers(self) -> int:
        """How many parts should be inspected at once."""
        ...

    def run(self, views: Pixels) -> Outputs: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
