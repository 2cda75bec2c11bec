"""Both passes over a batch with gradient, and the features of a frozen backbone, kept."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.attention import CropSpec, attention_box
from engine.frame import Box, Pixels
from engine.view import ViewSpec, view, zoomed
from train.anomalies import patches
from train.batches import Sample, original
from train.cache import ByteLimitedCache
from train.datasets import TrainingImages
from train.losses import top_k_mean
from train.memory_bank import closer_view
from train.network import AtacNet, AttentionHead, Maps

_KEPT_BYTES: Final = 2 << 30  # of features
_MOST_GOOD: Final = 1000  # good images at most that a memory bank is made of
_SHOWN_FIRST: Final = 32  # good images that a backbone is shown before training


class SeenPass(NamedTuple):
    """What one pass says of a batch of N, and the box of each frame that it saw.

    `maps` are `(heads · N, h, w)`, head after head: each head learns as if it were alone.
    """

    maps: Maps
    boxes: list[Box]

    def masks(self, batch: Sequence[Sample]) -> Tensor:
        """The masks of the frames as the maps of this pass show them, 0 and 1."""
        attention = self.maps.attention
        masks = torch.zeros(len(batch), *attention.shape[1:])
        for row, sample, box in zip(masks, batch, self.boxes, strict=True):
            if sample.mask is not None:
                row.copy_(torch.from_numpy(patches(sample.mask, box, *row.shape)))
        return masks.repeat(len(attention) // len(batch), 1, 1).to(attention.device)


class TwoPassForward:
    """Both passes over a batch; views are made by the engine, on the CPU.

    Boxes come from detached maps: no gradient flows through them. It flows through what both passes
    see.

    Args:
        network: The network in training.
        view: How views are made.
        crop: How boxes are cut.
        pool: Makes views of a batch side by side.
    """

    def __init__(self, network: AtacNet, view: ViewSpec, crop: CropSpec, pool: Executor) -> None:
        self.network = network
        self._view = view
        self._crop = crop
        self._pool = pool
        self._bf16 = has_bf16(network.device)
        self._views: ByteLimitedCache[int, Pixels] = ByteLimitedCache(limit=_KEPT_BYTES // 4)
        self._features: ByteLimitedCache[int, Tensor] = ByteLimitedCache(limit=_KEPT_BYTES)

    def forward(self, batch: Sequence[Sample], *, zoom: bool = True) -> tuple[SeenPass, SeenPass]:
        """Both passes over `batch` (Eq 3-7); without `zoom` the second repeats the first."""
        wholes, features = self._first(batch)
        maps = self._maps(features)
        first = SeenPass(maps, [Box.around(sample.pixels) for sample in batch])
        if not zoom:
            return first, first

        # All heads zoom to where they point together.
        each = maps.attention.detach().cpu().numpy()  # (heads · N, h, w)
        attention = each.reshape(-1, len(batch), *each.shape[1:]).mean(axis=0)
        whole_box = self._view.box
        boxes = [attention_box(a, whole_box, self._crop) for a in attention]  # Eq 4 and 5
        closer = list(
            self._pool.map(
                lambda sample, whole, box: (
                    (whole, Box.around(sample.pixels))
                    if box == whole_box
                    else zoomed(sample.pixels, whole, box, self._view)
                ),
                batch,
                wholes,
                boxes,
            )
        )  # Eq 6
        zooms = [i for i, box in enumerate(boxes) if box != whole_box]
        features = self._second_features(features, [seen for seen, _ in closer], zooms)
        return first, SeenPass(self._maps(features), [box for _, box in closer])

    def windows(
        self, batch: Sequence[Sample], side: int, rng: np.random.Generator, *, closer: bool
    ) -> tuple[SeenPass, SeenPass]:
        """A square of a view of each frame, instead of both passes: quicker.

        Where the mask is known, a part of the defect is in it.

        Args:
            batch: What is shown, half of it good.
            side: Of a square, in pixels of a view.
            rng: Draws the squares.
            closer: Whether a quarter of either half is shown in closer views, as in pass 2. They
                are in each batch, so that BatchNorm has the statistics of both passes together.
        """
        half = len(batch) // 2
        frames = [
            self._closer(sample, rng)
            if closer and index % half % 4 == 3
            else Box.around(sample.pixels)
            for index, sample in enumerate(batch)
        ]
        squares = [
            self._square(sample, frame, side, rng)
            for sample, frame in zip(batch, frames, strict=True)
        ]
        views = self._pool.map(self._shown, batch, frames)
        maps = self._maps(
            self._computed(
                [
                    seen[square.top : square.bottom, square.left : square.right]
                    for seen, square in zip(views, squares, strict=True)
                ]
            )
        )
        boxes = [
            self._in_frame(square, frame) for square, frame in zip(squares, frames, strict=True)
        ]
        seen = SeenPass(maps, boxes)
        return seen, seen

    def _closer(self, sample: Sample, rng: np.random.Generator) -> Box:
        """A box of the frame as pass 2 may see it, or a little closer."""
        least = self._crop.min_side * 3 // 4
        side = min(int(rng.integers(least, 2 * least + 1)), self._view.side)
        frame = Box.around(sample.pixels)
        return self._in_frame(self._square(sample, frame, side, rng), frame)

    def _square(self, sample: Sample, frame: Box, side: int, rng: np.random.Generator) -> Box:
        """A square of the view of `frame`, in pixels of the view; some of the defect is in it."""
        most = self._view.side - side
        first, last = np.zeros(2, int), np.full(2, most)  # of its corner: down, across
        if sample.mask is not None:
            mask = sample.mask[frame.top : frame.bottom, frame.left : frame.right]
            places = np.argwhere(mask)
            if len(places):
                place = places[rng.integers(len(places))] * self._view.side // mask.shape
                first, last = np.clip((place - side + 1, place), 0, most)
        top, left = (int(edge) for edge in rng.integers(first, last + 1))
        return Box(left=left, top=top, right=left + side, bottom=top + side)

    def _in_frame(self, square: Box, frame: Box) -> Box:
        """What `square` of the view of `frame` shows, in pixels of the frame that both are of."""
        inside = square.scaled(of=self._view.box, to=frame)
        return Box(
            left=frame.left + inside.left,
            top=frame.top + inside.top,
            right=frame.left + inside.right,
            bottom=frame.top + inside.bottom,
        )

    def _shown(self, sample: Sample, frame: Box) -> Pixels:
        if frame == Box.around(sample.pixels):
            return self._whole(sample)
        return view(sample.pixels, frame, self._view)

    def features(self, batch: Sequence[Sample]) -> Tensor:
        """The features of the whole views of `batch`: `(N, C, h, w)`."""
        return self._first(batch)[1]

    def good_views(self, images: TrainingImages, rng: np.random.Generator) -> Iterator[Tensor]:
        """Features `(C, h, w)` of good images, each whole and closer, one after the other.

        Where there are more than a memory bank needs, `rng` draws some.
        """
        chosen: Sequence[int] = images.good
        if len(chosen) > _MOST_GOOD:
            chosen = sorted(rng.permutation(len(images.good))[:_MOST_GOOD].tolist())
        for index in chosen:
            good = original(images, index)
            whole = self._whole(good)
            closer = closer_view(good.pixels, whole, self._view, self._crop, rng)
            yield self._cached_features(index, whole)
            yield self._computed([closer])[0].half()

    def _whole(self, sample: Sample) -> Pixels:
        def make() -> Pixels:
            return view(sample.pixels, Box.around(sample.pixels), self._view)

        if sample.cache_key is None:
            return make()
        return self._views.get(sample.cache_key, make, lambda v: v.nbytes)

    def _first(self, batch: Sequence[Sample]) -> tuple[list[Pixels], Tensor]:
        wholes = list(self._pool.map(self._whole, batch))
        if not self.network.frozen:
            return wholes, self._computed(wholes)
        rows = [
            self._computed([whole])[0]
            if sample.cache_key is None
            else self._cached_features(sample.cache_key, whole).float()
            for sample, whole in zip(batch, wholes, strict=True)
        ]
        return wholes, torch.stack(rows)

    def _cached_features(self, key: int, whole: Pixels) -> Tensor:
        """The features of `whole`; in half precision, as they are kept."""

        def compute() -> Tensor:
            return self._computed([whole])[0].half()

        return self._features.get(key, compute, lambda features: features.nbytes)

    def _second_features(
        self, first: Tensor, views: Sequence[Pixels], zooms: Sequence[int]
    ) -> Tensor:
        if not self.network.frozen:
            return self._computed(views)
        if not zooms:
            return first
        closer = self._computed([views[i] for i in zooms])
        return first.index_copy(0, torch.tensor(zooms, device=first.device), closer)

    def _computed(self, views: Sequence[Pixels]) -> Tensor:
        stack = torch.from_numpy(np.stack(views)).to(self.network.device)
        with torch.set_grad_enabled(not self.network.frozen), self._autocast():
            return self.network.features(stack)

    def _maps(self, features: Tensor) -> Maps:
        with self._autocast():
            head = self.network.head
            maps = head.each(features) if isinstance(head, AttentionHead) else head(features)
        return Maps(*(one.float() for one in maps))

    def _autocast(self) -> torch.autocast:
        """Backbone and head multiply in bf16 where the hardware has it; losses stay in fp32."""
        return torch.autocast(self.network.device.type, torch.bfloat16, enabled=self._bf16)


def pass_scores(passes: tuple[SeenPass, SeenPass], top_k: float) -> Tensor:
    """s_1 and s_2 of every sample: float32 `(2, heads · N)` (Eq 8, 9); their mean is γ(x)."""
    return torch.stack([top_k_mean(seen.maps.score_map, top_k) for seen in passes])


def first_good_views(images: TrainingImages, spec: ViewSpec) -> Tensor:
    """Whole views of some good training images: uint8 `(N, side, side, 3)`."""
    frames = (images.frame(index) for index in images.good[:_SHOWN_FIRST])
    return torch.from_numpy(np.stack([view(frame, Box.around(frame), spec) for frame in frames]))


def has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies in bf16 itself: an emulation would only be slower."""
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
