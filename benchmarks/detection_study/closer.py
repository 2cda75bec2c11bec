"""The closer pass: half of the view's side around the farthest place, with a memory of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch's users know

from benchmarks.detection_study.bank import Memory
from benchmarks.detection_study.features import Features, Shown, kept_features
from benchmarks.detection_study.images import Images
from benchmarks.detection_study.scores import Scores
from engine.frame import Box
from engine.view import ViewSpec
from train.weights import Weights

GATE: Final = 0.8  # the quantile of good parts' first z above which a part is looked at closer
_BELOW: Final = 9.0  # what puts parts that are not looked at closer below all that are


def closer_box(distances: Tensor, spec: ViewSpec) -> Box:
    """The box, half as wide as the view, around the largest 5 × 5 mean of `distances` `(h, w)`."""
    smooth = F.avg_pool2d(distances[None], 5, stride=1, padding=2, count_include_pad=False)[0]
    row, column = divmod(int(smooth.argmax()), distances.shape[1])
    half, patch = spec.side // 2, spec.side // distances.shape[1]
    left, top = (
        min(max(at * patch + patch // 2 - half // 2, 0), spec.side - half) for at in (column, row)
    )
    return Box(left=left, top=top, right=left + half, bottom=top + half)


def closer_memory(
    folder: Path,
    images: Images,
    first: Memory,
    *,
    spec: ViewSpec,
    weights: Weights,
    seed: int = 0,
) -> Memory:
    """The memory of closer views; its first rows are those of `images`.

    It is made of the closer views of the pool and of one random box of each of its images.

    Args:
        folder: Where features are kept.
        images: What is looked at closer; all of it, as the gate costs nothing here.
        first: The memory of whole views, which says where to look.
        spec: How views are made.
        weights: Of the backbone.
        seed: Of the random boxes.
    """
    views = [*_farthest(images, first, spec), *_random(images, spec, seed)]
    features: Features = kept_features(folder, images, views, spec=spec, weights=weights)
    random_rows = len(images.items) + np.arange(len(images.pool))
    return Memory(
        features,
        np.concatenate([images.pool, random_rows]),
        images=np.array([row for row, _ in views]),
    )


def gated(first: Scores, closer: Scores, quantile: float = GATE) -> Scores:
    """The sum of both z above the gate; below it the first z, put below all sums.

    Args:
        first: z of the whole view.
        closer: z of the closer view.
        quantile: Of the first z of good parts; 0 looks at every part closer.
    """
    gate = np.quantile(first.good, quantile)
    good, others = (
        np.where(one >= gate, one + two, one - _BELOW)
        for one, two in zip(first, closer, strict=True)
    )
    return Scores(good, others)


def _farthest(images: Images, first: Memory, spec: ViewSpec) -> Iterator[Shown]:
    for row in range(len(images.items)):
        distances = first.distances([row])[0]
        side = round(len(distances) ** 0.5)
        yield Shown(row, closer_box(distances.view(side, side), spec))


def _random(images: Images, spec: ViewSpec, seed: int) -> Iterator[Shown]:
    rng = np.random.default_rng(seed)
    half = spec.side // 2
    for row in images.pool:
        left, top = (int(rng.integers(spec.side - half + 1)) for _ in range(2))
        yield Shown(int(row), Box(left=left, top=top, right=left + half, bottom=top + half))
