"""Where a backend's name becomes an open backend, or an inspector over it."""

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from engine.backends.base import (
    BACKENDS,
    MAX_PIXELS,
    Backend,
    BackendName,
    BackendSpec,
    FallbackName,
)
from engine.bundle import Bundle, Precision
from engine.errors import BackendError, KindError
from engine.inspector import OpenInspector
from engine.methods import open_method
from engine.registry import Kind

_LOG: Final = logging.getLogger(__name__)
_Opened = TypeVar("_Opened")


def open_inspector(
    bundle: Bundle,
    *,
    backend: BackendName = "onnxruntime",
    precision: Precision = "fp32",
    fallback: FallbackName | None = None,
    max_pixels: int = MAX_PIXELS,
) -> OpenInspector:
    """What `agent run` inspects with; on a GPU as much of it as the method can do there.

    It is warmed up, so what cannot inspect is known here.

    Args:
        bundle: What is inspected with.
        backend: The runtime, by its type.
        precision: Which network of the bundle it runs.
        fallback: As in `open_backend`.
        max_pixels: The largest frame that a GPU keeps memory for.

    Raises:
        BackendError: The backend cannot be used, and there is no fallback.
    """

    def opened(kind: Kind[BackendSpec]) -> OpenInspector:
        inspector = _inspector(bundle, kind, precision, max_pixels)
        try:
            inspector.warm_up()
        except BaseException as error:
            inspector.__exit__(type(error), error, error.__traceback__)
            raise
        return inspector

    return _or_fallback(opened, backend, precision, fallback)


def open_backend(
    bundle: Bundle,
    *,
    backend: BackendName = "onnxruntime",
    precision: Precision = "fp32",
    fallback: FallbackName | None = None,
) -> Backend:
    """The bundle's network of this precision, loaded and ready.

    Nothing falls back by itself: a line that was planned for a GPU may be too slow without it.

    Args:
        bundle: The bundle that holds the network.
        backend: The runtime, by its type.
        precision: Which network of the bundle it runs.
        fallback: What runs instead if the backend cannot be used; the reason is logged as a
            warning.

    Raises:
        BackendError: The backend cannot be used, and there is no fallback.
    """
    return _or_fallback(
        lambda kind: _backend(bundle, kind, precision), backend, precision, fallback
    )


def _or_fallback(
    opened: Callable[[Kind[BackendSpec]], _Opened],
    backend: BackendName,
    precision: Precision,
    fallback: FallbackName | None,
) -> _Opened:
    def checked(name: BackendName) -> _Opened:
        try:
            kind = BACKENDS.find(name)
        except KindError as error:
            raise BackendError(f"there is no backend {name!r}: {error}") from error
        if precision not in kind.settings.precisions:
            raise BackendError(
                f"{kind.settings.title} does not compute in {precision}, but in "
                f"{', '.join(kind.settings.precisions)}; choose another precision or backend"
            )
        return opened(kind)

    try:
        return checked(backend)
    except BackendError as error:
        if fallback is None or fallback == backend:
            raise
        _LOG.warning("%s; %s runs instead, as bundle.fallback allows", error, fallback)
        return checked(fallback)


def _inspector(
    bundle: Bundle, kind: Kind[BackendSpec], precision: Precision, max_pixels: int
) -> OpenInspector:
    whole = kind.settings.inspector(bundle, precision=precision, max_pixels=max_pixels)
    if whole is not None:
        return whole
    return open_method(bundle.manifest.method, _backend(bundle, kind, precision))


def _backend(bundle: Bundle, kind: Kind[BackendSpec], precision: Precision) -> Backend:
    backend: Backend = kind.open(bundle, precision=precision)
    return backend
