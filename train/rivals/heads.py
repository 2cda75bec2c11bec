"""What rivals share."""

from dataclasses import replace

import torch
from torch import Tensor

from train.network import Maps
from train.profile import PAPER, Profile


def deviation_network(*, epochs: int) -> Profile:
    """The settings that DevNet and DRA have in common in their papers' code (spec §3).

    Different from both: the trunk is the other rows' (theirs is ResNet-18 to layer4; `dra` keeps
    the ResNet-18), and so are the views, 224 px after CLAHE, where theirs are 448 px without;
    images are not turned at random; weights do not decay (1e-5); μ_R and σ_R are drawn once, not
    in each step. A part of the good images is held out, for the threshold.
    """
    return replace(
        PAPER,
        standardise="imagenet",
        start="fan_in",  # as PyTorch begins by itself
        margin=5.0,
        epochs=epochs,
        zoom_from=epochs,  # no second pass
        batch=48,
        least_steps=20,
        learning_rate=2e-4,
        hold_out=0.15,
    )


def nowhere(score_map: Tensor) -> Maps:
    """`score_map` `(N, h, w)` with an attention that points nowhere, so that pass 2 is skipped."""
    return Maps(score_map, torch.ones_like(score_map))


def cells_a_side(profile: Profile) -> int:
    """Height and width of the features of a view: the stage's stride is 8, 16 or 32."""
    stride = 1 << (int(profile.stages[0].removeprefix("layer")) + 1)
    return -(-profile.view.side // stride)
