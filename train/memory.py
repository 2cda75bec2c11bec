"""What good parts look like to a frozen trunk: the prototypes of `train.network.Memory`.

The distance of a feature to the nearest of many good ones is what PatchCore (Roth et al. 2022)
scores by. Here k-means makes few prototypes of many, in a random projection that keeps distances
(Johnson and Lindenstrauss 1984), so that a pass costs a few percent more.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.frame import Box, Pixels
from engine.score import top_k_mean
from engine.view import ViewSpec, zoomed
from train.network import AtacNet, compared
from train.profile import Profile

Features = npt.NDArray[np.float32]

_CELLS: Final = 24_000  # of good views, for k-means
_ROUNDS: Final = 8  # of k-means


class Norm(NamedTuple):
    """Mean and standard deviation of the distance scores of good views."""

    mean: float
    std: float


def remember(
    network: AtacNet, profile: Profile, views: Callable[[], Iterable[Tensor]], *, seed: int
) -> Norm:
    """Fill `network.memory` from the features of good views; returns its norm in its own units.

    `views` gives the same ones each time: float `(C, h, w)`, two of each good image one after the
    other, the whole view and a closer one, since pass 2 asks the same memory. They are looked at
    one by one, so that all of them need not be kept. A view the memory was made of is nearer to it
    than any other, so that the distances of good views are measured against the prototypes of the
    other half of the images. The memory is scaled so that they spread by 1.
    """
    memory = network.memory
    if memory is None:
        raise AssertionError("only a profile with prototypes has a memory")
    rng = np.random.default_rng(seed)
    random = rng.standard_normal(memory.project.weight.shape[:2], dtype=np.float32)
    project = torch.from_numpy(random).to(memory.scale.device) / len(random) ** 0.5  # (d, C)
    if not memory.unit_cells:
        spread = torch.stack([v.float().std(dim=(1, 2)) for v in views()]).mean(dim=0)
        project = project / (spread + 1e-3)
    projected = [
        np.ascontiguousarray((project @ cells.flatten(1)).T.cpu().numpy())
        for cells in (compared(v.float()[None], unit_cells=memory.unit_cells)[0] for v in views())
    ]

    scores: list[float] = []
    halves = projected[0::4] + projected[1::4], projected[2::4] + projected[3::4]
    for seen, unseen in (halves, halves[::-1]):
        centres = _centres(seen, profile.prototypes, rng)
        scores += [top_k_mean(_distances(cells, centres), profile.top_k) for cells in unseen]
    norm = Norm(mean=float(np.mean(scores)), std=float(np.std(scores)) + 1e-6)

    centres = _centres(projected, profile.prototypes, rng)
    memory.hold(project, torch.from_numpy(centres).to(project.device), scale=1 / norm.std)
    return Norm(mean=norm.mean / norm.std, std=1.0)


def closer_view(
    pixels: Pixels, whole: Pixels, profile: Profile, rng: np.random.Generator
) -> Pixels:
    """A view of some square of the frame `pixels`, as large as the boxes of pass 2 may be."""
    spec: ViewSpec = profile.view
    side = int(rng.integers(min(profile.crop.min_side, spec.side), spec.side + 1))
    left, top = (int(rng.integers(spec.side - side + 1)) for _ in range(2))
    box = Box(left=left, top=top, right=left + side, bottom=top + side)
    seen, _ = zoomed(pixels, whole, box, spec)
    return seen


def _centres(views: list[Features], count: int, rng: np.random.Generator) -> Features:
    """`count` centres of the cells of `views`, each `(cells, d)`; fewer cells are repeated."""
    cells = np.concatenate(views)
    cells = cells[rng.permutation(len(cells))[:_CELLS]]
    if len(cells) <= count:
        return np.resize(cells, (count, cells.shape[1]))
    cv2.setRNGSeed(int(rng.integers(2**31)))
    _, _, centres = cv2.kmeans(
        cells,
        count,
        np.empty(0, dtype=np.int32),
        (cv2.TERM_CRITERIA_MAX_ITER, _ROUNDS, 0),
        1,
        cv2.KMEANS_RANDOM_CENTERS,
    )
    return np.asarray(centres, dtype=np.float32)


def _distances(cells: Features, centres: Features) -> Features:
    """The distance of each of `cells` `(n, d)` to the nearest centre: float32 `(n,)`."""
    squares = (centres**2).sum(axis=1) - 2 * cells @ centres.T  # (n, count)
    nearest = squares.min(axis=1) + (cells**2).sum(axis=1)
    distances: Features = np.sqrt(np.maximum(nearest, 0))
    return distances
