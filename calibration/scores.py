"""Pictures → scores, with what must not count set aside and what a report shows kept."""

import base64
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from engine.bundle import pixels_sha256
from engine.cross_fitted import CROSS_FITTED, CrossFitted
from engine.errors import ImageError
from engine.frame import Box, Inspection, Pixels
from engine.image import decode_image, read_image
from engine.inspector import Inspector
from engine.likeness import fingerprint, look_alikes
from engine.picture import MAX_SIDE, reduced

KEPT: Final = 12
"""How many exhibits a set of scores keeps for the report."""

Label = Literal["good", "defective"]
_SIGN: Final[dict[Label, int]] = {"good": 1, "defective": -1}
"""Doubtful are good parts with high scores and defective parts with low scores."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One picture of one part; `name` is what the user finds it by."""

    name: str
    pixels: Pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exhibit:
    """A picture worth showing, reduced to `MAX_SIDE`.

    The inspection's box is in its pixels; None where the score is of a model that is no more.
    """

    name: str
    score: float
    pixels: Pixels
    inspection: Inspection | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """The scores of parts with one label, each part once.

    `values` are in the order of the pictures, as are their `names`. `hashes` are `pixels_sha256` of
    what was counted. Set aside, and named: `training` pictures (the network has learnt them, so
    their scores say nothing about new parts), `duplicates` (the same pixels again), `unreadable`
    files (with the reason). `look_alikes` were counted; see `engine.likeness`. `exhibits` are the
    `KEPT` most doubtful parts, worst first. `cross_fitted` of the values are of models that left
    the part out.
    """

    values: tuple[float, ...]
    names: tuple[str, ...]
    hashes: frozenset[str]
    training: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    look_alikes: int = 0
    exhibits: tuple[Exhibit, ...] = ()
    cross_fitted: int = 0


def score_pictures(
    inspector: Inspector,
    pictures: Iterable[Picture | ImageError],
    *,
    label: Label,
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
    names: list[str] = []
    fingerprints = []
    hashes: set[str] = set()
    learnt: list[str] = []
    duplicates: list[str] = []
    unreadable: list[str] = []
    doubtful: list[tuple[float, int, Exhibit]] = []
    sign = _SIGN[label]
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
            names.append(picture.name)
            fingerprints.append(fingerprint(picture.pixels))
            doubt = sign * inspection.score
            if len(doubtful) < KEPT or doubt > doubtful[0][0]:
                # The count breaks ties: exhibits have no order of their own.
                heapq.heappush(doubtful, (doubt, -len(values), _exhibit(picture, inspection)))
            if len(doubtful) > KEPT:
                heapq.heappop(doubtful)
    return Scores(
        values=tuple(values),
        names=tuple(names),
        hashes=frozenset(hashes),
        training=tuple(learnt),
        duplicates=tuple(duplicates),
        unreadable=tuple(unreadable),
        look_alikes=look_alikes(fingerprints),
        exhibits=tuple(exhibit for _, _, exhibit in sorted(doubtful, reverse=True)),
    )


def with_cross_fitted(
    scores: Scores | None, cross_fitted: CrossFitted, pictures: Mapping[str, str], *, label: Label
) -> Scores:
    """`scores`, and the cross-fitted ones of the parts that are not among them.

    Args:
        scores: Of parts that training has not seen, if there are any.
        cross_fitted: Of parts that trained, and of those held out.
        pictures: Of some of these parts, as `engine.cross_fitted.pictures_in` gives them.
        label: Which of them; as in `score_pictures`.
    """
    if scores is None:
        scores = Scores(values=(), names=(), hashes=frozenset())
    parts = [part for part in getattr(cross_fitted, label) if part.sha256 not in scores.hashes]
    exhibits = [
        Exhibit(
            name=part.path,
            score=part.score,
            pixels=_decoded(pictures[part.path]),
            inspection=None,
        )
        for part in parts
        if part.path in pictures
    ]
    exhibits = sorted(
        (*scores.exhibits, *exhibits), key=lambda one: _SIGN[label] * one.score, reverse=True
    )
    return replace(
        scores,
        values=(*scores.values, *(part.score for part in parts)),
        names=(*scores.names, *(part.path for part in parts)),
        hashes=scores.hashes | {part.sha256 for part in parts},
        look_alikes=scores.look_alikes + (cross_fitted.look_alikes if label == "good" else 0),
        exhibits=tuple(exhibits[:KEPT]),
        cross_fitted=len(parts),
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
    return Exhibit(name=picture.name, score=shown.score, pixels=small, inspection=shown)


def _decoded(picture: str) -> Pixels:
    return decode_image(base64.b64decode(picture), source=CROSS_FITTED)
