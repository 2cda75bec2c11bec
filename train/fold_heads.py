"""Heads that learn from known defects, beside a memory bank of good parts.

They come in folds: those of a fold have learnt from no part of it, so they can judge these parts as
they will judge new ones. On the line the mean of all counts. Deviation loss (Pang et al. 2019) on
the standardised features; docs/adr/0018-line-v2.md has what was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from train.checkpoint import EpochInProgress
from train.features import has_bf16
from train.network import PatchResidual
from train.schedule import Cosine, learning_rate

FOLDS: Final = 5
HEAD_SHARE: Final = 0.1  # of the patches of a view that make what a head says of it

_HEADS: Final = 4  # of a fold
_WIDTH: Final = 64  # channels of a head
_HALF: Final = 8  # good views in a batch, and as many of defects
_RATE: Final = 1e-3
_MARGIN: Final = 10.0
_APART: Final = 2  # patches between those that a step is shown


class FoldHeads(nn.Module):
    """`(N, C, h, w)`, or maps → what the heads say of each patch, not negative: `(N, h, w)`."""

    def __init__(self, channels: int, folds: int = FOLDS) -> None:
        super().__init__()
        heads = folds * _HEADS
        self.folds = folds
        self.convolve = nn.Conv2d(channels, heads * _WIDTH, 1)
        self.refine = PatchResidual(heads * _WIDTH, heads)
        self.score = nn.Conv2d(heads * _WIDTH, heads, 1, groups=heads)

    def forward(self, x: Tensor | list[Tensor], *, fold: int | None = None) -> Tensor:
        """The mean of all heads, or of those of a `fold`."""
        heads = self if fold is None else self.of(fold)
        return heads.each(x).mean(dim=1)

    def each(self, x: Tensor | list[Tensor]) -> Tensor:
        """What each head says: `(N, heads, h, w)`."""
        x = self.refine(torch.relu(self.convolve(x)))
        answers: Tensor = self.score(x).abs()
        return answers

    @torch.no_grad()
    def join(self, folds: "Sequence[FoldHeads]") -> None:
        """Become the heads of these `folds`, which have one fold each."""
        each = zip(*(one.parameters() for one in folds), strict=True)
        for mine, theirs in zip(self.parameters(), each, strict=True):
            mine.copy_(torch.cat(theirs))

    @torch.no_grad()
    def of(self, fold: int) -> "FoldHeads":
        """The heads of one `fold`."""
        some = FoldHeads(self.convolve.in_channels, folds=1).to(self.score.weight.device)
        for theirs, mine in zip(some.parameters(), self.parameters(), strict=True):
            theirs.copy_(mine.chunk(self.folds)[fold])
        return some


class Taught:
    """Views of parts as heads see them, and which of their patches show a defect.

    Args:
        views: Features of each part, in its whole and its closer view: each `(C, h, w)`.
        standardised: Makes of features what heads see.
        shown: Of known defects which patches of these views show them, bool `(views, h, w)`; None
            where nobody drew it.
        fold: Of each part the fold whose heads must not see it.
    """

    def __init__(
        self,
        views: Mapping[int, Sequence[Tensor]],
        standardised: Callable[[Tensor], Tensor],
        shown: Mapping[int, Tensor | None],
        fold: Mapping[int, int],
    ) -> None:
        self._views = views
        self._standardised = standardised
        self._good = [part for part in views if part not in shown]
        self._defective = list(shown)
        masks = {part: mask for part, mask in shown.items() if mask is not None}
        self._masks = masks if len(masks) == len(shown) else None
        self._fold = fold

    def heads(self, fold: int, epoch: EpochInProgress, *, steps: int) -> FoldHeads:
        """Heads that have learnt in `steps` steps from all parts but those of `fold`."""
        rng = epoch.rng
        good, defective = (
            [part for part in parts if self._fold[part] != fold]
            for parts in (self._good, self._defective)
        )
        some = next(iter(self._views.values()))
        heads = FoldHeads(len(some[0]), folds=1).to(some[0].device)
        optimiser = torch.optim.Adam(heads.parameters(), _RATE)
        device = some[0].device
        precise = torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device))
        for step in range(steps):
            parts = [*rng.choice(good, _HALF).tolist(), *rng.choice(defective, _HALF).tolist()]
            seen = rng.integers(len(some), size=len(parts)).tolist()
            top, left = rng.integers(_APART, size=2).tolist()
            some_patches = (slice(top, None, _APART), slice(left, None, _APART))
            views = torch.stack(
                [self._views[p][v][:, *some_patches] for p, v in zip(parts, seen, strict=True)]
            )
            with precise:
                answers = heads.each(self._standardised(views.float()))
            masks = None
            if self._masks is not None:
                ends = zip(parts[_HALF:], seen[_HALF:], strict=True)
                masks = torch.stack([self._masks[part][view] for part, view in ends])
            loss = _loss(answers.float().flatten(2), masks, some_patches)
            rate = learning_rate(_RATE, Cosine(), step, of=steps)
            epoch.descend(loss, optimiser, learning_rate=rate, clip_norm=1.0, noted=False)
        return heads


def _loss(answers: Tensor, masks: Tensor | None, some_patches: tuple[slice, slice]) -> Tensor:
    """Good views to 0 and defects beyond the margin; where all are drawn, their patches too.

    Args:
        answers: Of good views, then as many of defects: `(N, heads, patches)`.
        masks: Which patches of the second half show the defect; of all of a view.
        some_patches: Which of these are in the answers.
    """
    count = int(HEAD_SHARE * answers.shape[2]) or 1
    good, defective = answers.topk(count, dim=2).values.mean(dim=2).chunk(2)
    pull = torch.relu(_MARGIN - defective)
    if masks is None:
        return good.mean() + pull.mean()
    # A closer view beside the defect shows a good part.
    is_shown = masks.flatten(1).any(dim=1)[:, None]
    mask = masks[:, *some_patches].flatten(1)[:, None]
    of_good, of_defective = answers.chunk(2)
    heads = answers.shape[1]
    outside = (of_defective * ~mask).sum() / (~mask).sum() / heads
    inside = (torch.relu(_MARGIN - of_defective) * mask).sum() / mask.sum().clamp(min=1) / heads
    return (
        good.mean()
        + torch.where(is_shown, pull, defective).mean()
        + (of_good.mean() + outside) / 2
        + inside
    )
