"""The memory bank: prototypes of what good parts look like to a frozen backbone.

The distance of a feature to the nearest of many good ones is what PatchCore (Roth et al. 2022)
scores by. Here k-means makes few prototypes of many, in a random projection that keeps distances
(Johnson and Lindenstrauss 1984), so that a pass costs a few percent more.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from pydantic import Field
from torch import Tensor, nn

from engine.attention import CropSpec
from engine.frame import Box, Pixels
from engine.score import top_k_mean
from engine.spec import spec
from engine.view import ViewSpec, zoomed
from train.apart import lengths

Features = npt.NDArray[np.float32]

_PATCHES: Final = 24_000  # of good views, for k-means
_ROUNDS: Final = 8  # of k-means


@spec
class MemoryBank:
    """How many `prototypes`, in a projection of `channels`.

    One σ of good parts' distances counts as `weight` deviations. Patches have length 1, so that
    they differ by direction, not by contrast.
    """

    prototypes: Annotated[int, Field(ge=1)] = 768
    channels: Annotated[int, Field(ge=1)] = 128
    weight: Annotated[float, Field(gt=0)] = 0.5


class Norm(NamedTuple):
    """Mean and standard deviation of the distance scores of good views."""

    mean: float
    std: float


class PrototypeDistance(nn.Module):
    """How far each patch is from the nearest prototype; `fill` puts them in.

    The scale is 0 until then.
    """

    scale: Tensor

    def __init__(self, channels: int, settings: MemoryBank) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, settings.channels, 1, bias=False)
        # |c|² − 2 x·c for each prototype c of a projected patch x
        self.compare = nn.Conv2d(settings.channels, settings.prototypes, 1)
        self.register_buffer("scale", torch.zeros(1))
        self.settings = settings
        self.requires_grad_(requires_grad=False)

    def forward(self, features: Tensor | list[Tensor]) -> Tensor:
        """Distances `(N, h, w)` of features `(N, C, h, w)`, or of maps; scaled, not negative."""
        if isinstance(features, Tensor):
            x = self.project(F.normalize(features, dim=1))
        else:  # a length is one number a patch: it may be divided by after the projection
            x = self.project(features) / lengths(features)
        nearest = self.compare(x).amin(dim=1) + (x * x).sum(dim=1)  # |x − c|²: (N, h, w)
        y: Tensor = self.scale * torch.sqrt(torch.relu(nearest))
        return y

    def hold(self, project: Tensor, centres: Tensor, *, scale: float) -> None:
        """Take a projection `(d, C)` and prototypes `(count, d)`."""
        self.load_state_dict(
            {
                "project.weight": project[:, :, None, None],
                "compare.weight": -2 * centres[:, :, None, None],
                "compare.bias": (centres * centres).sum(dim=1),
                "scale": torch.full((1,), scale),
            }
        )


def fill(
    bank: PrototypeDistance, views: Callable[[], Iterable[Tensor]], *, top_k: float, seed: int
) -> Norm:
    """Fill `bank` from the features of good views; returns its norm in its own units.

    A view that the bank was made of is nearer to it than any other. So the distances of good views
    are measured against the prototypes of the other half of the images. The bank is scaled so that
    they spread by 1.

    Args:
        bank: The memory bank of a network whose backbone is loaded and frozen.
        views: Gives the same features each time: float `(C, h, w)`, two of each good image one
            after the other, the whole view and a closer one, since pass 2 asks the same bank.
        top_k: The share of patches whose mean is a view's score.
        seed: Of the projection and of k-means.
    """
    prototypes = bank.settings.prototypes
    rng = np.random.default_rng(seed)
    random = rng.standard_normal(bank.project.weight.shape[:2], dtype=np.float32)
    project = torch.from_numpy(random).to(bank.scale.device) / len(random) ** 0.5  # (d, C)
    projected = [
        np.ascontiguousarray((project @ F.normalize(v.float(), dim=0).flatten(1)).T.cpu().numpy())
        for v in views()
    ]

    scores: list[float] = []
    halves = projected[0::4] + projected[1::4], projected[2::4] + projected[3::4]
    for seen, unseen in (halves, halves[::-1]):
        centres = _centres(seen, prototypes, rng)
        scores += [top_k_mean(_distances(patches, centres), top_k) for patches in unseen]
    norm = Norm(mean=float(np.mean(scores)), std=float(np.std(scores)) + 1e-6)

    centres = _centres(projected, prototypes, rng)
    bank.hold(project, torch.from_numpy(centres).to(project.device), scale=1 / norm.std)
    return Norm(mean=norm.mean / norm.std, std=1.0)


def closer_view(
    pixels: Pixels, whole: Pixels, spec: ViewSpec, crop: CropSpec, rng: np.random.Generator
) -> Pixels:
    """A view of a random square of a frame, as large as the boxes of pass 2 may be.

    Args:
        pixels: The frame.
        whole: The view of all of it.
        spec: How views are made.
        crop: Says how small a box may be.
        rng: Draws the square.
    """
    side = int(rng.integers(min(crop.min_side, spec.side), spec.side + 1))
    left, top = (int(rng.integers(spec.side - side + 1)) for _ in range(2))
    box = Box(left=left, top=top, right=left + side, bottom=top + side)
    seen, _ = zoomed(pixels, whole, box, spec)
    return seen


def _centres(views: list[Features], count: int, rng: np.random.Generator) -> Features:
    """`count` centres of the patches of `views`, each `(patches, d)`; fewer are repeated."""
    patches = np.concatenate(views)
    patches = patches[rng.permutation(len(patches))[:_PATCHES]]
    if len(patches) <= count:
        return np.resize(patches, (count, patches.shape[1]))
    cv2.setRNGSeed(int(rng.integers(2**31)))
    _, _, centres = cv2.kmeans(
        patches,
        count,
        np.empty(0, dtype=np.int32),
        (cv2.TERM_CRITERIA_MAX_ITER, _ROUNDS, 0),
        1,
        cv2.KMEANS_RANDOM_CENTERS,
    )
    return np.asarray(centres, dtype=np.float32)


def _distances(patches: Features, centres: Features) -> Features:
    """The distance of each of `patches` `(n, d)` to the nearest centre: float32 `(n,)`."""
    squares = (centres**2).sum(axis=1) - 2 * patches @ centres.T  # (n, count)
    nearest = squares.min(axis=1) + (patches**2).sum(axis=1)
    distances: Features = np.sqrt(np.maximum(nearest, 0))
    return distances
