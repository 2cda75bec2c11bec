"""Score map → score → deviation → loss (Eq 8-12), differentiable; docs/method.md, "Loss"."""

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from torch import Tensor

from engine.score import ScoreSpec, top_k_count

# Defective patches are few; each counts this much more than a good one.
_DEFECTIVE_PATCH: Final = 4.0


def drawn_reference(draws: int, *, top_k: float, seed: int) -> ScoreSpec:
    """μ_R and σ_R of Eq 11, from standard normal `draws` made once and stored."""
    drawn = np.random.default_rng(seed).standard_normal(draws)
    return ScoreSpec(
        top_k=top_k,
        reference_mean=float(drawn.mean()),
        reference_std=float(drawn.std(ddof=1)),
    )


def top_k_mean(score_map: Tensor, share: float) -> Tensor:
    """Mean of the K largest |values| of each map: `(N, h, w)` → `(N,)` (Eq 8 and 9).

    The same number as `engine.score.top_k_mean`, with a gradient.
    """
    magnitudes = score_map.flatten(1).abs()
    return magnitudes.topk(top_k_count(magnitudes.shape[1], share), dim=1).values.mean(dim=1)


def deviation(scores: Tensor, reference: ScoreSpec) -> Tensor:
    """dev(x) = (γ(x) − μ_R) / σ_R (Eq 11)."""
    return (scores - reference.reference_mean) / reference.reference_std


def deviation_loss(deviations: Tensor, defective: Tensor, margin: float) -> Tensor:
    """Eq 12, averaged over the batch: good parts to 0, defective ones beyond the margin k.

    `deviations` float32 `(N,)`, `defective` bool `(N,)`. As printed the defective term falls
    without bound; here it stops at the margin, as DevNet's does.
    """
    pull = torch.relu(margin - deviations)
    return torch.where(defective, pull, deviations.abs()).mean()


def patch_loss(
    score_map: Tensor, masks: Tensor, known: Tensor, reference: ScoreSpec, margin: float
) -> Tensor:
    """Eq 12 for patches: the mean of good ones to 0, and that of defective ones beyond the margin.

    Args:
        score_map: float32 `(N, h, w)`.
        masks: Which patches are defective, 0 and 1, `(N, h, w)`.
        known: bool `(N,)`; of an image whose mask is not known no patch counts.
        reference: What a deviation is measured by.
        margin: k of Eq 12.
    """
    deviations = deviation(score_map.abs(), reference)
    known = known[:, None, None]
    good, defective = known & (masks == 0), known & (masks > 0)
    to_zero = (deviations.abs() * good).sum() / good.sum().clamp(min=1)
    pull = torch.relu(margin - deviations)
    return to_zero + (pull * defective).sum() / defective.sum().clamp(min=1)


def attention_loss(attention: Tensor, masks: Tensor, known: Tensor) -> Tensor:
    """How far a supervised attention is from the known masks: cross-entropy per patch.

    `attention` in 0 … 1 and `masks` in {0, 1} are float32 `(N, h, w)`; `known` is bool `(N,)`,
    False for an image whose mask is not known, which then does not count.
    """
    patches = F.binary_cross_entropy(
        attention, masks, weight=1 + (_DEFECTIVE_PATCH - 1) * masks, reduction="none"
    )
    per_image = patches.mean(dim=(1, 2))
    return (per_image * known).sum() / known.sum().clamp(min=1)
