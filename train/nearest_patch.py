"""The memory bank: patches of good parts, and how far a patch is from the nearest of them.

PatchCore (Roth et al. 2022) scores so. Here channels are standardised and patches have length 1, so
that they differ by direction and not by contrast; few principal directions of good patches are
compared; and a greedy search keeps patches that lie far from each other (k-centre). Patches of
known defects are remembered beside them: what is nearer to those than to good ones counts more.
"""

from itertools import accumulate
from typing import Annotated, Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own custom)
from pydantic import Field
from torch import Tensor, nn

from engine.spec import spec
from train.apart import lengths
from train.fold_heads import FoldHeads
from train.network import Maps

FITTED: Final = 20_000  # good patches that the directions are fitted to
CANDIDATES: Final = 24_000  # good patches that the search chooses from
_SEARCHED: Final = 64  # random dimensions of that search
_AT_ONCE: Final = 8  # patches that it adds in one step
_APART: Final = 0.5  # of the largest distance: what those of one step have between them
_LEAST_STD: Final = 1e-3
_AROUND: Final = 5  # patches a side that attention is the mean of
_ASIDE: Final = 0.3  # what attention is worth beside its peak: less than ω


@spec
class Bank:
    """How many `patches` of good parts it keeps, compared in how many `directions`.

    Of known defects it keeps `defects` patches.
    """

    patches: Annotated[int, Field(ge=1)] = 3000
    defects: Annotated[int, Field(ge=1)] = 1000
    directions: Annotated[int, Field(ge=1)] = 256


class Compared(NamedTuple):
    """What is compared of patches: their direction, shorter than 1, `(N, d, h, w)`; and what heads
    see of them: all channels, each with a spread of 1, `(N, C, h, w)`, or such maps.
    """

    direction: Tensor
    standardised: Tensor | list[Tensor]


class Near(NamedTuple):
    """How far patches are from the nearest good one, and how much like known defects they are.

    Both are of shape `(N, h, w)`. `good` is 0 … 2. `defect` is how much nearer a known defect's
    patch is, 0 where a good one is nearer, and what heads say that learnt from known defects.
    """

    good: Tensor
    defect: Tensor

    def score_map(self, weight: float | Tensor) -> Tensor:
        """The sum; what known defects say counts `weight` times."""
        return self.good + weight * self.defect


class NearestPatch(nn.Module):
    """The distance of each patch to the nearest of the bank; `fit`, `hold` and `learn` fill it.

    It takes the place of σ and τ in `train.network.AtacNet`, whose names for convolutions it has.

    `origin` and `known_origin` tell of which training image each patch is. `weight` is what known
    defects count, `taught` what `heads` do beside their patches; both are 0 until they are set.
    """

    mean: Tensor
    std: Tensor
    origin: Tensor
    known: Tensor | None
    known_origin: Tensor
    weight: Tensor
    taught: Tensor
    heads: FoldHeads | None

    def __init__(self, channels: int, settings: Bank) -> None:
        super().__init__()
        directions = min(settings.directions, channels)
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        self.register_buffer("origin", torch.full((settings.patches,), -1))
        self.convolve = nn.Conv2d(channels, directions, 1, bias=False)  # the projection
        self.score = nn.Conv2d(directions, settings.patches, 1, bias=False)  # the bank
        self.register_buffer("known", torch.zeros(settings.defects, directions, 1, 1))
        self.register_buffer("known_origin", torch.full((settings.defects,), -1))
        self.register_buffer("weight", torch.zeros(1))
        self.register_buffer("taught", torch.zeros(1))
        self.heads = FoldHeads(channels)
        self.requires_grad_(requires_grad=False)

    def compared(self, features: Tensor | list[Tensor]) -> Compared:
        """What is compared of features `(N, C, h, w)`, or of maps.

        Of maps each is standardised on its own grid; that, and enlarging them, may change places.
        """
        x: Tensor | list[Tensor]
        if isinstance(features, Tensor):
            x = self.standardised(features)
            length = lengths([x])
        else:
            ends = list(accumulate(each.shape[1] for each in features))
            x = [
                (each - self.mean[:, end - each.shape[1] : end])
                / self.std[:, end - each.shape[1] : end]
                for each, end in zip(features, ends, strict=True)
            ]
            length = lengths(x)
        # One number a patch: it may be divided last.
        return Compared(self.convolve(x) / length, x)

    def standardised(self, features: Tensor) -> Tensor:
        """Features `(N, C, h, w)`, each channel with the spread 1 over good patches."""
        return (features - self.mean) / self.std

    def forward(self, features: Tensor | list[Tensor]) -> Maps:
        """The score map of features `(N, C, h, w)`, or of maps, and where to look closer."""
        near = self.near(self.compared(features))
        score_map = near.good if self.known is None else near.score_map(self.weight)
        return Maps(score_map, attention(near.good))

    def near(
        self, compared: Compared, *, without: int | None = None, fold: int | None = None
    ) -> Near:
        """What is near to patches, but for those of one image, by the heads of its `fold`."""
        good = _distances(self.score.weight, compared.direction, self.origin, without)
        if self.known is None:
            return Near(good, torch.zeros_like(good))
        known = _distances(self.known, compared.direction, self.known_origin, without)
        defect = torch.relu(good - known)
        # On the line there are no others; in training they cost time.
        if self.heads is not None and (without is None or self.taught):
            defect = defect + self.taught * self.heads(compared.standardised, fold=fold)
        return Near(good, defect)

    def forget_what_does_not_count(self) -> None:
        """Without what learnt from known defects, where it has no weight: the same, less work."""
        if not self.weight:
            self.known = None
        if not self.weight or not self.taught:
            self.heads = None

    def fit(self, patches: Tensor) -> None:
        """Take standardisation and directions from good patches `(n, C)`."""
        std, mean = torch.std_mean(patches, dim=0)
        std = std + _LEAST_STD
        unit = F.normalize((patches - mean) / std, dim=1)
        _, directions = torch.linalg.eigh(unit.T @ unit)  # the largest come last
        kept = directions[:, -len(self.convolve.weight) :].flip(1).T
        self.mean.copy_(mean[None, :, None, None])
        self.std.copy_(std[None, :, None, None])
        self.convolve.weight.copy_(kept[:, :, None, None])

    def hold(self, patches: Tensor, origin: Tensor, *, seed: int) -> None:
        """Keep some of good `patches` `(n, directions)`, those of images `origin` `(n,)`."""
        _keep(patches, origin, self.score.weight, self.origin, seed=seed)

    def learn(self, patches: Tensor, origin: Tensor, *, seed: int) -> None:
        """Keep some `patches` of known defects in the same way."""
        if self.known is not None:
            _keep(patches, origin, self.known, self.known_origin, seed=seed)


def attention(distances: Tensor) -> Tensor:
    """Where distances `(N, h, w)` are largest; only the peak is above ω, and is boxed."""
    mean = F.avg_pool2d(distances[:, None], _AROUND, 1, _AROUND // 2, count_include_pad=False)
    peak = mean.amax(dim=(2, 3), keepdim=True)
    return torch.where(mean < peak, _ASIDE * mean, mean)[:, 0]


def _distances(bank: Tensor, compared: Tensor, origin: Tensor, without: int | None) -> Tensor:
    """Of directions `(N, d, h, w)` to the nearest of a bank, but for patches of one image."""
    cosines = F.conv2d(compared, bank)
    if without is not None:
        cosines = cosines.masked_fill((origin == without)[:, None, None], -1)
    return torch.sqrt(torch.relu(2 - 2 * cosines.amax(dim=1)))


def _keep(patches: Tensor, origin: Tensor, bank: Tensor, of_bank: Tensor, *, seed: int) -> None:
    """Fill a `bank` with `patches` that lie far from each other; of too few some come twice.

    Args:
        patches: To choose from, `(n, directions)`.
        origin: Of which image each is, `(n,)`.
        bank: Receives them.
        of_bank: Receives of which image these are.
        seed: Of the search.
    """
    count = len(of_bank)
    chosen = k_centre(patches, count, seed=seed)
    chosen = chosen.repeat(-(-count // len(chosen)))[:count]
    bank.copy_(patches[chosen][:, :, None, None])
    of_bank.copy_(origin[chosen])


def k_centre(patches: Tensor, size: int, *, seed: int) -> Tensor:
    """Places of `size` of `patches` `(n, d)` that lie far from each other; all, if there are fewer.

    The greedy search adds what is farthest from all it has, some at a time, in a random projection
    (Johnson and Lindenstrauss 1984). Those of one step must be apart from each other too.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(patches) <= size:
        return torch.arange(len(patches), device=patches.device)
    random = torch.randn(patches.shape[1], _SEARCHED, generator=generator).to(patches.device)
    x = patches.float() @ (random / _SEARCHED**0.5)
    squares = (x * x).sum(dim=1)
    nearest = torch.full((len(x),), torch.inf, device=x.device)  # squared, to what is chosen
    new = [int(torch.randint(len(x), (1,), generator=generator))]
    chosen: list[int] = []
    while len(chosen) + len(new) < size:
        chosen += new
        distances = squares[:, None] + squares[new][None] - 2 * x @ x[new].T
        nearest = torch.minimum(nearest, distances.amin(dim=1))
        nearest[chosen] = -1
        farthest = nearest.topk(min(4 * _AT_ONCE, len(x))).indices
        between = torch.cdist(x[farthest], x[farthest]).square()
        limit = _APART * nearest[farthest]
        taken: list[int] = []
        for at in range(len(farthest)):
            if len(taken) < _AT_ONCE and bool((between[at, taken] > limit[at]).all()):
                taken.append(at)
        new = farthest[taken].tolist()
    return torch.tensor((chosen + new)[:size], device=patches.device)
