"""A rival that has never seen a defect: the distance to a memory of good features.

PatchCore's (Roth et al. 2022) with what `line` has and need not learn: the trunk, the stages, the
local mean, the views, cells of one length, and as its score the mean of the farthest tenth of an
image's cells. PatchCore has cells as long as they are and the farthest alone, which on validation
images ranks worse (ADR 9). 20 000 cells of good images, drawn evenly, are the memory; PatchCore
thins all cells to as many by a greedy search instead.
"""

import time
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from engine.frame import Box
from engine.score import ScoreSpec
from engine.view import view
from train.backbone import PretrainedWeights, load_pretrained
from train.datasets import Source, Split, read_listed
from train.fit import Trained, deterministic
from train.network import AtacNet, Maps, compared
from train.profile import Profile
from train.rivals.heads import nowhere

CELLS: Final = 20_000
_AT_ONCE: Final = 2_000  # cells of the memory compared at a time


class MemoryBank(nn.Module):
    """The distance of each cell to the nearest of `good` `(cells, C)`, which starts empty."""

    good: Tensor

    def __init__(self, channels: int, profile: Profile) -> None:
        super().__init__()
        self.register_buffer("good", torch.zeros(0, channels))
        self._unit_cells = profile.unit_cells

    def cells(self, features: Tensor) -> Tensor:
        """The cells of features `(N, C, h, w)`, as the memory compares them: `(N·h·w, C)`."""
        seen = compared(features, unit_cells=self._unit_cells)
        return seen.permute(0, 2, 3, 1).flatten(0, 2)

    def forward(self, features: Tensor) -> Maps:
        cells = self.cells(features)
        nearest = torch.stack(
            [torch.cdist(cells, part).amin(dim=1) for part in torch.split(self.good, _AT_ONCE)]
        ).amin(dim=0)
        return nowhere(nearest.reshape(features.shape[0], *features.shape[2:]))


def remembered(
    source: Source,
    split: Split,
    profile: Profile,
    *,
    weights: PretrainedWeights | None,
    seed: int,
) -> Trained:
    """Fill a memory from the good training images of `split`; its known defects are not used."""
    started = time.perf_counter()
    device = deterministic(seed)
    network = AtacNet(profile, MemoryBank)
    head = network.head
    assert isinstance(head, MemoryBank)
    if weights is not None:
        load_pretrained(network.trunk, weights)
    network.to(device).eval()
    rng = np.random.default_rng(seed)
    each = -(-CELLS // len(split.train_good))
    kept = []
    with torch.inference_mode():
        for item in split.train_good:
            pixels = read_listed(source, item)
            seen = torch.from_numpy(view(pixels, Box.around(pixels), profile.view)[None]).to(device)
            cells = head.cells(network.features(seen))
            kept.append(cells[torch.from_numpy(rng.permutation(len(cells))[:each]).to(device)])
    head.register_buffer("good", torch.cat(kept).clone())
    return Trained(
        network=network,
        reference=ScoreSpec(top_k=profile.top_k),
        final_loss=0.0,
        seconds=time.perf_counter() - started,
    )
