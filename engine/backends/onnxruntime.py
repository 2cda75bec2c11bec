"""ONNX Runtime on the CPU: the embedded default, and the oracle the others are compared with."""

import os
from typing import Literal, Self

import numpy as np

from engine.backends.base import MOST_WORKERS, BackendSpec, Outputs
from engine.bundle import Bundle, Precision
from engine.errors import BackendError
from engine.frame import Pixels
from engine.privacy import keep_private


class OnnxRuntime(BackendSpec):
    """It computes everything that a bundle may have, and what others compute is held to it."""

    type: Literal["onnxruntime"] = "onnxruntime"
    title = "ONNX Runtime"
    module = "onnxruntime"
    precisions = ("fp32", "fp16", "int8", "int8_symmetric")
    on_cpu = True
    rank = 2


class OnnxRuntimeBackend:
    """A `Backend` over an ONNX Runtime CPU session; `threads=0` takes one per core.

    The workers share the session and its threads: a part alone has all of them, and while the
    views of one part are made another part has the network.
    """

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", threads: int = 0) -> None:
        keep_private()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        threads = threads or os.cpu_count() or 1
        self._workers = min(threads, MOST_WORKERS)
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle workers must sleep: the camera, the ledger and MQTT live on the same cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if precision == "int8_symmetric":
            # Its weights have 8 bits, which overflow on CPUs without VNNI: what was rounded to
            # 8 bits is multiplied as fp32, as exact as a GPU's integers.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        network = bundle.network(precision)
        try:
            self._session = onnxruntime.InferenceSession(
                network, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load the {precision} network "
                f"of {bundle.path}: {error}"
            ) from error
        self._name = f"onnxruntime cpu {precision}"
        self._outputs = list(bundle.manifest.method.network.outputs)

    @property
    def name(self) -> str:
        return self._name

    @property
    def workers(self) -> int:
        return self._workers

    def run(self, views: Pixels) -> Outputs:
        try:
            found = self._session.run(self._outputs, {"views": np.ascontiguousarray(views)})
        except Exception as error:
            raise BackendError(f"{self._name} failed on {views.shape}: {error}") from error
        return dict(zip(self._outputs, found, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._session


open = OnnxRuntimeBackend
