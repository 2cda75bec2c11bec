"""A runtime of another package: ONNX's own reference, exact and very slow.

The package names it by an entry point of the group `atac_agent.backends`: `reference`.
"""

from typing import Literal, Self

from engine.backends.base import BackendSpec, Outputs
from engine.bundle import Bundle, Precision
from engine.frame import Pixels


class Reference(BackendSpec):
    type: Literal["reference"] = "reference"
    title = module = "onnx"
    precisions = ("fp32",)


class ReferenceBackend:
    workers = 1

    def __init__(self, bundle: Bundle, *, precision: Precision) -> None:
        from onnx.reference import ReferenceEvaluator

        self.name = f"reference cpu {precision}"
        self._names = list(bundle.manifest.method.network.outputs)
        self._graph = ReferenceEvaluator(bundle.network(precision))

    def run(self, views: Pixels) -> Outputs:
        return dict(zip(self._names, self._graph.run(self._names, {"views": views}), strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


open = ReferenceBackend
