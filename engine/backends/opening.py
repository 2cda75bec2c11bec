"""The one place where a backend's name becomes a backend."""

import logging
from typing import Final

from engine.backends import Backend, BackendName, FallbackName
from engine.bundle import Bundle, Precision
from engine.errors import BackendError

_LOG: Final = logging.getLogger(__name__)


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
    GPU may be too slow without it. `auto` is what is proven on any CPU: ONNX Runtime (ADR 13).
    """
    if backend == "auto":
        backend = "onnxruntime"
    try:
        return _opened(bundle, backend, precision)
    except BackendError as error:
        if fallback is None or fallback == backend:
            raise
        _LOG.warning("%s; %s runs instead, as bundle.fallback allows", error, fallback)
        return _opened(bundle, fallback, precision)


def _opened(bundle: Bundle, backend: BackendName, precision: Precision) -> Backend:
    # A runtime takes time and memory to import: only that which is used.
    match backend:
        case "openvino":
            from engine.backends.openvino_backend import OpenVinoBackend

            return OpenVinoBackend(bundle, precision=precision)
        case "tensorrt":
            from engine.backends.tensorrt_backend import TensorRtBackend

            return TensorRtBackend(bundle, precision=precision)
        case _:
            from engine.backends.onnxruntime_backend import OnnxRuntimeBackend

            return OnnxRuntimeBackend(bundle, precision=precision)
