"""The one place where a backend's name becomes a backend, or an inspector over it."""

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from engine.backends import MAX_PIXELS, Backend, BackendName, FallbackName
from engine.bundle import Bundle, Precision
from engine.errors import BackendError
from engine.inspector import OpenInspector
from engine.methods import open_method

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

    Warmed up, so that what cannot inspect is known here. `max_pixels` is the largest frame that a
    GPU keeps memory for. `backend`, `fallback` and errors are those of `open_backend`.
    """

    def opened(name: BackendName) -> OpenInspector:
        inspector = _inspector(bundle, name, precision, max_pixels)
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

    Raises `BackendError` when the backend cannot be used and no `fallback` is named; with one,
    the reason is logged as a warning. Nothing falls back by itself: a line that was planned for a
    GPU may be too slow without it.
    """
    return _or_fallback(
        lambda name: _backend(bundle, name, precision), backend, precision, fallback
    )


def _or_fallback(
    opened: Callable[[BackendName], _Opened],
    backend: BackendName,
    precision: Precision,
    fallback: FallbackName | None,
) -> _Opened:
    def checked(name: BackendName) -> _Opened:
        if precision == "bf16" and name != "openvino":
            raise BackendError(
                f"bf16 is OpenVINO's, not {name}'s: set bundle.backend to openvino, or "
                "bundle.precision to fp32"
            )
        return opened(name)

    try:
        return checked(backend)
    except BackendError as error:
        if fallback is None or fallback == backend:
            raise
        _LOG.warning("%s; %s runs instead, as bundle.fallback allows", error, fallback)
        return checked(fallback)


def _inspector(
    bundle: Bundle, backend: BackendName, precision: Precision, max_pixels: int
) -> OpenInspector:
    if backend == "tensorrt":
        from engine.backends.tensorrt_backend import open_device_inspector

        return open_device_inspector(bundle, precision=precision, max_pixels=max_pixels)
    return open_method(bundle.manifest.method, _backend(bundle, backend, precision))


def _backend(bundle: Bundle, backend: BackendName, precision: Precision) -> Backend:
    # A runtime takes time and memory to import: only that which is used.
    match backend:
        case "openvino":
            from engine.backends.openvino_backend import OpenVinoBackend

            return OpenVinoBackend(bundle, precision=precision)
        case "tensorrt":
            from engine.backends.tensorrt_backend import TensorRtBackend

            return TensorRtBackend(bundle, precision=precision)
        case "onnxruntime":
            from engine.backends.onnxruntime_backend import OnnxRuntimeBackend

            return OnnxRuntimeBackend(bundle, precision=precision)
