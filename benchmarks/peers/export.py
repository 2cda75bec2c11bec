"""anomalib's models with random weights → OpenVINO files, fp32 and int8.

Without their post-processing, a few operations that scale scores and maps by what training saw.
Runs in the environment that `benchmarks.peers.set_up` makes; its last line of output is JSON.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

# A torchvision with CUDA beside a torch without: its compiled operations do not load. None of them
# is used here, but two must be declared before the package can be imported.
for name in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{name}", "(Tensor dets, Tensor scores, float limit) -> Tensor"
    )

import openvino  # noqa: E402
import timm  # noqa: E402
from anomalib.models import EfficientAd, Patchcore, Supersimplenet  # noqa: E402
from torch import nn  # noqa: E402

PATCHES = 21402  # 10 % of the 32 × 32 patches of 209 images, as anomalib's default keeps


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, required=True)
    options = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"
    made = timm.create_model
    timm.create_model = lambda *a, **k: made(*a, **(k | {"pretrained": False}))
    torch.manual_seed(0)
    exported, missing = [], {}
    for name, make in {
        "PatchCore ResNet-18": lambda: patchcore("resnet18", 384),
        "PatchCore WideResNet-50": lambda: patchcore("wide_resnet50_2", 1536),
        "EfficientAD-S": lambda: EfficientAd(model_size="small", post_processor=False),
        "SuperSimpleNet": lambda: Supersimplenet(post_processor=False),
    }.items():
        folder = options.out / name.replace(" ", "-").lower()
        try:
            side = options.side
            path = (
                make()
                .eval()
                .to_openvino(folder, input_size=(side, side), onnx_kwargs={"opset_version": 18})
            )
            shape = openvino.Core().read_model(path).inputs[0].partial_shape
            batch = 1 if shape[0].is_dynamic else shape[0].get_length()
            entry = {"name": name, "batch": batch}
            file = str(path.relative_to(options.out))
            exported.append(entry | {"precision": "fp32", "file": file})
        except Exception as error:  # noqa: BLE001 - the others go on, and this one is told
            missing[f"{name}, fp32"] = told(error)
            continue
        try:
            quantised = path.with_name("int8.xml")
            quantise(path, quantised, options.images, side, batch)
            file = str(quantised.relative_to(options.out))
            exported.append(entry | {"precision": "int8", "file": file})
        except Exception as error:  # noqa: BLE001
            missing[f"{name}, int8"] = told(error)
    print(json.dumps({"exported": exported, "missing": missing}))


def patchcore(backbone: str, features: int) -> nn.Module:
    model = Patchcore(backbone=backbone, pre_trained=False, post_processor=False)
    model.model.memory_bank = torch.rand(PATCHES, features)
    return model


def quantise(source: Path, target: Path, images: Path, side: int, batch: int) -> None:
    import nncf  # noqa: PLC0415 - may be missing, which is told

    model = openvino.Core().read_model(source)
    dataset = nncf.Dataset([one.repeat(batch, axis=0) for one in planes(images, side)])
    openvino.save_model(nncf.quantize(model, dataset, subset_size=32), target)


def planes(images: Path, side: int) -> Iterator[np.ndarray]:
    files = sorted(file for file in images.rglob("*") if file.suffix in {".jpg", ".png"})
    for file in files[:: -(-len(files) // 32)]:
        pixels = cv2.resize(cv2.imread(str(file))[..., ::-1], (side, side))
        yield np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32) / 255


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    main()
