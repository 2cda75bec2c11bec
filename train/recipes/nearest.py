"""A frozen backbone and a memory bank of good parts: how far a part is from the nearest of them.

Nothing is learnt by descent, so one part teaches as much as it can at once. Known defects are not
needed; patches of those there are have a bank of their own, which counts as much as defects that
were left out say. docs/adr/0018-line-v2.md has what was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, Self

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.attention import CropSpec, attention_box
from engine.cross_fitted import CrossFitted, CrossFittedPart
from engine.errors import ConfigurationError
from engine.frame import Box
from engine.methods.atac import AtacMethod
from engine.score import ScoreSpec, top_k_mean
from engine.spec import spec
from engine.view import ViewSpec, view
from train.apart import Apart
from train.backbones import BACKBONES, AnyBackbone
from train.backbones.resnet import ResNet
from train.cache import ByteLimitedCache
from train.checkpoint import EpochInProgress, deterministic
from train.datasets import TrainingImages
from train.evaluate import Scores, ValidationProbe
from train.fold_heads import FOLDS, HEAD_SHARE, Taught
from train.nearest_patch import CANDIDATES, FITTED, Bank, Compared, Near, NearestPatch, attention
from train.network import AtacNet, Standardisation, atac_method
from train.recipes import Recipe, RecipeSettings, Run, Trained

OF_ONE: Final = 0.5
"""What patches of a single known defect count, which cannot be left out."""
LEAST_TAUGHT: Final = 5
"""Known defects from which on heads learn from them too."""

_KEPT_BYTES: Final = 2 << 30  # of features
_MOST_GOOD: Final = 1000  # good images at most that the bank is made of
_AT_ONCE: Final = 4096  # patches projected in one step
_MOST_TAUGHT: Final = 300  # good images at most that heads learn from
_LEAST_STD: Final = 1e-3  # of what heads say of good parts
_NEVER: Final = 3.0  # a gate above all distances
_WEIGHTS: Final = (0.0, 0.25, 0.5, 1.0, 2.0)  # that patches of known defects may have
_MOST_DEFECTIVE: Final = 100  # defective images at most whose patches are kept
_FARTHEST: Final = 0.1  # of the patches of a view of a defect, at most this share is kept
_COVERED: Final = 0.25  # of a patch by a mask: then it shows the defect


@spec
class Nearest(RecipeSettings):
    """The settings of `nearest`.

    Pass 2 shows half of the view's side around the place that is farthest from good parts. The
    share `closer` of good parts has one; 0: there is no pass 2, 1: every part has one. Heads learn
    from known defects in `head_steps` steps; 0: there are none.
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
    closer: Annotated[float, Field(ge=0, le=1)] = 0.5
    head_steps: Annotated[int, Field(ge=0)] = 240

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

    def prepare_export(self, *, half: bool) -> None:
        self.bank.forget_what_does_not_count()
        super().prepare_export(half=half)
        if (heads := self.bank.heads) is not None:
            heads.add_module("convolve", Apart(heads.convolve, self.backbone.channels, half=half))

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
    """Fill the memory bank; then score each part as if the bank had been made without it."""
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
            learn(net.bank, parts, epoch.rng, seed=run.seed)
            teach(net.bank, parts, epoch, settings)
            epoch.learning_rate = 0.0
        good, known = (parts.all_left_out(each) for each in (images.good, images.defective))
        gate = parts.gate(good)
        good, known = ([parts.looked_closer(one, gate) for one in each] for each in (good, known))
        weight = weight_by_evidence(good, known, settings.top_k)
        net.bank.weight.fill_(weight)
        method = parts.method(gate, [one.score(weight, settings.top_k) for one in good])
        scores = parts.cross_fitted(good, known, weight)
        return Trained.of(net, method, checkpoint, cross_fitted=scores)


class LeftOut(NamedTuple):
    """What is near to a `picture` of a part without the part's patches, in each view of it.

    `peak` is that of attention in the whole view, and `box` where it is. `closer` is what is seen
    there, None where nobody looks.
    """

    picture: int
    whole: Near
    peak: float
    box: Box
    closer: Near | None = None

    def score(self, weight: float, top_k: float) -> float:
        """The score of the picture, where known defects count `weight` times."""
        seen = [near for near in (self.whole, self.closer) if near is not None]
        return float(np.mean([top_k_mean(n.score_map(weight).numpy(), top_k) for n in seen]))


class LeftOutPart(NamedTuple):
    """All pictures of a part that was left out: one, or one of each region."""

    pictures: tuple[LeftOut, ...]

    @property
    def peak(self) -> float:
        return max(one.peak for one in self.pictures)

    def score(self, weight: float, top_k: float) -> float:
        """The score of the part: that of its worst picture, as on the line."""
        return max(one.score(weight, top_k) for one in self.pictures)

    def worst(self, weight: float, top_k: float) -> LeftOut:
        return max(self.pictures, key=lambda one: one.score(weight, top_k))


def weight_by_evidence(
    good: Sequence[LeftOutPart], known: Sequence[LeftOutPart], top_k: float
) -> float:
    """What patches of known defects count: as much as known defects that were left out say.

    Args:
        good: Good parts, each to a bank without it.
        known: Known defects in the same way.
        top_k: The share of a map that counts.
    """
    if len(known) < 2:
        return OF_ONE * len(known)

    def scores(of: Sequence[LeftOutPart], weight: float) -> Scores:
        return np.array([one.score(weight, top_k) for one in of])

    return deepest({weight: (scores(good, weight), scores(known, weight)) for weight in _WEIGHTS})


def deepest(scores: Mapping[float, tuple[Scores, Scores]]) -> float:
    """The weight with which defects lie deepest in the tail of good parts.

    The depth of one is the logarithm of the share of good parts that score no less: it speaks of
    the promise that a user gets, and not of pairs far below it. Of equal weights it is 0, and else
    the nearest to that of a single defect.

    Args:
        scores: Of good parts and of defects, by weight.
    """

    def depth(weight: float) -> float:
        good, defective = scores[weight]
        return float(-np.log1p((good[:, None] >= defective).sum(axis=0)).mean())

    order = sorted(scores, key=lambda weight: (weight > 0, abs(weight - OF_ONE), weight))
    return max(order, key=depth)


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
        self.fold = {
            index: place % FOLDS
            for indices in (images.good, images.defective)
            for place, of_one in enumerate(_shuffled(images.by_image(indices)))
            for index in of_one
        }
        self.view_box = settings.view.box
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
        """The whole view of picture `index` to a bank without its part."""
        near = self._near(index, self._settings.view.box)
        looks = attention(near.good)[0].numpy()
        box = attention_box(looks, self._settings.view.box, self._crop(gate=0.0))
        return LeftOut(index, near, float(looks.max()), box)

    def known(self) -> list[int]:
        """Pictures of known defects; of one that nobody has drawn, that which looks least good."""
        top_k = self._settings.top_k
        found: list[int] = []
        for of_one in self.images.by_image(self.images.defective):
            is_drawn = self.images.item(of_one[0]).mask is not None
            found += (
                of_one
                if is_drawn or len(of_one) == 1
                else [max(of_one, key=lambda index: self.left_out(index).score(0.0, top_k))]
            )
        return found

    def all_left_out(self, indices: range) -> list[LeftOutPart]:
        """The parts that these pictures show."""
        return [
            LeftOutPart(tuple(map(self.left_out, of_one)))
            for of_one in self.images.by_image(indices)
        ]

    def looked_closer(self, part: LeftOutPart, gate: float) -> LeftOutPart:
        """The same with what each pass 2 would see, if there were one."""
        return LeftOutPart(
            tuple(
                one
                if one.peak < gate or one.box == self._settings.view.box
                else one._replace(closer=self._near(one.picture, one.box))
                for one in part.pictures
            )
        )

    def gate(self, good: Sequence[LeftOutPart]) -> float:
        """The attention from which on a part is looked at closer, as the chosen share of `good`."""
        share = self._settings.closer
        if not 0 < share < 1:
            return 0.0 if share else _NEVER
        return float(np.quantile([one.peak for one in good], 1 - share))

    def method(self, gate: float = 0.0, scores: Sequence[float] = (0.0, 1.0)) -> AtacMethod:
        """How the engine runs the network, by this gate and the `scores` of good parts."""
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

    def cross_fitted(
        self, good: Sequence[LeftOutPart], known: Sequence[LeftOutPart], weight: float
    ) -> CrossFitted:
        """The scores of all images by banks without them.

        What a part still has a share in: standardisation and directions of the bank, which others
        of its patches the search kept, the gate, and the weight of known defects.

        Args:
            good: Good images, left out.
            known: Known defects, left out.
            weight: What patches of known defects count.
        """

        def scored(part: LeftOutPart) -> CrossFittedPart:
            one = part.worst(weight, self._settings.top_k)
            item, frame = self.images.item(one.picture), Box.around(self.images.frame(one.picture))
            seen = one.box.scaled(of=self._settings.view.box, to=frame)
            return CrossFittedPart(
                path=item.path,
                sha256=item.sha256,
                kind=item.kind,
                score=one.score(weight, self._settings.top_k),
                box=self.images.box_in_frame(one.picture, seen),
            )

        return CrossFitted(
            way="leave_one_out",
            folds=len(good),
            good=tuple(map(scored, good)),
            defective=tuple(map(scored, known)),
        )

    def shows(self, index: int, box: Box, rows: int, columns: int) -> Tensor | None:
        """Which patches of a `box` of defect `index` show the defect; None where nobody drew it."""
        mask = self.images.mask(index)
        if mask is None:
            return None
        in_frame = box.scaled(
            of=self._settings.view.box, to=Box.whole(mask.shape[1], mask.shape[0])
        )
        inside = mask[in_frame.top : in_frame.bottom, in_frame.left : in_frame.right]
        share = cv2.resize(
            inside.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA
        ).ravel()
        return torch.from_numpy((share > 0) & (share >= min(_COVERED, share.max())))

    def compared(self, index: int, box: Box) -> Compared:
        """What the bank compares of a `box` of image `index`."""
        return self._network.bank.compared(self.closer(index, box).float()[None])

    def shown(self, index: int, boxes: Sequence[Box]) -> Tensor | None:
        """Which patches of `boxes` show defect `index`: `(boxes, h, w)`; None: nobody drew it."""
        rows, columns = self.whole(index).shape[-2:]
        found = [self.shows(index, box, rows, columns) for box in boxes]
        drawn = [each.reshape(rows, columns) for each in found if each is not None]
        return torch.stack(drawn).to(self._network.device) if drawn else None

    def _crop(self, *, gate: float) -> CropSpec:
        return CropSpec(gate=gate, min_side=self._settings.view.side // 2, square=True)

    def _features(self, index: int, box: Box) -> Tensor:
        pixels, spec = self.images.frame(index), self._settings.view
        seen = view(pixels, box.scaled(of=spec.box, to=Box.around(pixels)), spec)
        # Copied: a view may be read-only, which torch cannot express.
        views = torch.tensor(seen[None], device=self._network.device)
        return self._network.features(views)[0].half()

    def _near(self, index: int, box: Box) -> Near:
        found = self._network.bank.near(
            self.compared(index, box), without=self.images.first(index), fold=self.fold[index]
        )
        return Near(*(each.cpu() for each in found))


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
    _remember(bank, parts, good, lambda index: [parts.whole(index)], rng, seed=seed)
    if parts.looks_closer:
        boxes = {index: parts.left_out(index).box for index in good}

        def views(index: int) -> list[Tensor]:
            somewhere = parts.random_box(rng)
            closer = [parts.closer(index, box) for box in (boxes[index], somewhere)]
            return [parts.whole(index), *closer]

        _remember(bank, parts, good, views, rng, seed=seed)


def learn(bank: NearestPatch, parts: Parts, rng: np.random.Generator, *, seed: int) -> None:
    """Let `bank` remember what known defects show, whole and closer, where they have any.

    It is what lies under the mask; without masks, and of large ones, what is farthest from good
    patches.

    Args:
        bank: Filled from good parts.
        parts: Whose defective images it learns from; of very many, some.
        rng: Draws these.
        seed: Of the search.
    """
    known = sorted(rng.permutation(parts.known())[:_MOST_DEFECTIVE].tolist())
    kept: list[Tensor] = []
    origin: list[Tensor] = []
    for index in known:
        seen = parts.left_out(index)
        for box in (parts.view_box, seen.box) if parts.looks_closer else (parts.view_box,):
            compared = parts.compared(index, box)
            distances = bank.near(compared, without=parts.images.first(index)).good[0]
            shown, far = parts.shows(index, box, *distances.shape), distances.flatten()
            if shown is not None:
                far = torch.where(shown.to(far.device), far, -1)
            best = far.topk(int(_FARTHEST * len(far)) or 1)
            chosen = best.indices[best.values >= 0]
            kept.append(compared.direction[0].flatten(1).T[chosen])
            image = parts.images.first(index)
            origin.append(torch.full((len(chosen),), image, device=far.device))
    if sum(map(len, kept)):
        bank.learn(torch.cat(kept), torch.cat(origin), seed=seed)


def teach(bank: NearestPatch, parts: Parts, epoch: EpochInProgress, settings: Nearest) -> None:
    """Teach heads of the `bank` what known defects look like, where there are enough of them.

    They learn from whole and closer views, in folds. Their answers get the spread over good parts
    that distances have, so that both may have one weight.

    Args:
        bank: Filled from good parts.
        parts: Good and defective; of very many, some.
        epoch: In progress; draws these.
        settings: In how many steps they learn, and the share of a map that counts.
    """
    images, heads = parts.images, bank.heads
    count = len(images.by_image(images.defective))
    if count < LEAST_TAUGHT or heads is None or not settings.head_steps:
        return
    known, good = (
        sorted(epoch.rng.permutation(list(of))[:most].tolist())
        for of, most in ((parts.known(), _MOST_DEFECTIVE), (images.good, _MOST_TAUGHT))
    )
    seen = {index: parts.left_out(index) for index in (*good, *known)}
    boxes = {index: (parts.view_box, one.box) for index, one in seen.items()}
    # A tensor of inference has no gradient.
    with torch.inference_mode(mode=False), torch.enable_grad():
        taught = Taught(
            {index: [parts.closer(index, box) for box in boxes[index]] for index in boxes},
            bank.standardised,
            {index: parts.shown(index, boxes[index]) for index in known},
            parts.fold,
        )
        folds = [taught.heads(fold, epoch, steps=settings.head_steps) for fold in range(FOLDS)]
    heads.join(folds)
    far = [top_k_mean(seen[index].whole.good.numpy(), settings.top_k) for index in good]
    said = [
        top_k_mean(
            heads(
                parts.compared(index, parts.view_box).standardised, fold=parts.fold[index]
            ).numpy(),
            HEAD_SHARE,
        )
        for index in good
    ]
    bank.taught.fill_(float(np.std(far)) / max(float(np.std(said)), _LEAST_STD))


def _shuffled(parts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [parts[place] for place in np.random.default_rng(FOLDS).permutation(len(parts))]


def _remember(
    bank: NearestPatch,
    parts: Parts,
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
            origin.append(torch.full((len(kept[-1]),), parts.images.first(index)))
    found = torch.cat(kept)
    order = torch.from_numpy(rng.permutation(len(found))).to(found.device)
    bank.fit(found[order[:FITTED]].float())
    compared = torch.cat(
        [
            bank.compared(some.float().T[None, :, :, None]).direction[0, :, :, 0].T
            for some in torch.split(found, _AT_ONCE)
        ]
    )
    bank.hold(compared, torch.cat(origin).to(compared.device), seed=seed)


def _nbytes(features: Tensor) -> int:
    return features.nbytes
