"""What works best on a production line: a frozen backbone, known masks, a memory bank.

docs/adr/0009-line-recipe.md says what was compared. Images are labelled; where masks of known
defects exist they teach attention and patches as well.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from engine.attention import CropSpec
from engine.score import ScoreSpec
from engine.spec import spec
from engine.view import ViewSpec
from train.anomalies import Kind
from train.backbones import BACKBONES, AnyBackbone
from train.backbones.resnet import ResNet
from train.batches import Defects, Sample, balanced_batches, steps_an_epoch
from train.checkpoint import deterministic
from train.datasets import TrainingImages
from train.evaluate import ValidationProbe
from train.features import SeenPass, TwoPassForward, first_good_views, pass_scores
from train.losses import attention_loss, deviation, deviation_loss, drawn_reference, patch_loss
from train.memory_bank import MemoryBank, fill
from train.network import (
    AtacNet,
    AttentionHead,
    ConvolutionHead,
    atac_method,
)
from train.recipes import Recipe, RecipeSettings, Run, Trained
from train.schedule import Cosine, Schedule, learning_rate, stretched
from train.weights import Weights

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@spec
class KnownDefects:
    """How known defects are shown.

    `share` is the probability that a defect of a batch is a known one. `versions` of it are shown,
    a little shifted, turned and brightened; 0: as it is. With `masks` their masks teach, where the
    data has them.
    """

    share: Share = 0.5
    versions: Annotated[int, Field(ge=0)] = 8
    masks: bool = True


@spec
class SyntheticDefects:
    """How synthetic defects are made.

    `each` of them are made on each good image and shown again; 0: always new ones. Where masks of
    known defects are known, the share `transplanted` are known defects on good parts. Where known
    defects have no masks, synthetic ones teach attention alone.
    """

    kinds: tuple[Kind, ...] = ("cutmix", "patch", "scar", "blotch", "stroke")
    each: Annotated[int, Field(ge=0)] = 2
    transplanted: Share = 0.5


@spec
class Line(RecipeSettings):
    """The settings of `line`."""

    type: Literal["line"] = "line"

    # What the network sees, and where pass 2 zooms.
    view: ViewSpec = ViewSpec(
        side=224, equalise="after_resize", crop_from="frame", reducing_gap=2.0
    )
    crop: CropSpec = CropSpec(omega=0.40, gate=0.5, padding=0.1, min_side=96, square=True)

    # φ; `local_mean` averages each patch with its eight neighbours. σ and τ, and beside them the
    # memory bank, whose distance is added to the score map.
    backbone: AnyBackbone = ResNet(architecture="resnet50", stages=("layer2", "layer3"))
    freeze: bool = True
    local_mean: bool = True
    head: ConvolutionHead = ConvolutionHead(kernel=1, channels=64, heads=4)
    memory_bank: MemoryBank | None = MemoryBank(prototypes=768, channels=128, weight=0.5)

    # Score and loss. `reference_draws` standard normal draws give μ_R and σ_R. The loss is of each
    # pass. Where masks are known, they teach the attention, an output of its own, and with Eq 12
    # for each patch the score map.
    top_k: Share = 0.10
    margin: Positive = 10.0  # k of Eq 12
    reference_draws: Count = 5000
    attention_weight: Annotated[float, Field(ge=0)] = 1.0
    patch_weight: Annotated[float, Field(ge=0)] = 1.0

    known: KnownDefects = KnownDefects()
    synthetic: SyntheticDefects = SyntheticDefects()

    epochs: Count = 8
    # A backbone that is trained sees squares of views, of this side; None: all of the view.
    # Where masks are known, a defect is in them. Pass 2 is then every fourth of them.
    window: Annotated[int, Field(ge=32)] | None = None
    batch: Annotated[int, Field(ge=2, multiple_of=2)] = 16  # half good, half defective
    least_steps: Count = 25  # steps an epoch, however few good images there are
    zoom_from: Annotated[int, Field(ge=0)] = 3  # epochs before the first with a pass 2
    first_rate: Positive = 1e-3
    schedule: Schedule = Cosine()
    clip_norm: Positive = 1.0
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.15

    @model_validator(mode="after")
    def _remembers_what_stays(self) -> Self:
        if self.memory_bank and not self.freeze:
            raise ValueError("a memory bank needs a frozen backbone: set freeze")
        if self.window and (self.freeze or self.window > self.view.side):
            raise ValueError("a window is a part of the view, of a backbone that is not frozen")
        return self

    def settled(self, weights: Weights | None) -> Self:
        """Without weights there is nothing to freeze, and so no memory bank."""
        if weights is None:
            return replace(self, freeze=False, memory_bank=None)
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


def open(settings: Line) -> Recipe:
    """The recipe with these settings."""
    return Recipe(network=partial(network, settings), train=partial(train, settings))


def network(settings: Line) -> AtacNet:
    """ATAC-Net with random parameters, and an empty memory bank."""
    return AtacNet(
        BACKBONES.of(settings.backbone).open(settings.backbone, side=settings.view.side),
        partial(AttentionHead, settings=settings.head, supervised=True),
        standardise="imagenet",
        freeze=settings.freeze,
        local_mean=settings.local_mean,
        memory_bank=settings.memory_bank,
        initialisation="fan_in",
    )


def train(settings: Line, images: TrainingImages, run: Run) -> Trained:
    """Fill the memory bank, then train the head; the last epoch counts."""
    device = deterministic(run.seed)
    net = network(settings)
    if run.weights is not None:
        net.backbone.load(run.weights)
    net.to(device)
    if not settings.freeze:  # a third less time a step on CPUs
        for parameter in net.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    reference = drawn_reference(settings.reference_draws, top_k=settings.top_k, seed=run.seed)
    learning = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(learning, settings.first_rate)
    checkpoint = run.checkpoint(images, network=net, optimiser=optimiser)
    if run.weights is not None and not settings.freeze and not checkpoint.history:
        views = first_good_views(images, settings.view).to(device)
        net.backbone.adapt(lambda: net.features(views))

    defects = Defects(
        images,
        seed=run.seed,
        kinds=settings.synthetic.kinds,
        synthetic_each=settings.synthetic.each,
        versions=settings.known.versions,
        masks=settings.known.masks,
        transplanted=settings.synthetic.transplanted,
    )
    loss = LineLoss(settings, images, defects, reference)
    steps = steps_an_epoch(images, size=settings.batch, least=settings.least_steps)
    with ThreadPoolExecutor() as pool:
        forward = TwoPassForward(net, settings.view, settings.crop, pool)
        scoring = _with_memory_bank(settings, forward, images, reference, seed=run.seed)
        method = atac_method(net, settings.view, settings.crop, scoring)
        probe = ValidationProbe(images, net, method)
        for epoch in checkpoint.epochs(settings.epochs, probe=probe):
            net.train()
            batches = balanced_batches(
                images,
                defects,
                size=settings.batch,
                known_share=settings.known.share,
                rng=epoch.rng,
            )
            for step, batch in enumerate(islice(batches, steps)):
                zoom = epoch.number >= settings.zoom_from
                passes = (
                    forward.windows(batch, settings.window, epoch.rng, closer=zoom)
                    if settings.window
                    else forward.forward(batch, zoom=zoom)
                )
                epoch.descend(
                    loss.of(passes, batch),
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


def _with_memory_bank(
    settings: Line,
    forward: TwoPassForward,
    images: TrainingImages,
    reference: ScoreSpec,
    *,
    seed: int,
) -> ScoreSpec:
    """Fill the network's memory bank, if it has one; `reference` with its distance added.

    Good parts stay at a deviation of about 0; one standard deviation of their distances counts as
    `weight` of the reference's.
    """
    bank = forward.network.memory_bank
    if bank is None or settings.memory_bank is None:
        return reference

    def good_views() -> Iterator[Tensor]:
        return forward.good_views(images, np.random.default_rng([seed, 0]))

    norm = fill(bank, good_views, top_k=settings.top_k, seed=seed)
    unit = settings.memory_bank.weight * reference.reference_std
    bank.scale *= unit
    return replace(reference, reference_mean=reference.reference_mean + norm.mean * unit)


class LineLoss:
    """The loss of a batch: of the scores, and of attention and patches where masks are known.

    A pass is judged by what it was shown: a box beside a defect shows a good part.

    Args:
        settings: Which terms count, and how much.
        images: The training images; without known defects synthetic ones teach the score.
        defects: Whether masks of known defects are known. With synthetic masks only, the loss of
            patches overfits to synthetic defects (docs/adr/0009-line-recipe.md), and is left out.
        reference: What a deviation is measured by.
    """

    def __init__(
        self, settings: Line, images: TrainingImages, defects: Defects, reference: ScoreSpec
    ) -> None:
        located = bool(defects.located)
        self._settings = settings
        self._reference = reference
        self._mask_weight = settings.attention_weight
        self._patch_weight = settings.patch_weight if located else 0.0
        self._scores_synthetic = located or not len(images.defective)

    def of(self, passes: tuple[SeenPass, SeenPass], batch: Sequence[Sample]) -> Tensor:
        """The loss of `passes` over `batch`."""
        settings = self._settings
        answers = passes[0].maps.score_map
        heads = len(answers) // len(batch)

        def of_each(values: list[bool]) -> Tensor:
            return torch.tensor(values * heads, device=answers.device)

        defective = of_each([sample.defective for sample in batch])
        known = of_each([sample.mask is not None for sample in batch])
        judged = of_each([self._scores_synthetic or not sample.synthetic for sample in batch])
        masks = [seen.masks(batch) for seen in passes]
        deviations = deviation(pass_scores(passes, settings.top_k), self._reference)
        shown = [defective & (mask.any(dim=2).any(dim=1) | ~known) for mask in masks]
        losses = [
            deviation_loss(d[judged], seen[judged], settings.margin)
            for d, seen in zip(deviations, shown, strict=True)
        ]
        objective = torch.stack(losses).mean()
        # binary_cross_entropy raises on NaN: skip it, so that `descend` says what is not finite.
        if torch.isfinite(objective):
            for seen, mask in zip(passes, masks, strict=True):
                if self._mask_weight:
                    miss = attention_loss(seen.maps.attention, mask, known)
                    objective = objective + self._mask_weight * miss / len(passes)
                if self._patch_weight:
                    miss = patch_loss(
                        seen.maps.score_map, mask, known, self._reference, settings.margin
                    )
                    objective = objective + self._patch_weight * miss / len(passes)
        return objective
