"""All images of a set as the network sees them, made once and shared by all workers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.tables.sets import Manifest, read_manifest, source_of, split_of
from engine.bundle import pixels_sha256
from engine.frame import Box, Pixels
from engine.image import read_image
from engine.view import ViewSpec, view
from train.datasets import Listed, Split, read_mask

KNOWN = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """The views and masks of one set; `places` finds an image's row by its path."""

    name: str
    views: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    places: dict[str, int]

    def of(self, items: Sequence[Listed]) -> Pixels:
        return self.views[[self.places[item.path] for item in items]]

    def masks_of(self, items: Sequence[Listed]) -> npt.NDArray[np.bool_]:
        return self.masks[[self.places[item.path] for item in items]]


def write_views(name: str, *, data: Path, spec: ViewSpec, folder: Path, images: int | None) -> None:
    """Make the views of set `name` below `folder`; of each kind so many `images`, or all."""
    manifest = read_manifest(name)
    source = source_of(manifest, data / name)
    cv2.setNumThreads(1)
    others: list[str] = []

    def made(item: Listed) -> tuple[Pixels, npt.NDArray[Any]]:
        pixels = read_image(source.path(item.path), bits=source.bits)
        if pixels_sha256(pixels) != item.sha256:
            others.append(item.path)  # another decoder of JPEG
        mask = read_mask(source, item, pixels)
        drawn = np.zeros((1, 1)) if mask is None else mask
        side = (spec.side, spec.side)
        on_view = cv2.resize(drawn.astype(np.float32), side, interpolation=cv2.INTER_NEAREST) > 0
        return view(pixels, Box.around(pixels), spec), on_view

    chosen = thinned(manifest, images)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(made, chosen))
    if others:
        print(f"{name}: {len(others)} of {len(found)} images decode otherwise than in the splits")
    np.save(folder / f"{name}-views.npy", np.stack([each for each, _ in found]))
    np.save(folder / f"{name}-masks.npy", np.stack([each for _, each in found]))


def read_views(name: str, folder: Path, *, images: int | None) -> Views:
    manifest = read_manifest(name)
    chosen = thinned(manifest, images)
    return Views(
        name=name,
        views=np.load(folder / f"{name}-views.npy", mmap_mode="r"),
        masks=np.load(folder / f"{name}-masks.npy", mmap_mode="r"),
        places={item.path: number for number, item in enumerate(chosen)},
    )


def thinned(manifest: Manifest, images: int | None) -> Sequence[Listed]:
    """Of each kind so many images, spread over all, and what draw 0 knows; `None`: all."""
    if images is None:
        return manifest.images
    known = manifest.draws[0].known[str(KNOWN)]
    found = [item for item in manifest.images if item.path in known]
    for defective in (False, True):
        of_kind = [
            item
            for item in manifest.images
            if item.defective == defective and item.path not in known
        ]
        found += of_kind[:: max(1, len(of_kind) // images)]
    return found


def splits_of(views: Views, draw: int) -> Split:
    """The draw's split with ten known defects, of the images that there are."""
    split = split_of(read_manifest(views.name), draw, defects=KNOWN)

    def there(items: Sequence[Listed]) -> tuple[Listed, ...]:
        return tuple(item for item in items if item.path in views.places)

    return replace(
        split,
        train_good=there(split.train_good),
        held_out_good=there(split.held_out_good),
        train_defective=there(split.train_defective),
        test=there(split.test),
    )
