"""anomalib's models with random weights → OpenVINO files for one image, fp32 and int8.

With the pre- and post-processing that anomalib exports with them. What training leaves in a model
is put there, as it changes what is computed: PatchCore's memory in the size that anomalib's default
keeps of the good images, and the statistics that scale maps and scores.

Runs in the environment that `benchmarks.peers.set_up` makes; its last line of output is JSON.
"""

import argparse
import json
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino
import torch
from torch import nn

from benchmarks.peers.importing import anomalib
from benchmarks.peers.turns import SIDE, told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--good", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"
    models = anomalib("models")  # first: it declares what timm's own imports need
    timm = import_module("timm")
    made = timm.create_model
    timm.create_model = lambda *a, **k: made(*a, **(k | {"pretrained": False}))
    torch.manual_seed(0)
    good = sorted(file for file in options.good.iterdir() if file.suffix in {".jpg", ".png"})
    exported, missing = [], {}
    for name, make in {
        "PatchCore ResNet-18": lambda: patchcore(models, "resnet18", len(good)),
        "PatchCore WideResNet-50": lambda: patchcore(models, "wide_resnet50_2", len(good)),
        "EfficientAD-S": lambda: efficientad(models),
        "SuperSimpleNet": lambda: (models.Supersimplenet(), {}),
    }.items():
        try:
            model, facts = make()
            path = saved(model, options.out / name.replace(" ", "-").lower())
            exported.append({"name": name, "precision": "fp32"} | facts)
            exported[-1] |= checked(path, options.out, good)
        except Exception as error:  # noqa: BLE001 - the others go on, and this one is told
            missing[f"{name}, fp32"] = told(error)
            continue
        try:
            quantised = path.with_name("int8.xml")
            quantise(path, quantised, good)
            entry = {"name": name, "precision": "int8"} | facts
            exported.append(entry | checked(quantised, options.out, good))
        except Exception as error:  # noqa: BLE001
            missing[f"{name}, int8"] = told(error)
    versions = {name: version(name) for name in ("anomalib", "openvino", "torch")}
    print(json.dumps({"versions": versions, "exported": exported, "missing": missing}))


def patchcore(models: Any, backbone: str, images: int) -> tuple[nn.Module, dict[str, Any]]:
    lightning = models.Patchcore(backbone=backbone, pre_trained=False)
    model = lightning.model
    cells, features = model.train()(torch.zeros(1, 3, SIDE, SIDE)).shape
    model.embedding_store.clear()
    share = lightning.coreset_sampling_ratio
    patches = int(images * cells * share)
    model.memory_bank = torch.rand(patches, features)
    memory = {
        "patches": patches,
        "features": features,
        "of": f"{share:.0%} of {cells} patches each of {images} images",
        "values": "random",
    }
    return lightning, {"memory": memory}


def efficientad(models: Any) -> tuple[nn.Module, dict[str, Any]]:
    lightning = models.EfficientAd(model_size="small")
    model = lightning.model
    for statistics, values in (
        (model.mean_std, {"mean": 0.1, "std": 0.9}),
        (model.quantiles, {"qa_st": 0.1, "qb_st": 0.9, "qa_ae": 0.1, "qb_ae": 0.9}),
    ):
        for key, value in values.items():
            statistics[key].data.fill_(value)
    return lightning, {}


def saved(lightning: nn.Module, folder: Path) -> Path:
    """Exported for one image. anomalib's default, any number of images, becomes two with PatchCore,
    which OpenVINO then insists on.
    """
    scaled = lightning.post_processor
    for key, value in {
        "image_min": 0.0,
        "pixel_min": 0.0,
        "image_max": 1.0,
        "pixel_max": 1.0,
        "_image_threshold": 0.5,
        "_pixel_threshold": 0.5,
    }.items():
        getattr(scaled, key).fill_(value)
    path: Path = lightning.eval().to_openvino(
        folder,
        input_size=(SIDE, SIDE),
        onnx_kwargs={"opset_version": 18, "dynamic_axes": None},
    )
    return path


def checked(path: Path, out: Path, good: list[Path]) -> dict[str, Any]:
    """A model that has looked at one image, described; raises where it cannot."""
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled(next(planes(good)))
    outputs = {one.any_name: answer[one] for one in compiled.outputs}
    for key, values in outputs.items():
        if values.shape[0] != 1 or not np.isfinite(values).all():
            raise ValueError(f"{key} of one image has shape {values.shape} or is not finite")
    return {
        "file": str(path.relative_to(out)),
        "input": list(compiled.inputs[0].shape),
        "outputs": {key: list(values.shape) for key, values in outputs.items()},
    }


def quantise(source: Path, target: Path, good: list[Path]) -> None:
    import nncf  # noqa: PLC0415 - may be missing, which is told

    model = openvino.Core().read_model(source)
    dataset = nncf.Dataset(list(planes(good[:: -(-len(good) // 32)])))
    openvino.save_model(nncf.quantize(model, dataset, subset_size=32), target)


def planes(files: list[Path]) -> Iterator[np.ndarray]:
    """Images as float32 `(1, 3, SIDE, SIDE)` in 0 … 1, RGB."""
    for file in files:
        pixels = cv2.resize(cv2.imread(str(file))[..., ::-1], (SIDE, SIDE))
        yield np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32) / 255


if __name__ == "__main__":
    main()
