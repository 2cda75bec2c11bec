"""What the heads of rivals share."""

import torch
from torch import Tensor

from train.network import Maps
from train.profile import Profile


def nowhere(score_map: Tensor) -> Maps:
    """`score_map` `(N, h, w)` with an attention that points nowhere, so that pass 2 is skipped."""
    return Maps(score_map, torch.ones_like(score_map))


def cells_a_side(profile: Profile) -> int:
    """Height and width of the features of a view: the stage's stride is 8, 16 or 32."""
    stride = 1 << (int(profile.stages[0].removeprefix("layer")) + 1)
    return -(-profile.view.side // stride)
