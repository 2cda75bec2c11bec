"""One training loop for all baselines that learn; they differ in network, batches and loss.

Settings are `Paper`'s: backbone, views, steps and learning rate are the same for all rows.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from engine.score import ScoreSpec
from train.backbones import BACKBONES
from train.batches import Defects, Sample, balanced_batches, steps_an_epoch
from train.checkpoint import deterministic
from train.datasets import TrainingImages
from train.evaluate import ValidationProbe
from train.features import TwoPassForward, first_good_views, pass_scores
from train.losses import drawn_reference
from train.network import AtacNet, Maps, atac_method
from train.recipes import Run, Trained
from train.recipes.paper import Paper, score_loss
from train.schedule import learning_rate

Loss = Callable[[TwoPassForward, Sequence[Sample], Paper, ScoreSpec, int], Tensor]
"""That of one batch in one epoch, counted from 0."""
Batches = Callable[[TrainingImages, Defects, Paper, np.random.Generator], Iterator[list[Sample]]]


def halves(
    images: TrainingImages, defects: Defects, settings: Paper, rng: np.random.Generator
) -> Iterator[list[Sample]]:
    """The batches of `paper`."""
    return balanced_batches(
        images, defects, size=settings.batch, known_share=settings.known_share, rng=rng
    )


def two_passes(
    forward: TwoPassForward,
    batch: Sequence[Sample],
    settings: Paper,
    reference: ScoreSpec,
    epoch: int,
) -> Tensor:
    """The loss of `paper`."""
    passes = forward.forward(batch, zoom=epoch >= settings.zoom_from)
    return score_loss(pass_scores(passes, settings.top_k), batch, reference, settings.margin)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What tells one baseline from another; `head` is made for so many feature channels."""

    head: Callable[[int, Paper], nn.Module]
    batches: Batches = halves
    loss: Loss = two_passes
    network: type[AtacNet] = AtacNet

    def built(self, settings: Paper) -> AtacNet:
        """The network with random parameters."""
        return self.network(
            BACKBONES.of(settings.backbone).open(settings.backbone, side=settings.view.side),
            lambda channels: self.head(channels, settings),
            standardise=settings.standardise,
            freeze=settings.freeze,
            initialisation=settings.initialisation,
        )

    def train(self, settings: Paper, images: TrainingImages, run: Run) -> Trained:
        """As `train.recipes.paper.train`."""
        device = deterministic(run.seed)
        network = self.built(settings)
        if run.weights is not None:
            network.backbone.load(run.weights)
        network.to(device)
        reference = drawn_reference(settings.reference_draws, top_k=settings.top_k, seed=run.seed)
        learning = [p for p in network.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(learning, settings.first_rate)
        checkpoint = run.checkpoint(images, network=network, optimiser=optimiser)
        if run.weights is not None and not settings.freeze and not checkpoint.history:
            views = first_good_views(images, settings.view).to(device)
            network.backbone.adapt(lambda: network.features(views))

        defects = Defects(images, seed=run.seed, synthetic_each=settings.synthetic_each)
        steps = steps_an_epoch(images, size=settings.batch, least=settings.least_steps)
        method = atac_method(network, settings.view, settings.crop, reference)
        probe = ValidationProbe(images, network, method)
        with ThreadPoolExecutor() as pool:
            forward = TwoPassForward(network, settings.view, settings.crop, pool)
            for epoch in checkpoint.epochs(settings.epochs, probe=probe):
                network.train()
                batches = self.batches(images, defects, settings, epoch.rng)
                for step, batch in enumerate(islice(batches, steps)):
                    epoch.descend(
                        self.loss(forward, batch, settings, reference, epoch.number),
                        optimiser,
                        learning_rate=learning_rate(
                            settings.first_rate,
                            settings.schedule,
                            epoch.number + step / steps,
                            of=settings.epochs,
                        ),
                        clip_norm=settings.clip_norm,
                    )
        return Trained.of(network, method, checkpoint)


def deviation_network(*, epochs: int) -> Paper:
    """The settings that DevNet and DRA have in common in their papers' code.

    Different from both: the backbone is the other rows' (theirs is ResNet-18 to layer4; `dra` keeps
    the ResNet-18), and so are the views, 224 px after CLAHE, where theirs are 448 px without;
    images are not turned at random; weights do not decay (1e-5); μ_R and σ_R are drawn once, not
    in each step. A part of the good images is held out, for the threshold.
    """
    return replace(
        Paper(),
        standardise="imagenet",
        initialisation="fan_in",  # as PyTorch begins by itself
        margin=5.0,
        epochs=epochs,
        zoom_from=epochs,  # no second pass
        batch=48,
        least_steps=20,
        first_rate=2e-4,
        hold_out=0.15,
    )


def nowhere(score_map: Tensor) -> Maps:
    """`score_map` `(N, h, w)` with an attention that points nowhere, so that pass 2 is skipped."""
    return Maps(score_map, torch.ones_like(score_map))


def patches_a_side(settings: Paper) -> int:
    """Height and width of the features of a view."""
    return -(-settings.view.side // settings.backbone.strides[0])
