"""The memory bank M: what good patches look like, and how far a part's patches are from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch's users know

from benchmarks.detection_study.features import Features
from benchmarks.detection_study.images import Rows
from benchmarks.detection_study.scores import Floats

SIZE: Final = 3_000
SHARE: Final = 0.03  # of the patches of an image that make its score
_DIRECTIONS: Final = 256
_FITTED: Final = 20_000  # good patches that the projection is fitted to
_CANDIDATES: Final = 24_000  # good patches that the k-centre search chooses from
_SEARCHED: Final = 64  # random dimensions of that search
_AT_ONCE: Final = 8  # centres that it adds in one step


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Features → what is compared.

    Standardised by channel over good patches, L2-normalised, then projected on the principal
    directions of good patches, which are not centred. `kept` is the share of the variance in them.
    """

    mean: Tensor
    std: Tensor
    directions: Tensor  # (C, 256)
    kept: float

    def __call__(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Of patches `(n, C)`: directions `(n, 256)` in bf16, and lengths `(n,)`, about 1."""
        standardised = (patches - self.mean) / self.std
        lengths = standardised.norm(dim=1) / standardised.shape[1] ** 0.5
        unit = F.normalize(standardised, dim=1).bfloat16()
        return unit @ self.directions.bfloat16(), lengths


def fitted_projection(features: Features, rows: Rows, *, seed: int = 0) -> Projection:
    """Fit it to random patches of the good views `rows`."""
    generator = torch.Generator().manual_seed(seed)
    count, channels = features.patches(int(rows[0])).shape
    drawn = torch.randint(len(rows) * count, (_FITTED,), generator=generator)
    x = torch.empty(_FITTED, channels)
    for number, row in enumerate(rows):
        here = drawn // count == number
        x[here] = features.patches(int(row))[drawn[here] % count]
    mean, std = x.mean(0), x.std(0) + 1e-3
    unit = F.normalize((x - mean) / std, dim=1)
    values, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))  # the largest come last
    return Projection(
        mean=mean,
        std=std,
        directions=vectors[:, -_DIRECTIONS:].flip(1),
        kept=float(values[-_DIRECTIONS:].sum() / values.sum()),
    )


def k_centre(patches: Tensor, size: int, *, seed: int = 0) -> Tensor:
    """Places of `size` of `patches` `(n, d)` that lie far from each other.

    The greedy search adds what is farthest from all it has, some at a time, in a random projection.
    Those of one step must be apart from each other too.
    """
    generator = torch.Generator().manual_seed(seed)
    x = patches.float()
    size = min(size, len(x))
    if x.shape[1] > _SEARCHED:
        random = torch.randn(x.shape[1], _SEARCHED, generator=generator)
        x = x @ (random / _SEARCHED**0.5)
    squares = (x * x).sum(1)
    nearest = torch.full((len(x),), 1e9)  # squared distance to the nearest chosen
    new = [int(torch.randint(len(x), (1,), generator=generator))]
    chosen = list(new)
    while len(chosen) < size:
        distances = squares[:, None] + squares[new][None] - 2 * x @ x[new].T
        nearest = torch.minimum(nearest, distances.amin(1))
        new = []
        for far in nearest.topk(min(4 * _AT_ONCE, len(x))).indices.tolist():
            if all(
                float(((x[far] - x[other]) ** 2).sum()) > 0.5 * float(nearest[far]) for other in new
            ):
                new.append(far)
            if len(new) == _AT_ONCE:
                break
        chosen += new
    return torch.tensor(chosen[:size])


class Memory:
    """Projected views, and the bank made of some of them.

    An image is never compared with patches of its own, so that good images of the bank are scored
    as if the bank had been made without them (leave-one-image-out).
    """

    def __init__(
        self,
        features: Features,
        rows: Rows,
        *,
        images: Rows | None = None,
        size: int = SIZE,
        greedy: bool = True,
        seed: int = 0,
    ) -> None:
        """Make the bank.

        Args:
            features: Of all views that are to be scored.
            rows: The views of good images that the bank is made of.
            images: Which image each view of `features` shows; by default one each.
            size: How many patches the bank has.
            greedy: Whether they are chosen by k-centre or drawn at random.
            seed: Of all that is drawn.
        """
        self.projection = fitted_projection(features, rows, seed=seed)
        projected = [self.projection(features.patches(row)) for row in range(len(features))]
        self.patches = torch.stack([patches for patches, _ in projected])  # (views, patches, 256)
        self.lengths = torch.stack([lengths for _, lengths in projected])
        self._images = torch.arange(len(features)) if images is None else torch.from_numpy(images)
        bank_rows, each = torch.from_numpy(rows), self.patches.shape[1]
        count = _CANDIDATES if greedy else size
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(rows) * each, generator=generator)[:count]
        bank = self.patches[bank_rows[drawn // each], drawn % each]
        if greedy:
            best = k_centre(bank, size, seed=seed)
            bank, drawn = bank[best], drawn[best]
        self.bank = bank
        self._from = self._images[bank_rows[drawn // each]]

    def distances(self, rows: Iterable[int]) -> Tensor:
        """The distance of each patch of these views to the bank: float32 `(rows, patches)`."""
        found = []
        for row in rows:
            cosines = (self.patches[row] @ self.bank.T).float()
            cosines[:, self._from == self._images[row]] = -1.0
            found.append(torch.sqrt((2 - 2 * cosines.amax(1)).clamp(min=0)))
        return torch.stack(found)


def top_mean(maps: Tensor, share: float) -> Floats:
    """The mean of the largest values of each map `(n, patches)`: of 784 patches 23 at 3 %."""
    count = max(1, int(share * maps.shape[1]))
    return np.asarray(maps.topk(count, dim=1).values.mean(1).double().numpy())


def between_images(distances: Tensor) -> float:
    """The share of the distances' variance that lies between images."""
    return float(distances.mean(1).var() / distances.var())
