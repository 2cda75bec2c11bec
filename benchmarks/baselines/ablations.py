"""ATAC-Net less some of its parts: the steps of the paper's own ablation (supplement §3).

    CutMix + CE     backbone → map of one channel → two-layer classifier, plain cross-entropy  A0
    weighted CE     the same, defects counting 20 and good parts 0.5                           A1
    deviation loss  backbone → τ, top-K, Eq 12; no σ and no second pass                        A2
    Grad-CAM zoom   the same, with a second pass on the box of Grad-CAM (Eq 1 and 2)           A3

A4 is ATAC-Net. Of the classifier the paper says no more than that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from benchmarks.baselines.loop import Baseline, nowhere, patches_a_side
from engine.score import ScoreSpec, top_k_count
from train.batches import Defects, Sample, in_turn, original
from train.datasets import TrainingImages
from train.features import TwoPassForward
from train.network import Maps
from train.recipes.paper import Paper

WEIGHTS: Final = (20.0, 0.5)
"""What a defective and a good image count in weighted cross-entropy (supplement §3)."""
_HIDDEN: Final = 64  # width of the classifier; the paper does not say


class Classifier(nn.Module):
    """A map of one channel, then two layers that see all of it at once.

    The score, one patch, is −log(1 − P(defective)): it ranks as P does, without ending at 1.
    """

    def __init__(self, channels: int, settings: Paper) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self.classify = nn.Sequential(
            nn.Linear(patches_a_side(settings) ** 2, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)
        )

    def logits(self, features: Tensor) -> Tensor:
        """Of P(defective): float32 `(N, 1)`."""
        logits: Tensor = self.classify(self.score(features).flatten(1))
        return logits

    def forward(self, features: Tensor) -> Maps:
        return nowhere(F.softplus(self.logits(features))[:, :, None])


class Plain(nn.Module):
    """τ on the backbone's features, and attention nowhere in particular (A2)."""

    def __init__(self, channels: int, _: Paper) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> Maps:
        return nowhere(self.score(features).flatten(0, 1))


class GradCam(nn.Module):
    """τ on the backbone's features; attention is Grad-CAM of the score (A3).

    The score is the mean of the K largest |τ(A)| and τ is linear, so Eq 1's gradient is known
    without a backward pass: with w of τ, α_k = w_k · (mean sign of the K patches) / Z. Eq 2 is then
    ReLU(± w·A) up to a factor, which the normalisation of Eq 4 takes out.
    """

    def __init__(self, channels: int, settings: Paper) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self._top_k = settings.top_k

    def forward(self, features: Tensor) -> Maps:
        score_map = self.score(features).flatten(0, 1)
        with torch.no_grad():
            values = score_map.flatten(1)
            top = values.abs().topk(top_k_count(values.shape[1], self._top_k), dim=1).indices
            sign = values.gather(1, top).sign().sum(dim=1).sign()
            attended = F.conv2d(features, self.score.weight).flatten(0, 1)  # w·A
            attention = torch.relu(sign[:, None, None] * attended)
        return Maps(score_map, attention)


def natural_batches(
    images: TrainingImages, defects: Defects, settings: Paper, rng: np.random.Generator
) -> Iterator[list[Sample]]:
    """Batches in which good and defective images come as often as there are of them.

    There are as many synthetic defects as known ones (`known_share`): half and half would leave
    weights of 20 and 0.5 nothing to make up for.
    """
    real = len(images.defective)
    synthetic = round(real * (1 - settings.known_share) / settings.known_share)
    turns = in_turn(range(len(images.good) + real + synthetic), rng)
    while True:
        batch = []
        for _ in range(settings.batch):
            index = next(turns)
            if index in images.good:
                batch.append(original(images, index))
            elif index in images.defective:
                batch.append(defects.known(index, rng))
            else:
                batch.append(defects.synthetic(rng))
        yield batch


def cross_entropy(
    forward: TwoPassForward,
    batch: Sequence[Sample],
    settings: Paper,  # noqa: ARG001 - all losses have one signature
    reference: ScoreSpec,  # noqa: ARG001
    epoch: int,  # noqa: ARG001
    *,
    weights: tuple[float, float],
) -> Tensor:
    """Cross-entropy of `Classifier`; `weights` of a defective and of a good image."""
    head = forward.network.head
    assert isinstance(head, Classifier)
    # Of logits: where P has rounded to 0 a missed defect must still teach.
    logits = head.logits(forward.features(batch)).flatten()
    defective = torch.tensor([sample.defective for sample in batch], device=logits.device)
    return F.binary_cross_entropy_with_logits(
        logits, defective.to(logits.dtype), torch.where(defective, *weights)
    )


def _classifier(weights: tuple[float, float]) -> Baseline:
    return Baseline(
        head=Classifier, batches=natural_batches, loss=partial(cross_entropy, weights=weights)
    )


CUTMIX_CE: Final = _classifier((1.0, 1.0))
WEIGHTED_CE: Final = _classifier(WEIGHTS)
DEVIATION_LOSS: Final = Baseline(head=Plain)
GRAD_CAM: Final = Baseline(head=GradCam)
ONE_PASS: Final = replace(Paper(), zoom_from=Paper().epochs)
"""The paper's settings without a second pass: where attention is nowhere it would see the same."""
