"""Recipes: images in, a trained model out. Each kind is one module of this package.

It exports its settings class, which derives from `RecipeSettings`, and `open(settings)`, which
gives a `Recipe`. A recipe owns its training loop and shares pieces of it as functions with others:
`train.batches`, `train.features`, `train.losses`, `train.checkpoint`. Its settings go into a bundle
as `recipe.json`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final, Self

import torch
from pydantic import Field, TypeAdapter
from torch import nn

from engine.bundle import sha256
from engine.cross_fitted import CrossFitted
from engine.methods import MethodSpec
from engine.registry import Kinds
from engine.spec import spec
from engine.view import ViewSpec
from train.backbones import AnyBackbone
from train.checkpoint import CHECKPOINT, FORM, Checkpoint, Epoch
from train.datasets import REGIONS_JSON, SPLIT_JSON, TrainingImages
from train.network import Network
from train.weights import Weights

RECIPE: Final = "recipe.json"


@spec
class RecipeSettings:
    """What all recipes have: how views are made, `epochs`, a share of good images held out, a
    backbone or none.

    A subclass has `type: Literal[...]`, the name of its module, and defaults for all its settings.
    `learns_defects` is False where known defects teach nothing, `looks_closer` where there is
    never a pass 2, `descends` where no loss falls over epochs. `leaves_out` is True where each
    image that is learnt from is also scored by a model that left it out. `stage` says what the
    training does.
    """

    stage: ClassVar[str] = "training"
    descends: ClassVar[bool] = True
    leaves_out: ClassVar[bool] = False
    learns_defects: ClassVar[bool] = True
    looks_closer: ClassVar[bool] = True
    type: str = ""
    view: ViewSpec = ViewSpec()
    epochs: Annotated[int, Field(ge=1)] = 1
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.15
    backbone: AnyBackbone | None = None

    def settled(self, weights: Weights | None) -> Self:
        """The same with what the pretrained weights decide, or that there are none."""
        if weights is None or self.backbone is None:
            return self
        return replace(self, backbone=self.backbone.fitted(weights))

    def lasting(self, epochs: int) -> Self:
        """The same over another number of epochs."""
        return replace(self, epochs=epochs)

    def with_side(self, side: int) -> Self:
        """The same with views of another side; of recipes that score images without themselves."""
        raise NotImplementedError

    @property
    def facts(self) -> dict[str, str]:
        """What the training report says of these settings, by name."""
        return {}

    @property
    def second_pass_from(self) -> int:
        """After how many epochs pass 2 joins; 0: from the first on, or never."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A trained network, in evaluation mode, how the engine runs it, and all epochs.

    `cross_fitted` has each image that was learnt from, scored by a model that had not seen it.
    """

    network: Network
    method: MethodSpec
    history: tuple[Epoch, ...]
    cross_fitted: CrossFitted | None = None

    @classmethod
    def of(
        cls,
        network: Network,
        method: MethodSpec,
        checkpoint: Checkpoint,
        *,
        cross_fitted: CrossFitted | None = None,
    ) -> Self:
        """What a training has ended in.

        Args:
            network: As it is after the last epoch.
            method: How the engine runs it.
            checkpoint: Knows all epochs.
            cross_fitted: Scores of models that left images out, where the recipe has them.
        """
        return cls(
            network=network.eval(),
            method=method,
            history=tuple(checkpoint.history),
            cross_fitted=cross_fitted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a training is given besides images and settings.

    `folder` receives the state after every epoch. With `resume` a training continues from there,
    and `on_epoch` hears of the epochs before first. `on_warning` hears, in a sentence, of what
    does not end the training but may make it worthless.
    """

    settings: RecipeSettings
    weights: Weights | None
    seed: int
    folder: Path
    resume: bool = False
    on_epoch: Callable[[Epoch], None] = lambda _: None
    on_warning: Callable[[str], None] = lambda _: None

    def checkpoint(
        self, images: TrainingImages, **parts: nn.Module | torch.optim.Optimizer
    ) -> Checkpoint:
        """The checkpoint of networks and optimisers, restored where the run resumes.

        Raises `ConfigurationError` where the folder has that of another training.
        """
        identity = sha256(
            FORM
            + RECIPE_JSON.dump_json(self.settings)
            + SPLIT_JSON.dump_json(images.split)
            + REGIONS_JSON.dump_json(images.regions)
            + str(self.seed).encode()
            + (b"" if self.weights is None else self.weights.sha256.encode())
        )
        found = Checkpoint(
            self.folder / CHECKPOINT,
            identity=identity,
            seed=self.seed,
            parts=parts,
            on_epoch=self.on_epoch,
        )
        if self.resume:
            found.load()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe with its settings.

    `network` builds the network as it is before training; the weights of a bundle fit it. `train`
    trains one. It raises `TrainingError` when the training fails, `ConfigurationError` when weights
    or checkpoint do not fit.
    """

    network: Callable[[], Network]
    train: Callable[[TrainingImages, Run], Trained]


RECIPES: Final = Kinds("train.recipes", RecipeSettings, noun="recipe")
RECIPE_JSON: Final[TypeAdapter[RecipeSettings]] = TypeAdapter(Annotated[RecipeSettings, RECIPES])


def open_recipe(settings: RecipeSettings) -> Recipe:
    """The recipe that `settings` belong to."""
    recipe: Recipe = RECIPES.of(settings).open(settings)
    return recipe
