"""anomalib, imported where torch comes without CUDA and torchvision with it.

torchvision's compiled operations do not load then. None of them is used here, but two must be
declared before the package can be imported.
"""

from importlib import import_module
from typing import Any

import torch


def anomalib(part: str) -> Any:
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float limit) -> Tensor"
        )
    return import_module(f"anomalib.{part}")
