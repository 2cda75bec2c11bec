"""Feature maps of views, kept in a folder as fp16: 1.2 MB for a view of 224 pixels.

The files of a list of views are named after a hash of the images, boxes, view settings and weights,
so that nothing stale is read.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from benchmarks.detection_study.images import Images
from engine.bundle import sha256
from engine.frame import Box
from engine.view import ViewSpec, view
from train.apart import stacked
from train.backbones import BACKBONES
from train.datasets import read_listed
from train.network import local_mean
from train.recipes.line import Line
from train.weights import Weights

_BATCH: Final = 8
_MEAN: Final = (0.485, 0.456, 0.406)  # ImageNet's, of RGB in [0, 1]
_STD: Final = (0.229, 0.224, 0.225)


class Shown(NamedTuple):
    """A view to make: the box, in pixels of the whole view, of the image in this row."""

    row: int
    box: Box


class Features:
    """The kept maps of a list of views."""

    def __init__(self, stages: Sequence[npt.NDArray[np.float16]]) -> None:
        self._stages = stages

    def __len__(self) -> int:
        return len(self._stages[0])

    @property
    def nbytes(self) -> int:
        return sum(stage.nbytes for stage in self._stages)

    def patches(self, number: int) -> Tensor:
        """The patches of one view, layer2 and layer3 on layer2's grid: float32 `(patches, C)`."""
        maps = [torch.from_numpy(stage[[number]]).float() for stage in self._stages]
        return stacked(maps)[0].flatten(1).T


def view_spec(side: int) -> ViewSpec:
    """Views as the recipe `line` makes them, of another size where one is asked for."""
    return replace(Line().view, side=side)


def whole_views(images: Images, spec: ViewSpec) -> list[Shown]:
    return [Shown(row, spec.box) for row in range(len(images.items))]


def kept_features(
    folder: Path,
    images: Images,
    views: Sequence[Shown],
    *,
    spec: ViewSpec,
    weights: Weights,
) -> Features:
    """The features of `views`, from `folder` or computed into it.

    Args:
        folder: Where features are kept; made if it is not there.
        images: What the rows of `views` mean.
        views: What to show to the backbone, in this order.
        spec: How views are made.
        weights: Pretrained ones of a ResNet-50 that has layer3.
    """
    listed = [(images.items[row].sha256, box) for row, box in views]
    key = sha256(repr((spec, weights.sha256, listed)).encode())[:12]
    paths = [folder / f"{images.name}-{spec.side}-{key}-{n}.npy" for n in ("layer2", "layer3")]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        _write(paths, images, views, spec=spec, weights=weights)
    return Features([np.load(path, mmap_mode="r") for path in paths])


@torch.inference_mode()
def _write(
    paths: Sequence[Path],
    images: Images,
    views: Sequence[Shown],
    *,
    spec: ViewSpec,
    weights: Weights,
) -> None:
    settings = Line().backbone.fitted(weights)
    backbone = BACKBONES.of(settings).open(settings, side=spec.side)
    backbone.load(weights)
    backbone.eval()
    backbone.prepare_export(half=False)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (_MEAN, _STD))
    # An interrupted run must not leave files that look complete.
    unfinished = [path.with_suffix(".part") for path in paths]
    files: list[npt.NDArray[np.float16]] = []
    for start in range(0, len(views), _BATCH):
        some = views[start : start + _BATCH]
        seen = []
        for row, box in some:
            pixels = read_listed(images.source, images.items[row])
            seen.append(view(pixels, box.scaled(of=spec.box, to=Box.around(pixels)), spec))
        x = (torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.autocast("cpu", torch.bfloat16):
            maps = [local_mean(each.float()).half() for each in backbone(x)]
        files = files or [
            open_memmap(path, "w+", np.float16, (len(views), *each.shape[1:]))
            for path, each in zip(unfinished, maps, strict=True)
        ]
        for file, each in zip(files, maps, strict=True):
            file[start : start + len(some)] = each.numpy()
        print(
            f"\r{images.name}: {start + len(some)} of {len(views)} views", end="", file=sys.stderr
        )
    print(file=sys.stderr)
    files.clear()
    for before, path in zip(unfinished, paths, strict=True):
        before.replace(path)
