"""A baseline that has never seen a defect: the distance to a memory bank of good patches.

PatchCore's (Roth et al. 2022) with what `line` has and need not learn: the backbone, the stages,
the local mean, the views, L2-normalised patches, and as its score the mean of the farthest tenth of
an image's patches. PatchCore does not normalise and takes the farthest alone, which on validation
images ranks worse (ADR 9). 20 000 patches of good images, drawn evenly, are the memory bank;
PatchCore thins all patches to as many by a greedy search instead.
"""

import time
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from benchmarks.baselines.loop import nowhere
from engine.frame import Box
from engine.score import ScoreSpec
from engine.view import view
from train.backbones import BACKBONES
from train.checkpoint import Epoch, deterministic
from train.datasets import TrainingImages
from train.network import AtacNet, Maps, atac_method
from train.recipes import Run, Trained
from train.recipes.line import Line

PATCHES: Final = 20_000
_AT_ONCE: Final = 2_000  # patches of the memory bank compared at a time


class NearestGood(nn.Module):
    """The distance of each patch to the nearest of `good` `(patches, C)`, which starts empty."""

    good: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("good", torch.zeros(0, channels))

    def patches(self, features: Tensor) -> Tensor:
        """The patches of features `(N, C, h, w)`, L2-normalised: `(N·h·w, C)`."""
        seen = F.normalize(features, dim=1)
        return seen.permute(0, 2, 3, 1).flatten(0, 2)

    def forward(self, features: Tensor) -> Maps:
        patches = self.patches(features)
        nearest = torch.stack(
            [torch.cdist(patches, part).amin(dim=1) for part in torch.split(self.good, _AT_ONCE)]
        ).amin(dim=0)
        return nowhere(nearest.reshape(features.shape[0], *features.shape[2:]))


def train(settings: Line, images: TrainingImages, run: Run) -> Trained:
    """Fill a memory bank from the good training images; known defects are not used."""
    started = time.perf_counter()
    device = deterministic(run.seed)
    network = AtacNet(
        BACKBONES.of(settings.backbone).open(settings.backbone, side=settings.view.side),
        NearestGood,
        standardise="imagenet",
        freeze=settings.freeze,
        local_mean=settings.local_mean,
    )
    head = network.head
    assert isinstance(head, NearestGood)
    if run.weights is not None:
        network.backbone.load(run.weights)
    network.to(device).eval()
    rng = np.random.default_rng(run.seed)
    each = -(-PATCHES // len(images.good))
    kept = []
    with torch.inference_mode():
        for index in images.good:
            pixels = images.frame(index)
            seen = torch.from_numpy(view(pixels, Box.around(pixels), settings.view)[None])
            patches = head.patches(network.features(seen.to(device)))
            drawn = torch.from_numpy(rng.permutation(len(patches))[:each])
            kept.append(patches[drawn.to(device)])
    head.register_buffer("good", torch.cat(kept).clone())
    nothing_learnt = Epoch(
        number=1,
        of=1,
        loss=0.0,
        learning_rate=0.0,
        separation=float("nan"),
        seconds=time.perf_counter() - started,
    )
    score = ScoreSpec(top_k=settings.top_k)
    return Trained(
        network=network,
        method=atac_method(network, settings.view, settings.crop, score),
        history=(nothing_learnt,),
    )
