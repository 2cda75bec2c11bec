"""Pictures → scores, with what must not count set aside and what a report shows kept."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from engine.bundle import pixels_sha256
from engine.errors import ImageError
from engine.frame import Box, Inspection, Pixels
from engine.image import read_image
from engine.inspector import Inspector
from engine.likeness import fingerprint, look_alikes
from engine.picture import MAX_SIDE, reduced

KEPT: Final = 12
"""How many exhibits a set of scores keeps for the report."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One picture of one part; `name` is what the user finds it by."""

    name: str
    pixels: Pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exhibit:
    """A picture worth showing, reduced to `MAX_SIDE`; the inspection's box is in its pixels."""

    name: str
    pixels: Pixels
    inspection: Inspection


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """The scores of parts with one label, each part once.

    `values` are in the order of the pictures. `hashes` are `pixels_sha256` of what was counted.
    Set aside, and named: `training` pictures (the network has learnt them, so their scores say
    nothing about new parts), `duplicates` (the same pixels again), `unreadable` files (with the
    reason). `look_alikes` were counted; see `engine.likeness`. `exhibits` are the `KEPT`
    most doubtful parts, worst first.
    """

    values: tuple[float, ...]
    hashes: frozenset[str]
    training: tuple[str, ...]
    duplicates: tuple[str, ...]
    unreadable: tuple[str, ...]
    look_alikes: int
    exhibits: tuple[Exhibit, ...]


def score_pictures(
    inspector: Inspector,
    pictures: Iterable[Picture | ImageError],
    *,
    label: Literal["good", "defective"],
    training: frozenset[str],
    progress: Callable[[], None],
) -> Scores:
    """Inspect `pictures`, one after another.

    Args:
        inspector: What inspects them.
        pictures: Pictures of parts of one label; an `ImageError` is one that cannot be read.
        label: Doubtful are good parts with high scores and defective parts with low scores.
        training: The bundle's `training_sha256`: these pictures are not counted.
        progress: Called once for every picture.
    """
    values: list[float] = []
    fingerprints = []
    hashes: set[str] = set()
    learnt: list[str] = []
    duplicates: list[str] = []
    unreadable: list[str] = []
    doubtful: list[tuple[float, int, Exhibit]] = []
    sign = 1 if label == "good" else -1
    for picture in pictures:
        progress()
        if isinstance(picture, ImageError):
            unreadable.append(str(picture))
            continue
        digest = pixels_sha256(picture.pixels)
        if digest in training:
            learnt.append(picture.name)
        elif digest in hashes:
            duplicates.append(picture.name)
        else:
            hashes.add(digest)
            inspection = inspector.inspect(picture.pixels)
            values.append(inspection.score)
            fingerprints.append(fingerprint(picture.pixels))
            doubt = sign * inspection.score
            if len(doubtful) < KEPT or doubt > doubtful[0][0]:
                # The count breaks ties: exhibits have no order of their own.
                heapq.heappush(doubtful, (doubt, -len(values), _exhibit(picture, inspection)))
            if len(doubtful) > KEPT:
                heapq.heappop(doubtful)
    return Scores(
        values=tuple(values),
        hashes=frozenset(hashes),
        training=tuple(learnt),
        duplicates=tuple(duplicates),
        unreadable=tuple(unreadable),
        look_alikes=look_alikes(fingerprints),
        exhibits=tuple(exhibit for _, _, exhibit in sorted(doubtful, reverse=True)),
    )


def pictures_of(
    files: Sequence[Path], *, bits: int | None = None
) -> Iterator[Picture | ImageError]:
    """The pictures in `files`, in order, read one at a time; `bits` as in `read_image`."""
    for file in files:
        try:
            yield Picture(name=str(file), pixels=read_image(file, bits=bits))
        except ImageError as error:
            yield error


def _exhibit(picture: Picture, inspection: Inspection) -> Exhibit:
    small = reduced(picture.pixels, MAX_SIDE)
    shown = inspection.scaled(of=Box.around(picture.pixels), to=Box.around(small))
    return Exhibit(name=picture.name, pixels=small, inspection=shown)
