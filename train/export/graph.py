"""A trained network → ONNX.

views uint8 (N, side, side, 3)  →  its outputs by name, float32 (N, ...)
"""

import io
import logging
import warnings
from copy import deepcopy
from typing import Final

import onnx
import torch

from engine.methods import NetworkSpec
from train.network import Network

_OPSET: Final = 20


def onnx_graph(network: Network, spec: NetworkSpec, *, half: bool = False) -> bytes:
    """The network as ONNX, BatchNorm folded into convolutions, any batch size.

    With `half` it computes in fp16 where the network allows it: ATAC-Net's backbone. Its head stays
    in fp32, a small share of the work: its maps decide the box.
    """
    copy = deepcopy(network).cpu().eval().requires_grad_(requires_grad=False)
    copy.prepare_export(half=half)
    views = torch.zeros(2, spec.side, spec.side, 3, dtype=torch.uint8)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports the absence of torchvision, which nothing needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            program = torch.onnx.export(
                copy,
                (views,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["views"],
                output_names=list(spec.outputs),
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise AssertionError("the dynamo exporter returns a program")
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()
