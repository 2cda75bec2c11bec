"""The one place where a backend's name becomes a backend."""

import logging
from typing import Final

from engine.backends import Backend, BackendName, FallbackName
from engine.backends.onnxruntime_backend import OnnxRuntimeBackend
from engine.backends.tensorrt_backend import TensorRtBackend
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
    GPU may be too slow without it.
    """
    if backend == "onnxruntime":
        return OnnxRuntimeBackend(bundle, precision=precision)
    try:
        return TensorRtBackend(bundle, precision=precision)
    except BackendError as error:
        if fallback is None:
            raise
        _LOG.warning("%s; %s runs instead, as bundle.fallback allows", error, fallback)
        return OnnxRuntimeBackend(bundle, precision=precision)
