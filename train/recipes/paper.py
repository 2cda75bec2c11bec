"""ATAC-Net as the paper has it: Algorithm 2, all of the backbone trained.

The defaults are the paper's and never change; docs/method.md says where it leaves a choice.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from engine.attention import CropSpec
from engine.score import ScoreSpec
from engine.spec import spec
from engine.view import ViewSpec
from train.backbones import BACKBONES, AnyBackbone
from train.backbones.resnet import ResNet
from train.batches import Defects, Sample, balanced_batches, steps_an_epoch
from train.checkpoint import deterministic
from train.datasets import TrainingImages
from train.evaluate import ValidationProbe
from train.features import TwoPassForward, first_good_views, pass_scores
from train.losses import deviation, deviation_loss, drawn_reference
from train.network import (
    AtacNet,
    AttentionHead,
    SelfAttentionHead,
    Standardisation,
    atac_method,
)
from train.recipes import Recipe, RecipeSettings, Run, Trained
from train.schedule import Schedule, Steps, learning_rate, stretched
from train.weights import Weights

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@spec
class Paper(RecipeSettings):
    """The settings of the paper."""

    type: Literal["paper"] = "paper"

    # What the network sees, and where pass 2 zooms.
    view: ViewSpec = ViewSpec(side=224, equalise="before_resize", crop_from="view")
    crop: CropSpec = CropSpec(omega=0.40)
    standardise: Standardisation = "clip"

    backbone: AnyBackbone = ResNet(architecture="resnet50", stages=("layer4",))  # φ
    freeze: bool = False
    head: SelfAttentionHead = SelfAttentionHead(kernel=3, channels=64, query_channels=8)  # σ and τ
    initialisation: Literal["he", "fan_in"] = "he"

    # Score and loss. `reference_draws` standard normal draws give μ_R and σ_R.
    top_k: Share = 0.10
    margin: Positive = 10.0  # k of Eq 12
    reference_draws: Count = 5000

    # The defective half of a batch: a known defect with this chance, else a CutMix.
    # `synthetic_each` of those are made on each good image and shown again; 0: always new ones.
    known_share: Share = 0.5
    synthetic_each: Annotated[int, Field(ge=0)] = 0

    epochs: Count = 30
    batch: Annotated[int, Field(ge=2, multiple_of=2)] = 16  # half good, half defective
    least_steps: Count = 20  # steps an epoch, however few good images there are
    zoom_from: Annotated[int, Field(ge=0)] = 0  # epochs before the first with a pass 2
    first_rate: Positive = 1e-3
    schedule: Schedule = Steps(every=10, factor=0.1)
    clip_norm: Positive = 1.0
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def settled(self, weights: Weights | None) -> Self:
        """Without weights there is nothing to freeze."""
        if weights is None:
            return replace(self, freeze=False)
        return replace(self, backbone=self.backbone.fitted(weights))

    def lasting(self, epochs: int) -> Self:
        """The learning rate falls, and pass 2 joins, at the same shares of the training."""
        return replace(
            self,
            epochs=epochs,
            zoom_from=round(self.zoom_from * epochs / self.epochs),
            schedule=stretched(self.schedule, epochs / self.epochs),
        )

    @property
    def facts(self) -> dict[str, str]:
        return {
            "Batch": f"{self.batch}",
            "Backbone weights": "frozen" if self.freeze else "trained",
        }

    @property
    def second_pass_from(self) -> int:
        return self.zoom_from


def open(settings: Paper) -> Recipe:
    """The recipe with these settings."""
    return Recipe(network=partial(network, settings), train=partial(train, settings))


def network(settings: Paper) -> AtacNet:
    """ATAC-Net with random parameters."""
    return AtacNet(
        BACKBONES.of(settings.backbone).open(settings.backbone, side=settings.view.side),
        partial(AttentionHead, settings=settings.head, supervised=False),
        standardise=settings.standardise,
        freeze=settings.freeze,
        initialisation=settings.initialisation,
    )


def train(settings: Paper, images: TrainingImages, run: Run) -> Trained:
    """Algorithm 2; the last epoch counts."""
    device = deterministic(run.seed)
    net = network(settings)
    if run.weights is not None:
        net.backbone.load(run.weights)
    net.to(device)
    reference = drawn_reference(settings.reference_draws, top_k=settings.top_k, seed=run.seed)
    learning = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(learning, settings.first_rate)
    checkpoint = run.checkpoint(images, network=net, optimiser=optimiser)
    if run.weights is not None and not settings.freeze and not checkpoint.history:
        views = first_good_views(images, settings.view).to(device)
        net.backbone.adapt(lambda: net.features(views))

    defects = Defects(images, seed=run.seed, synthetic_each=settings.synthetic_each)
    steps = steps_an_epoch(images, size=settings.batch, least=settings.least_steps)
    method = atac_method(net, settings.view, settings.crop, reference)
    probe = ValidationProbe(images, net, method)
    with ThreadPoolExecutor() as pool:
        forward = TwoPassForward(net, settings.view, settings.crop, pool)
        for epoch in checkpoint.epochs(settings.epochs, probe=probe):
            net.train()
            batches = balanced_batches(
                images,
                defects,
                size=settings.batch,
                known_share=settings.known_share,
                rng=epoch.rng,
            )
            for step, batch in enumerate(islice(batches, steps)):
                passes = forward.forward(batch, zoom=epoch.number >= settings.zoom_from)
                scores = pass_scores(passes, settings.top_k)
                epoch.descend(
                    score_loss(scores, batch, reference, settings.margin),
                    optimiser,
                    learning_rate=learning_rate(
                        settings.first_rate,
                        settings.schedule,
                        epoch.number + step / steps,
                        of=settings.epochs,
                    ),
                    clip_norm=settings.clip_norm,
                )
    return Trained.of(net, method, checkpoint)


def score_loss(
    scores: Tensor, batch: Sequence[Sample], reference: ScoreSpec, margin: float
) -> Tensor:
    """Eq 8-12: the deviation loss of γ, the mean of both passes' `scores` `(2, N)` (Eq 10)."""
    defective = torch.tensor([sample.defective for sample in batch], device=scores.device)
    # The deviation is linear in the score.
    return deviation_loss(deviation(scores, reference).mean(dim=0), defective, margin)
