"""Four learnt heads, trained in folds, and the weight that known defects give to them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.detection_study.bank import Memory, top_mean
from benchmarks.detection_study.images import Images, Rows
from benchmarks.detection_study.scores import Floats, Scores, summed
from train.datasets import read_listed, read_mask

WEIGHTS: Final = (0.0, 0.1, 0.25, 0.5, 1.0)
SHARE: Final = 0.1  # of the patches of an image that make its score
_HEADS: Final = 4
_WIDTH: Final = 64
_STEPS: Final = 240
_HALF_BATCH: Final = 8
_LEARNING_RATE: Final = 1e-3
_MARGIN: Final = 10.0
_AT_ONCE: Final = 16  # views in one pass
_COVERED: Final = 0.25  # the share of a patch under the mask from which on it is defective
_LEAST_EVIDENCE: Final = 5  # known defects
_PSEUDO: Final = 2  # known defects that count as no gain


class Heads(nn.Module):
    """Heads side by side: 1 × 1 to 64 channels, ReLU, a residual 1 × 1, one output each.

    They share nothing but what they see. `(N, patches, d)` → magnitudes `(N, heads, patches)`.
    """

    def __init__(self, dimensions: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((torch.rand(*shape, generator=generator) * 2 - 1) / fan_in**0.5)

        width = _HEADS * _WIDTH
        self.convolve = drawn(dimensions, width, fan_in=dimensions)
        self.convolve_bias = drawn(width, fan_in=dimensions)
        self.refine = drawn(_HEADS, _WIDTH, _WIDTH, fan_in=_WIDTH)
        self.refine_bias = drawn(_HEADS, 1, _WIDTH, fan_in=_WIDTH)
        self.score = drawn(_HEADS, _WIDTH, 1, fan_in=_WIDTH)
        self.score_bias = drawn(_HEADS, 1, 1, fan_in=_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        views, patches, dimensions = x.shape
        x = x.reshape(views * patches, dimensions) @ self.convolve.to(x.dtype)
        x = torch.relu(x + self.convolve_bias.to(x.dtype))
        x = x.view(views * patches, _HEADS, _WIDTH).transpose(0, 1)
        refined = torch.baddbmm(self.refine_bias.to(x.dtype), x, self.refine.to(x.dtype))
        x = (x + torch.relu(refined)).float()
        magnitudes = torch.baddbmm(self.score_bias, x, self.score).abs()
        return magnitudes.view(_HEADS, views, patches).transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class CrossFitted:
    """Scores by the heads of each fold.

    `good` are of the pool, each by the heads of the one fold that did not learn from it. `others`
    are `(folds, others)`, and `seen` says which of them the heads of a fold learnt from.
    """

    good: Floats
    others: Floats
    seen: npt.NDArray[np.bool_]

    def unseen(self) -> Scores:
        """For each of the others the mean over the heads that have not seen it, NaN if none."""
        counts = (~self.seen).sum(axis=0)
        sums = np.where(self.seen, 0.0, self.others).sum(axis=0)
        means = np.full(len(counts), np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        return Scores(self.good, means)


def cross_fitted(
    memory: Memory, images: Images, known: Rows, others: Rows, *, folds: int, draw: int
) -> CrossFitted:
    """Train the heads of each fold without its share of the pool and of the known defects.

    A single known defect is in every fold, so nothing is left out that could be evidence.

    Args:
        memory: Its projected patches are what heads learn from.
        images: Their pool is parted into folds.
        known: The known defects, in the order in which they became known.
        others: The images to score besides the pool.
        folds: How many times heads are trained.
        draw: Seeds the folds and the initialisation.
    """
    pool = images.pool
    fold = np.empty(len(pool), dtype=np.int64)
    fold[np.random.default_rng(draw).permutation(len(pool))] = np.arange(len(pool)) % folds
    masks = {int(row): _patch_mask(images, int(row), memory.patches.shape[1]) for row in known}
    good = np.zeros(len(pool))
    of_others = np.zeros((folds, len(others)))
    seen = np.zeros((folds, len(others)), dtype=np.bool_)
    for number in range(folds):
        learnt = [
            int(row)
            for order, row in enumerate(known)
            if order % folds != number or len(known) == 1
        ]
        heads = trained_heads(memory, pool[fold != number], learnt, masks, seed=100 * draw + number)
        left_out = np.flatnonzero(fold == number)
        good[left_out] = _scored(heads, memory, pool[left_out])
        of_others[number] = _scored(heads, memory, others)
        seen[number] = np.isin(others, learnt)
    return CrossFitted(good=good, others=of_others, seen=seen)


def trained_heads(
    memory: Memory,
    good: Rows,
    known: Sequence[int],
    masks: Mapping[int, Tensor | None],
    *,
    seed: int,
    steps: int = _STEPS,
) -> Heads:
    """Heads that learn by the deviation loss, and patch by patch where all known have masks.

    Every second patch of a view is shown, in a phase that changes with each step. Denormal numbers
    make a step ten times slower: call `torch.set_flush_denormal` before.

    Args:
        memory: Gives the patches.
        good: Good images to learn from.
        known: Known defects to learn from.
        masks: Of each known defect its patches, or None.
        seed: Of initialisation and batches.
        steps: How many batches of eight good and eight defective images.
    """
    rng = np.random.default_rng(seed)
    heads = Heads(memory.patches.shape[2], seed)
    side = round(memory.patches.shape[1] ** 0.5)
    grid = torch.arange(side * side).view(side, side)
    drawn_masks = {row: mask for row in known if (mask := masks[row]) is not None}
    has_masks = len(drawn_masks) == len(set(known))
    optimiser = torch.optim.Adam(heads.parameters(), _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = np.concatenate([rng.choice(good, _HALF_BATCH), rng.choice(known, _HALF_BATCH)])
        places = grid[int(rng.integers(2)) :: 2, int(rng.integers(2)) :: 2].flatten()
        maps = heads(_inputs(memory, rows, places))  # (16, heads, patches)
        top = maps.topk(max(1, int(SHARE * len(places))), dim=2).values.mean(2)
        loss = top[:_HALF_BATCH].mean() + torch.relu(_MARGIN - top[_HALF_BATCH:]).mean()
        if has_masks:
            mask = torch.stack([drawn_masks[int(row)] for row in rows[_HALF_BATCH:]])
            loss = loss + _patch_loss(maps, mask[:, places][:, None])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return heads


def evidence_weight(memory: Scores, heads: Scores, known: npt.NDArray[np.int64]) -> float:
    """The weight of the heads that ranks left-out known defects best among good parts, or 0.

    What counts is the mean gain in the logarithm of a defect's tail rank, shrunk as if two more
    defects had gained nothing, less half of its standard error. Fewer than five known defects are
    no evidence.

    Args:
        memory: z of the memory bank.
        heads: z of the heads; each known defect by heads that have not seen it.
        known: Which of the others are the known defects.
    """
    if len(known) < _LEAST_EVIDENCE:
        return 0.0

    def log_tail(weight: float) -> Floats:
        both = summed(memory, heads, weight)
        above = len(both.good) - np.searchsorted(np.sort(both.good), both.others[known])
        return np.asarray(np.log((above + 1) / (len(both.good) + 1)))

    most, best = 0.0, 0.0
    for weight in WEIGHTS[1:]:
        gain = log_tail(0.0) - log_tail(weight)
        error = gain.std(ddof=1) / len(known) ** 0.5
        shrunk = float(gain.sum() / (len(known) + _PSEUDO) - 0.5 * error)
        if shrunk > most:
            most, best = shrunk, weight
    return best


def _inputs(memory: Memory, rows: Rows, places: Tensor) -> Tensor:
    """Patches in their direction and of their length, as large as if each channel spread by 1."""
    at = torch.from_numpy(rows)[:, None]
    patches = memory.patches[at, places]
    scale = memory.lengths[at, places][..., None] * math.sqrt(patches.shape[-1])
    return patches * scale.to(patches.dtype)


def _patch_loss(maps: Tensor, mask: Tensor) -> Tensor:
    """Scores to 0 where patches are good, beyond the margin where they are under a mask."""
    good, defective = maps[:_HALF_BATCH], maps[_HALF_BATCH:]
    outside = (defective * ~mask).sum() / (~mask).sum() / _HEADS
    inside = (torch.relu(_MARGIN - defective) * mask).sum() / mask.sum().clamp(min=1) / _HEADS
    return (good.mean() + outside) / 2 + inside


@torch.inference_mode()
def _scored(heads: Heads, memory: Memory, rows: Rows) -> Floats:
    places = torch.arange(memory.patches.shape[1])
    maps = [
        heads(_inputs(memory, rows[start : start + _AT_ONCE], places)).mean(1)
        for start in range(0, len(rows), _AT_ONCE)
    ]
    return top_mean(torch.cat(maps), SHARE)


def _patch_mask(images: Images, row: int, patches: int) -> Tensor | None:
    item = images.items[row]
    mask = read_mask(images.source, item, read_listed(images.source, item))
    if mask is None:
        return None
    side = round(patches**0.5)
    fine = cv2.resize(mask.astype(np.float32), (side * 8, side * 8), interpolation=cv2.INTER_AREA)
    share = cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA).ravel()
    covered = share > _COVERED
    return torch.from_numpy(covered if covered.any() else share >= share.max())
