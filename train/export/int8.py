"""The fp32 ONNX graph of a bundle, quantised to int8."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from engine.backends.base import Backend, Outputs
from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.bundle import Bundle
from engine.frame import Pixels
from engine.methods import open_method
from train.datasets import Images, Split
from train.network import Network

_IMAGES: Final = 64


def int8_graph(
    bundle: Bundle, network: Network, images: Images, split: Split, *, symmetric: bool = False
) -> bytes:
    """The fp32 network of `bundle` quantised (QDQ), but for what `network` wants exact.

    Ranges come from training images as the method shows them to the network; the mean of their
    extremes, so that one odd image does not coarsen them all. Weights are symmetric per channel and
    use 7 bits: on CPUs without VNNI two 8-bit products overflow their 16-bit sum, and scores with
    it. Activations are unsigned with a zero point, which keeps all 8 bits after a ReLU.

    Args:
        bundle: Has the fp32 graph.
        network: The same in torch; says which layers stay exact and which operators are quantised.
        images: The images of the bundle's split.
        split: Says which of them trained.
        symmetric: As TensorRT takes it: signed activations whose zero point is 0, weights of all 8
            bits written as QDQ pairs too, and nothing quantised but what a convolution reads.
    """
    fp32 = onnx.load_model_from_string(bundle.network("fp32"))
    # The graph needs no preparation: shapes are known and BatchNorm is folded.
    onnx.helper.set_model_props(fp32, {"onnx.quant.pre_process": "onnxruntime.quant"})
    exact: list[str] = []
    of_exact: set[str] = set()
    for node in fp32.graph.node:  # in the order of execution
        if any(name.startswith(network.exact_in_int8) or name in of_exact for name in node.input):
            exact.append(node.name)
            of_exact.update(node.output)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            fp32,
            target,
            _Views(_shown_views(bundle, images, split)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"] if symmetric else list(network.int8_operators),
            nodes_to_exclude=exact,
            per_channel=True,
            reduce_range=not symmetric,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": symmetric,
                "AddQDQPairToWeight": symmetric,
                "CalibMovingAverage": True,
                "OpTypesToExcludeOutputQuantization": ["Conv"] if symmetric else [],
                "QuantizeBias": False,
            },
        )
        return target.read_bytes()


class _Views:
    """Hands views, one at a time, to ONNX Runtime's int8 calibration."""

    def __init__(self, views: Sequence[Pixels]) -> None:
        self._views: Iterator[Pixels] = iter(views)

    def get_next(self) -> dict[str, Pixels] | None:
        view = next(self._views, None)
        return None if view is None else {"views": view[None]}


class _Recording:
    """A backend that keeps every view it is shown."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.views: list[Pixels] = []

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def workers(self) -> int:
        return 1

    def run(self, views: Pixels) -> Outputs:
        self.views.extend(views)
        return self._backend.run(views)

    def __enter__(self) -> Self:
        self._backend.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._backend.__exit__(*error)


def _shown_views(bundle: Bundle, images: Images, split: Split) -> list[Pixels]:
    """What the method shows the network of training images, known defects first."""
    recording = _Recording(OnnxRuntimeBackend(bundle))
    with open_method(bundle.manifest.method, recording) as inspector:
        for item in (*split.train_defective, *split.train_good)[:_IMAGES]:
            inspector.inspect(images.pixels(item))
    return recording.views
