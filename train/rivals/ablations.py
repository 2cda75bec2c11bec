"""ATAC-Net less some of its parts: the steps of the paper's own ablation (supplement §3).

    CutMix + CE     trunk → map of one channel → two-layer classifier, plain cross-entropy   A0
    weighted CE     the same, defects counting 20 and good parts 0.5                         A1
    deviation loss  trunk → τ, top-K, Eq 12; no σ and no second pass                         A2
    Grad-CAM zoom   the same, with a second pass on the box of Grad-CAM (Eq 1 and 2)         A3

A4 is ATAC-Net. Of the classifier the paper says no more than that; the rest is the spec's §4.3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from engine.score import ScoreSpec, top_k_count
from train.datasets import TrainingImages
from train.fit import (
    Defects,
    Eyes,
    Method,
    Sample,
    balanced_batches,
    in_turn,
    original,
    two_pass_loss,
)
from train.network import AtacNet, Maps
from train.profile import PAPER, Profile
from train.rivals.heads import cells_a_side, nowhere

WEIGHTS: Final = (20.0, 0.5)
"""What a defective and a good image count in weighted cross-entropy (supplement §3)."""
_HIDDEN: Final = 64  # width of the classifier; the paper does not say


class Classifier(nn.Module):
    """A map of one channel, then two layers that see all of it at once.

    The score, one cell, is −log(1 − P(defective)): it ranks as P does, without ending at 1.
    """

    def __init__(self, channels: int, profile: Profile) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self.classify = nn.Sequential(
            nn.Linear(cells_a_side(profile) ** 2, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)
        )

    def logits(self, features: Tensor) -> Tensor:
        """Of P(defective): float32 `(N, 1)`."""
        logits: Tensor = self.classify(self.score(features).flatten(1))
        return logits

    def forward(self, features: Tensor) -> Maps:
        return nowhere(F.softplus(self.logits(features))[:, :, None])


class Plain(nn.Module):
    """τ on the trunk's features, and attention nowhere in particular (A2)."""

    def __init__(self, channels: int, _: Profile) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, features: Tensor) -> Maps:
        return nowhere(self.score(features).flatten(0, 1))


class GradCam(nn.Module):
    """τ on the trunk's features; attention is Grad-CAM of the score (A3).

    The score is the mean of the K largest |τ(A)| and τ is linear, so Eq 1's gradient is known
    without a backward pass: with w of τ, α_k = w_k · (mean sign of the K cells) / Z. Eq 2 is then
    ReLU(± w·A) up to a factor, which the normalisation of Eq 4 takes out.
    """

    def __init__(self, channels: int, profile: Profile) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        self._top_k = profile.top_k

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
    images: TrainingImages, defects: Defects, profile: Profile, rng: np.random.Generator
) -> Iterator[list[Sample]]:
    """Batches in which good and defective images come as often as there are of them.

    Of pseudo-defects there are as many as of known ones (`real_share`): half and half would leave
    weights of 20 and 0.5 nothing to make up for.
    """
    real = len(images.defective)
    pseudo = round(real * (1 - profile.real_share) / profile.real_share)
    turns = in_turn(range(len(images.good) + real + pseudo), rng)
    while True:
        batch = []
        for _ in range(profile.batch):
            index = next(turns)
            if index in images.good:
                batch.append(original(images, index))
            elif index in images.defective:
                batch.append(defects.known(index, rng))
            else:
                batch.append(defects.pseudo(rng))
        yield batch


def cross_entropy(
    eyes: Eyes,
    batch: Sequence[Sample],
    profile: Profile,  # noqa: ARG001 - all losses have one signature
    reference: ScoreSpec,  # noqa: ARG001
    epoch: int,  # noqa: ARG001
    *,
    weights: tuple[float, float],
) -> Tensor:
    """Cross-entropy of `Classifier`; `weights` of a defective and of a good image."""
    head = eyes.network.head
    assert isinstance(head, Classifier)
    # Of logits: where P has rounded to 0 a missed defect must still teach.
    logits = head.logits(eyes.features(batch)).flatten()
    defective = torch.tensor([sample.defective for sample in batch], device=logits.device)
    return F.binary_cross_entropy_with_logits(
        logits, defective.to(logits.dtype), torch.where(defective, *weights)
    )


def _classifier(weights: tuple[float, float]) -> Method:
    return Method(
        network=partial(AtacNet, head=Classifier),
        batches=natural_batches,
        loss=partial(cross_entropy, weights=weights),
    )


CUTMIX_CE: Final = _classifier((1.0, 1.0))
WEIGHTED_CE: Final = _classifier(WEIGHTS)
DEVIATION_LOSS: Final = Method(
    network=partial(AtacNet, head=Plain), batches=balanced_batches, loss=two_pass_loss
)
GRAD_CAM: Final = Method(
    network=partial(AtacNet, head=GradCam), batches=balanced_batches, loss=two_pass_loss
)
ONE_PASS: Final = replace(PAPER, zoom_from=PAPER.epochs)
"""The paper's settings without a second pass: where attention is nowhere it would see the same."""
