"""DRA (Ding, Pang, Shen 2022, arXiv 2203.14506).

Four heads on one feature map, each with a deviation loss of its own (margin 5):

    holistic   two layers on the mean patch; learnt the wrong way round (good is far from 0)
    seen       1×1 convolution, top-K: good against known defects
    synthetic  the same: good against synthetic defects
    composite  3×3 and 1×1 convolutions of the difference from good references, top-K: good
               against both

An image's score is seen + synthetic + composite − holistic; the sum of the losses is learnt.

Different here: what `deviation_network` says; one scale instead of two; a third of each batch is
good, known and synthetic, exactly instead of on average; a CutMix rectangle comes from another
image half of the time, not always from the same. References are good images only, and in the test
their running mean: the original draws new ones in the test, synthetic defects among them, so that
its scores depend on chance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor, nn

from benchmarks.baselines.loop import Baseline, deviation_network, nowhere, patches_a_side
from engine.score import ScoreSpec
from train.backbones.resnet import ResNet
from train.batches import Defects, Sample, in_turn, original
from train.datasets import TrainingImages
from train.features import TwoPassForward
from train.losses import deviation, deviation_loss, top_k_mean
from train.network import Maps
from train.recipes.paper import Paper

# Its own backbone; the composite head's 3×3 convolution is of all channels, four times as many in a
# ResNet-50, and takes hours there.
SETTINGS: Final = replace(
    deviation_network(epochs=30), backbone=ResNet(architecture="resnet18", stages=("layer4",))
)
_REFERENCES: Final = 5
_HIDDEN: Final = 256
_MOMENTUM: Final = 0.1  # as BatchNorm's


class Heads(NamedTuple):
    """Scores of N images by each head: float32 `(N,)`, none negative."""

    holistic: Tensor
    seen: Tensor
    synthetic: Tensor
    composite: Tensor


class DraHead(nn.Module):
    """The four heads; `reference` is what good parts look like, patch by patch."""

    reference: Tensor

    def __init__(self, channels: int, settings: Paper) -> None:
        super().__init__()
        self.holistic = nn.Sequential(
            nn.Linear(channels, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1)
        )
        self.seen = nn.Conv2d(channels, 1, 1)
        self.synthetic = nn.Conv2d(channels, 1, 1)
        self.composite = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 1),
        )
        side = patches_a_side(settings)
        self.register_buffer("reference", torch.zeros(channels, side, side))
        self._top_k = settings.top_k

    def heads(self, features: Tensor, reference: Tensor) -> Heads:
        """What each head says of `features` `(N, C, h, w)`, given a good `(C, h, w)`."""

        def top(score_map: Tensor) -> Tensor:
            return top_k_mean(score_map.flatten(0, 1), self._top_k)

        return Heads(
            holistic=self.holistic(features.mean(dim=(2, 3))).flatten().abs(),
            seen=top(self.seen(features)),
            synthetic=top(self.synthetic(features)),
            composite=top(self.composite(reference - features)),
        )

    def refer(self, good: Tensor) -> Tensor:
        """The mean of some good images' features `(n, C, h, w)`, which also moves `reference`."""
        reference = good.mean(dim=0)
        with torch.no_grad():
            self.reference.lerp_(reference, _MOMENTUM)
        return reference

    def forward(self, features: Tensor) -> Maps:
        found = self.heads(features, self.reference)
        score = found.seen + found.synthetic + found.composite - found.holistic
        # Scores are magnitudes (Eq 8): softplus keeps the order and the sign out.
        return nowhere(F.softplus(score)[:, None, None])


def thirds(
    images: TrainingImages, defects: Defects, settings: Paper, rng: np.random.Generator
) -> Iterator[list[Sample]]:
    """Batches without end: a third each good, known defects and synthetic ones.

    The first five of a batch, good ones more, are the references for all the others.
    """
    good, known = in_turn(images.good, rng), in_turn(images.defective, rng)
    third = settings.batch // 3
    while True:
        yield [
            *(original(images, next(good)) for _ in range(_REFERENCES + third)),
            *(defects.known(next(known), rng) for _ in range(third)),
            *(defects.synthetic(rng) for _ in range(third)),
        ]


def four_losses(
    forward: TwoPassForward,
    batch: Sequence[Sample],
    settings: Paper,
    reference: ScoreSpec,
    epoch: int,  # noqa: ARG001 - all losses have one signature
) -> Tensor:
    """The sum of the heads' deviation losses, each over the images that concern it."""
    head = forward.network.head
    assert isinstance(head, DraHead)
    features = forward.features(batch)
    found = head.heads(features[_REFERENCES:], head.refer(features[:_REFERENCES]))
    judged = batch[_REFERENCES:]
    device = features.device
    defective = torch.tensor([sample.defective for sample in judged], device=device)
    synthetic = torch.tensor([sample.synthetic for sample in judged], device=device)

    def loss(scores: Tensor, far: Tensor, among: Tensor) -> Tensor:
        return deviation_loss(deviation(scores[among], reference), far[among], settings.margin)

    everything = torch.ones_like(defective)
    return (
        loss(found.holistic, ~defective, everything)
        + loss(found.seen, defective, ~synthetic)
        + loss(found.synthetic, defective, ~defective | synthetic)
        + loss(found.composite, defective, everything)
    )


DRA: Final = Baseline(head=DraHead, batches=thirds, loss=four_losses)
