"""DevNet (Pang et al. 2021, arXiv 2108.00462).

A 1×1 convolution scores each patch, the mean of the top 10 % of |scores| is an image's, and the
mean over two scales counts. Hinge at a margin of 5, known defects only, no synthetic ones, half of
each batch good; all of the backbone is trained, and the last epoch counts.

Different here: what `deviation_network` says; that the smaller scale is made with antialiasing
(the original takes every second pixel); and that its features are enlarged to the grid of the
larger one before they are scored.
"""

from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from benchmarks.baselines.loop import Baseline, deviation_network, nowhere
from train.apart import stacked
from train.losses import top_k_mean
from train.network import AtacNet, Maps
from train.recipes.paper import Paper

SETTINGS: Final = replace(deviation_network(epochs=50), known_share=1.0)
_SCALES: Final = 2


class DevNetHead(nn.Module):
    """One score for each image, as a map of one patch: its parts are top-K means already."""

    def __init__(self, channels: int, settings: Paper) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self._top_k = settings.top_k

    def forward(self, features: Tensor) -> Maps:
        scales = features.chunk(_SCALES, dim=1)
        scores = [top_k_mean(self.score(f).flatten(0, 1), self._top_k) for f in scales]
        return nowhere(torch.stack(scores).mean(dim=0)[:, None, None])


class DevNet(AtacNet):
    """Backbone and head; the features of both scales lie on one grid, one behind the other."""

    def features(self, views: Tensor) -> Tensor:
        """As `AtacNet.features`, of the views and of the same at half their size: `(N, 2C, …)`."""
        half = views.shape[1] // 2
        smaller = F.interpolate(
            views.permute(0, 3, 1, 2).float(), (half, half), mode="bilinear", antialias=True
        )
        of_smaller = super().features(smaller.permute(0, 2, 3, 1))
        return stacked([super().features(views), of_smaller])


DEVNET: Final = Baseline(head=DevNetHead, network=DevNet)
