"""OpenVINO on the CPU: the fastest for int8; docs/adr/0013 has the figures."""

import importlib
import json
import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, Self

import numpy as np

from engine.backends.base import MOST_WORKERS, BackendSpec, Outputs, joined, require_views
from engine.bundle import Bundle, Precision, replace_file, sha256
from engine.errors import BackendError
from engine.frame import Pixels
from engine.regular_file import read_regular
from engine.seal import sealed, unsealed

_KEPT: Final = 8
"""Compiled networks in the cache; each is as large as its network."""
_BLOB_MAX_BYTES: Final = 4 << 30


class OpenVino(BackendSpec):
    """The fastest on CPUs, and the only one with bf16; what it runs is for CPUs alone."""

    type: Literal["openvino"] = "openvino"
    title = "OpenVINO"
    module = "openvino"
    extra = "cpu"
    precisions = ("fp32", "bf16", "fp16", "int8")
    on_cpu = True
    rank = 1


class OpenVinoBackend:
    """A `Backend` with a compiled network for each worker.

    What is not int8 is computed in fp32: OpenVINO would otherwise take bf16 where a processor has
    it, and scores would depend on the machine. One network with a stream for each worker would need
    less memory, but is sometimes wrong: the streams are built at the same time and share weights
    that are still being computed (ADR 13).

    Args:
        bundle: The bundle that holds the network.
        precision: Which network it runs; `bf16` is the fp32 network computed in bf16, and a
            processor without it is refused.
        threads: All workers share them; 0 takes one for each core.
        cache: The folder of compiled networks, by default in the user's cache folder. They are used
            again if this user has sealed them.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "fp32",
        threads: int = 0,
        cache: Path | None = None,
    ) -> None:
        openvino = find_openvino()
        threads = threads or os.cpu_count() or 1
        self._name = f"openvino cpu {precision}"
        network = bundle.manifest.method.network
        self._side, self._outputs = network.side, tuple(network.outputs)
        self._workers = min(threads, MOST_WORKERS)
        graph = bundle.network(OpenVino.graph(precision))
        with _explained(f"OpenVINO {openvino.__version__} cannot load {bundle.path}, {precision}"):
            compiled = _compiled(
                openvino,
                graph,
                side=self._side,
                hint="bf16" if precision == "bf16" else "f32",
                threads=[
                    len(range(number, threads, self._workers)) for number in range(self._workers)
                ],
                cache=cache_folder() if cache is None else cache,
            )
            self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for each in compiled:
                self._free.put(each.create_infer_request())

    @property
    def name(self) -> str:
        return self._name

    @property
    def workers(self) -> int:
        return self._workers

    def run(self, views: Pixels) -> Outputs:
        require_views(views, self._side, self._name)
        request = self._free.get()
        try:
            with _explained(f"{self._name} failed on {views.shape}"):
                # The network is compiled for one view, which is faster than for any number.
                outputs = [self._inferred(request, view[None]) for view in views]
        finally:
            self._free.put(request)
        return joined(outputs)

    def _inferred(self, request: Any, view: Pixels) -> Outputs:
        found = request.infer({"views": np.ascontiguousarray(view)}, share_inputs=True)
        return {name: found[name] for name in self._outputs}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait()


def find_openvino() -> Any:
    """The installed OpenVINO; raises `BackendError` where there is none."""
    # Its conversion tools would load a package that reports their use over the network. Nothing
    # here converts; with an empty module in its place nothing can be sent.
    sys.modules.setdefault("openvino_telemetry", ModuleType("openvino_telemetry"))
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"OpenVINO cannot be imported ({error}); install with: {OpenVino.install()}"
        ) from error


def cache_folder() -> Path:
    """Where compiled networks are kept: `atac-agent/openvino` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "atac-agent" / "openvino"


def _compiled(
    openvino: Any,
    network: bytes,
    *,
    side: int,
    hint: Literal["f32", "bf16"],
    threads: list[int],
    cache: Path,
) -> list[Any]:
    """The compiled network, once for each entry of `threads`, which is its number of threads.

    `hint` is the precision of convolutions that are not int8.

    From the cache where it is there, for this machine, and sealed for this network. What was just
    compiled is taken by the same way, so that the first start is no different from all later ones.
    """
    settings: dict[str, object] = {
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": hint,
        # Cameras, ledger and MQTT live on the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    has = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if hint == "bf16" and "BF16" not in has:
        raise BackendError(
            f"this processor does not compute in bf16 (it names {', '.join(has)}); set "
            "bundle.precision to int8 or fp32, and calibrate again"
        )
    key = [
        sha256(network),
        openvino.__version__,
        core.get_property("CPU", "FULL_DEVICE_NAME"),
        has,
        settings,
    ]
    path = cache / f"{sha256(json.dumps(key).encode())[:32]}.blob"
    with suppress(OSError, RuntimeError):
        blob = unsealed(cache, read_regular(path, limit=_BLOB_MAX_BYTES), purpose=path.name)
        if blob is not None:
            return _copies(core, blob, settings, threads)
    model = core.read_model(network)
    model.reshape({"views": [1, side, side, 3]})
    blob = core.compile_model(model, "CPU", settings).export_model().getvalue()
    with suppress(OSError):  # a device without a home compiles at every start
        replace_file(path, sealed(cache, blob, purpose=path.name))
        for old in sorted(cache.glob("*.blob"), key=lambda file: -file.stat().st_mtime)[_KEPT:]:
            old.unlink()
    return _copies(core, blob, settings, threads)


def _copies(core: Any, blob: bytes, settings: dict[str, object], threads: list[int]) -> list[Any]:
    return [
        core.import_model(blob, "CPU", settings | {"INFERENCE_NUM_THREADS": each})
        for each in threads
    ]


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except BackendError:
        raise
    except Exception as error:  # OpenVINO's exceptions share no base class
        raise BackendError(f"{what}: {str(error).strip().splitlines()[-1]}") from error


open = OpenVinoBackend
