"""Batches of training images: good parts, known defects and synthetic defects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from engine.frame import Pixels
from train.anomalies import Kind, Mask, alike, moved, synthesised, transplanted
from train.cache import ByteLimitedCache
from train.datasets import TrainingImages

_SAME_DONOR: Final = 0.5  # chance that a synthetic defect is made of the image itself
_KEPT_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One training image as it is shown in one step.

    `mask` is where it is defective (all False for a good one), None where that is not known.
    `cache_key` is equal for equal pixels, so that features of a frozen backbone can be used again;
    None for images that are generated each time. `synthetic` tells a synthetic defect from a real.
    """

    pixels: Pixels
    mask: Mask | None
    defective: bool
    cache_key: int | None
    synthetic: bool = False


class Defects:
    """The defective half of batches: known defects, moved or not, and synthetic ones.

    What is shown more than once is made from a seed of its own and kept, so that it is the same in
    every epoch and after an interruption. `located` are the known defects whose masks are known and
    teach.

    Args:
        images: The training images.
        seed: Of everything that is kept.
        kinds: The kinds of synthetic defects.
        synthetic_each: How many are made on each good image and shown again; 0: always new ones.
        versions: How many versions of a known defect are shown, a little shifted, turned and
            brightened; 0: it is shown as it is.
        masks: Whether the masks of known defects teach, where the data has them.
        transplanted: Share of synthetic defects that are known ones, set onto good parts.
    """

    def __init__(
        self,
        images: TrainingImages,
        *,
        seed: int,
        kinds: tuple[Kind, ...] = ("cutmix",),
        synthetic_each: int = 0,
        versions: int = 0,
        masks: bool = False,
        transplanted: float = 0.0,
    ) -> None:
        self._images = images
        self._seed = seed
        self._kinds = kinds
        self._synthetic_each = synthetic_each
        self._versions = versions
        self._transplanted = transplanted
        self._kept: ByteLimitedCache[int, Sample] = ByteLimitedCache(limit=_KEPT_BYTES)
        self.located = (
            [index for index in images.defective if np.any(images.mask(index))] if masks else []
        )

    def known(self, index: int, rng: np.random.Generator) -> Sample:
        """Training image `index`, a known defect, in one of its versions."""
        if not self._versions:
            return self._labelled(index)
        version = int(rng.integers(self._versions))
        key = self._key(2 * (index * self._versions + version))

        def make() -> Sample:
            shown = self._labelled(index)
            pixels, mask = moved(shown.pixels, shown.mask, np.random.default_rng([self._seed, key]))
            return replace(shown, pixels=pixels, mask=mask, cache_key=key)

        return self._kept.get(key, make, lambda sample: sample.pixels.nbytes)

    def synthetic(self, rng: np.random.Generator) -> Sample:
        """A synthetic defect: one of those kept, or a new one."""
        if not self._synthetic_each:
            return self._synthesised(rng)
        number = int(rng.integers(self._synthetic_each * len(self._images.good)))
        key = self._key(2 * number + 1)

        def make() -> Sample:
            made = self._synthesised(np.random.default_rng([self._seed, key]))
            return replace(made, cache_key=key)

        return self._kept.get(key, make, lambda sample: sample.pixels.nbytes)

    def _key(self, number: int) -> int:
        return self._images.defective.stop + number

    def _labelled(self, index: int) -> Sample:
        shown = original(self._images, index)
        return shown if index in self.located else replace(shown, mask=None)

    def _synthesised(self, rng: np.random.Generator) -> Sample:
        good = self._images.good
        pixels = self._images.frame(good[int(rng.integers(len(good)))])
        if self.located and rng.random() < self._transplanted:
            index = self.located[int(rng.integers(len(self.located)))]
            mask = self._images.mask(index)
            assert mask is not None
            donor = alike(self._images.frame(index), pixels)
            changed, mask = transplanted(pixels, donor, mask, rng)
        else:
            donor = pixels
            if rng.random() >= _SAME_DONOR:
                donor = alike(self._images.frame(good[int(rng.integers(len(good)))]), pixels)
            changed, mask = synthesised(self._kinds, pixels, donor, rng)
        return Sample(pixels=changed, mask=mask, defective=True, cache_key=None, synthetic=True)


def balanced_batches(
    images: TrainingImages,
    defects: Defects,
    *,
    size: int,
    known_share: float,
    rng: np.random.Generator,
) -> Iterator[list[Sample]]:
    """Batches without end, half good and half defective.

    A good image comes again only after all the others had their turn, and so does a known defect.

    Args:
        images: The training images.
        defects: Gives the defective half.
        size: Of a batch; even.
        known_share: The chance that a defect is a known one.
        rng: Draws all of it.
    """
    good, known = in_turn(images.good, rng), in_turn(images.defective, rng)
    half = size // 2
    while True:
        batch = [original(images, next(good)) for _ in range(half)]
        for _ in range(half):
            real = len(images.defective) > 0 and rng.random() < known_share
            batch.append(defects.known(next(known), rng) if real else defects.synthetic(rng))
        yield batch


def steps_an_epoch(images: TrainingImages, *, size: int, least: int) -> int:
    """As many steps as show every good image once, and at least `least`."""
    return max(least, -(-len(images.good) // (size // 2)))


def in_turn(indices: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """`indices` without end, each again only after all the others."""
    while True:
        yield from (indices[i] for i in rng.permutation(len(indices)))


def original(images: TrainingImages, index: int) -> Sample:
    """Training image `index` as it is."""
    return Sample(
        pixels=images.frame(index),
        mask=images.mask(index),
        defective=index in images.defective,
        cache_key=index,
    )
