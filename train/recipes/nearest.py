"""A frozen backbone and a memory bank of good parts: how far a part is from the nearest of them.

Nothing is learnt by descent, so one good part teaches as much as it can at once, and a known defect
is not needed. docs/adr/0018-line-v2.md has what was measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.attention import CropSpec, attention_box
from engine.cross_fitted import CrossFitted, CrossFittedPart
from engine.errors import ConfigurationError
from engine.frame import Box
from engine.methods import open_method
from engine.methods.atac import AtacMethod
from engine.score import ScoreSpec, top_k_mean
from engine.spec import spec
from engine.view import ViewSpec, view
from train.backbones import BACKBONES, AnyBackbone
from train.backbones.resnet import ResNet
from train.cache import ByteLimitedCache
from train.checkpoint import deterministic
from train.datasets import Listed, TrainingImages
from train.evaluate import ValidationProbe
from train.nearest_patch import CANDIDATES, FITTED, Bank, NearestPatch, located
from train.network import AtacNet, Maps, Standardisation, TorchBackend, atac_method
from train.recipes import Recipe, RecipeSettings, Run, Trained

_KEPT_BYTES: Final = 2 << 30  # of features
_MOST_GOOD: Final = 1000  # good images at most that the bank is made of
_AT_ONCE: Final = 4096  # patches projected in one step
_NEVER: Final = 3.0  # a gate above all distances


@spec
class Nearest(RecipeSettings):
    """The settings of `nearest`.

    Pass 2 shows half of the view's side around the place that is farthest from good parts. The
    share `closer` of good parts has one; 0: there is no pass 2, 1: every part has one.
    """

    stage: ClassVar = "computing features of the good parts, and filling the memory bank"
    descends: ClassVar = False
    leaves_out: ClassVar = True
    type: Literal["nearest"] = "nearest"

    view: ViewSpec = ViewSpec(
        side=224, equalise="after_resize", crop_from="frame", reducing_gap=2.0
    )
    standardise: Standardisation = "imagenet"
    backbone: AnyBackbone = ResNet(architecture="resnet50", stages=("layer2", "layer3"))
    memory_bank: Bank = Bank()
    top_k: Annotated[float, Field(gt=0, le=1)] = 0.03
    closer: Annotated[float, Field(ge=0, le=1)] = 0.2

    epochs: Literal[1] = 1
    hold_out: Annotated[float, Field(ge=0, lt=1)] = 0.15

    def lasting(self, epochs: int) -> Self:
        """Nothing is repeated, so there are no epochs to choose."""
        if epochs == 1:
            return self
        raise ConfigurationError("--epochs", str(epochs), "is not for the recipe nearest")

    def with_side(self, side: int) -> Self:
        """The same with views of another side."""
        return replace(self, view=replace(self.view, side=side))

    @property
    def facts(self) -> dict[str, str]:
        bank = self.memory_bank
        return {"Memory bank": f"{bank.patches} patches in {bank.directions} directions"}


def open(settings: Nearest) -> Recipe:
    """The recipe with these settings."""
    return Recipe(network=partial(network, settings), train=partial(train, settings))


class NearestNet(AtacNet):
    """The distance to good parts as the score map; attention points at the farthest place."""

    exact_in_int8 = ("head.",)

    @property
    def bank(self) -> NearestPatch:
        head = self.head
        assert isinstance(head, NearestPatch)
        return head


def network(settings: Nearest) -> NearestNet:
    """The network with a random backbone and an empty memory bank."""
    return NearestNet(
        BACKBONES.of(settings.backbone).open(settings.backbone, side=settings.view.side),
        partial(NearestPatch, settings=settings.memory_bank),
        standardise=settings.standardise,
        freeze=True,
        local_mean=True,
    )


def train(settings: Nearest, images: TrainingImages, run: Run) -> Trained:
    """Fill the memory bank; then score each good part as if the bank had been made without it."""
    device = deterministic(run.seed)
    net = network(settings)
    if run.weights is not None:
        net.backbone.load(run.weights)
    net.to(device)
    checkpoint = run.checkpoint(images, network=net)
    parts = Parts(net, settings, images)
    probe = ValidationProbe(images, net, parts.method())
    with torch.inference_mode():
        for epoch in checkpoint.epochs(1, probe=probe):
            fill(net.bank, parts, epoch.rng, seed=run.seed)
            epoch.learning_rate = 0.0
        seen = [parts.left_out(index) for index in images.good]
        method = parts.method(seen)
        # Of one region of a part the bank may still hold another, so such a part is not left out.
        scores = parts.cross_fitted(seen, method) if images.is_one_each else None
        return Trained.of(net, method, checkpoint, cross_fitted=scores)


class LeftOut(NamedTuple):
    """A good part's whole view, scored without its own patches: score, peak of attention, box."""

    score: float
    peak: float
    box: Box


class Parts:
    """The training images as the network sees them.

    Args:
        network: Whose features these are.
        settings: How views are made, and what counts.
        images: The training images.
    """

    def __init__(self, network: NearestNet, settings: Nearest, images: TrainingImages) -> None:
        self.images = images
        self._network = network
        self._settings = settings
        self.looks_closer = settings.closer > 0
        self._kept: ByteLimitedCache[tuple[int, Box], Tensor] = ByteLimitedCache(limit=_KEPT_BYTES)

    def whole(self, index: int) -> Tensor:
        """Features `(C, h, w)` of the whole view of image `index`, in half precision."""
        return self.closer(index, self._settings.view.box)

    def closer(self, index: int, box: Box) -> Tensor:
        """Features of a `box` of image `index`, in pixels of the whole view."""
        return self._kept.get((index, box), lambda: self._features(index, box), _nbytes)

    def random_box(self, rng: np.random.Generator) -> Box:
        """A box as large as those of pass 2."""
        side = self._settings.view.side
        half = side // 2
        left, top = (int(rng.integers(side - half + 1)) for _ in range(2))
        return Box(left=left, top=top, right=left + half, bottom=top + half)

    def left_out(self, index: int) -> LeftOut:
        """The whole view of good image `index` to a bank without it."""
        maps = self._maps(index, self.whole(index))
        attention = maps.attention.numpy()
        crop = self._crop(gate=0.0)
        return LeftOut(
            score=top_k_mean(maps.score_map.numpy(), self._settings.top_k),
            peak=float(attention.max()),
            box=attention_box(attention, self._settings.view.box, crop),
        )

    def method(self, seen: Sequence[LeftOut] = ()) -> AtacMethod:
        """How the engine runs the network; by what was `seen` of good parts, the gate too."""
        scores, share = [one.score for one in seen] or [0.0, 1.0], self._settings.closer
        gate = 0.0 if share else _NEVER
        if seen and 0 < share < 1:
            gate = float(np.quantile([one.peak for one in seen], 1 - share))
        return atac_method(
            self._network,
            self._settings.view,
            self._crop(gate=gate),
            ScoreSpec(
                top_k=self._settings.top_k,
                reference_mean=float(np.mean(scores)),
                reference_std=float(np.std(scores)) + 1e-6,
            ),
        )

    def cross_fitted(self, seen: Sequence[LeftOut], method: AtacMethod) -> CrossFitted:
        """The scores of all images by banks without them.

        What a good part still has a share in: standardisation and directions of the bank, which
        others of its patches the search kept, and the gate. Known defects are in none of these.

        Args:
            seen: Of each good image.
            method: How the engine runs the network.
        """
        split, good = self.images.split, []
        for index, item, first in zip(self.images.good, split.train_good, seen, strict=True):
            score = first.score
            if first.peak >= method.crop.gate and first.box != method.view.box:
                maps = self._maps(index, self.closer(index, first.box))
                score = (score + top_k_mean(maps.score_map.numpy(), method.score.top_k)) / 2
            seen_box = first.box.scaled(of=method.view.box, to=Box.around(self.images.frame(index)))
            good.append(_part(item, score, self.images.box_in_frame(index, seen_box)))
        with TorchBackend(self._network) as backend:
            inspector = open_method(self.images.method(method), backend)
            found = [inspector.inspect(self.images.images.pixels(i)) for i in split.train_defective]
        defective = [
            _part(item, one.score, one.box if one.zoomed else None)
            for item, one in zip(split.train_defective, found, strict=True)
        ]
        return CrossFitted(
            way="leave_one_out", folds=len(good), good=tuple(good), defective=tuple(defective)
        )

    def _crop(self, *, gate: float) -> CropSpec:
        return CropSpec(gate=gate, min_side=self._settings.view.side // 2, square=True)

    def _features(self, index: int, box: Box) -> Tensor:
        pixels, spec = self.images.frame(index), self._settings.view
        seen = view(pixels, box.scaled(of=spec.box, to=Box.around(pixels)), spec)
        # Copied: a view may be read-only, which torch cannot express.
        views = torch.tensor(seen[None], device=self._network.device)
        return self._network.features(views)[0].half()

    def _maps(self, index: int, features: Tensor) -> Maps:
        """Of one view of good image `index`, to a bank without it: `(h, w)` each."""
        bank = self._network.bank
        distances = bank.without(index, bank.compared(features.float()[None])[0])
        return Maps(*(each[0].cpu() for each in located(distances[None])))


def fill(bank: NearestPatch, parts: Parts, rng: np.random.Generator, *, seed: int) -> None:
    """Fill `bank` from good parts, first seen whole, which says where to look closer.

    Then it is filled again, from whole views, closer ones at these places and at random places.

    Args:
        bank: The memory bank.
        parts: Whose good images it is made of; of very many, some.
        rng: Draws boxes and patches.
        seed: Of the search.
    """
    good = sorted(rng.permutation(list(parts.images.good))[:_MOST_GOOD].tolist())
    _remember(bank, good, lambda index: [parts.whole(index)], rng, seed=seed)
    if parts.looks_closer:
        boxes = {index: parts.left_out(index).box for index in good}

        def views(index: int) -> list[Tensor]:
            somewhere = parts.random_box(rng)
            closer = [parts.closer(index, box) for box in (boxes[index], somewhere)]
            return [parts.whole(index), *closer]

        _remember(bank, good, views, rng, seed=seed)


def _remember(
    bank: NearestPatch,
    good: Sequence[int],
    views: Callable[[int], Sequence[Tensor]],
    rng: np.random.Generator,
    *,
    seed: int,
) -> None:
    """Fit `bank` to random patches of the `views` of each good image, and keep some of them."""
    kept: list[Tensor] = []
    origin: list[Tensor] = []
    for index in good:
        seen = views(index)
        each = -(-CANDIDATES // (len(good) * len(seen)))
        for features in seen:
            patches = features.flatten(1).T
            drawn = torch.from_numpy(rng.permutation(len(patches))[:each])
            kept.append(patches[drawn.to(patches.device)])
            origin.append(torch.full((len(kept[-1]),), index))
    found = torch.cat(kept)
    order = torch.from_numpy(rng.permutation(len(found))).to(found.device)
    bank.fit(found[order[:FITTED]].float())
    compared = torch.cat(
        [
            bank.compared(some.float().T[None, :, :, None])[0, :, :, 0].T
            for some in torch.split(found, _AT_ONCE)
        ]
    )
    bank.hold(compared, torch.cat(origin).to(compared.device), seed=seed)


def _part(item: Listed, score: float, box: Box | None) -> CrossFittedPart:
    return CrossFittedPart(path=item.path, sha256=item.sha256, kind=item.kind, score=score, box=box)


def _nbytes(features: Tensor) -> int:
    return features.nbytes
