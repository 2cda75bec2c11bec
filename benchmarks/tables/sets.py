"""The image sets, and who trains and who tests in each draw: written down once, then committed.

A manifest lists every image of a set once, by path and hash, and for each draw who is tested, held
out or known. All rows read it, so all rows see the same images. Any folder that `agent train` takes
can be a set: its draws come from its images and the draw's number alone.
"""

import csv
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from engine.bundle import replace_file
from engine.errors import TrainingError
from engine.spec import spec
from train.datasets import Dropped, Listed, Source, Split, draw_split, find_source

DRAWS = 5
DEFECTS = (10, 1)
HOLD_OUT = 0.15
FOLDS = 2
"""Halves of the known defects: with fewer to validate on, a figure would say next to nothing."""
GOOD_PARTS = 3
"""Of the good images a third validates: what is learnt of good parts needs the others."""
MANIFESTS = Path(__file__).parent / "splits"


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A folder below `--data`: MVTec's layout, two folders, or a table of labels."""

    name: str
    good: str | None = None
    defective: str | None = None
    labels: str | None = None


SETS = {
    one.name: one
    for one in (
        ImageSet(name="mvtec_bottle"),
        ImageSet(name="mvtec_pill"),
        ImageSet(name="magnetic_tile"),
        ImageSet(name="brain_mri", good="no", defective="yes"),
        ImageSet(name="head_ct", labels="labels.csv"),
    )
}


@spec
class Draw:
    """One draw, by path: who is not trained with, and the known defects.

    `known` has an entry for each number of defects, and one for each type of defect (`_key`):
    images of that type in the order in which they become known.
    """

    test_good: tuple[str, ...]
    held_out: tuple[str, ...]
    known: dict[str, tuple[str, ...]]


@spec
class Manifest:
    layout: Literal["mvtec", "plain"]
    images: tuple[Listed, ...]
    dropped: tuple[Dropped, ...]
    draws: tuple[Draw, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({image.kind for image in self.images if image.defective}))


MANIFEST_JSON = TypeAdapter(Manifest)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of sets as the tables list them: those of `SETS` first, then the others."""
    found = {*names}
    return [name for name in SETS if name in found] + sorted(found - SETS.keys())


def manifest_path(name: str) -> Path:
    return MANIFESTS / f"{name}.json"


def write_manifest(name: str, data: Path) -> Manifest:
    """Draw the splits of the set `data / name` and write them down."""
    manifest = drawn_manifest(SETS.get(name, ImageSet(name=name)), data / name)
    path = manifest_path(name)
    path.parent.mkdir(exist_ok=True)
    replace_file(path, MANIFEST_JSON.dump_json(manifest, indent=0) + b"\n")
    return manifest


@cache
def read_manifest(name: str) -> Manifest:
    return MANIFEST_JSON.validate_json(manifest_path(name).read_bytes())


def source_of(manifest: Manifest, root: Path) -> Source:
    """Manifests call images by their path below `root`, whatever the layout."""
    return Source(layout=manifest.layout, root=root)


def split_of(manifest: Manifest, draw: int, *, defects: int, kind: str | None = None) -> Split:
    """The split of one draw with so many known `defects`.

    With `kind` all of them are of that type (as many as there are), and none of that type is
    tested: what is tested is unseen.
    """
    drawn = manifest.draws[draw]
    known = drawn.known[str(defects) if kind is None else _key(kind)][:defects]
    places = {
        **dict.fromkeys(drawn.test_good, "test"),
        **dict.fromkeys(drawn.held_out, "held out"),
        **dict.fromkeys(known, "train"),
    }
    usual = {False: "train", True: "test"}
    images: dict[str, list[Listed]] = {"train": [], "held out": [], "test": []}
    for image in manifest.images:
        place = places.get(image.path, usual[image.defective])
        if place != "test" or image.kind != kind:
            images[place].append(image)
    return Split(
        layout=manifest.layout,
        seed=draw,
        train_good=tuple(image for image in images["train"] if not image.defective),
        held_out_good=tuple(images["held out"]),
        train_defective=tuple(image for image in images["train"] if image.defective),
        test=tuple(images["test"]),
        dropped=manifest.dropped,
    )


def with_all_good(split: Split) -> Split:
    """`split` with the held-out images among those trained with, as the paper has it."""
    return replace(split, train_good=split.train_good + split.held_out_good, held_out_good=())


def fold_of(split: Split, fold: int) -> Split:
    """One of `FOLDS` ways to part what `split` knows into training and validation.

    Half of the known defects and a third of the good images, those held out among them, take the
    place of the test; the others train. The test of `split` is left out.
    """
    good, tested_good = _parted(
        split.train_good + split.held_out_good, fold, parts=GOOD_PARTS, seed=split.seed
    )
    known, tested_known = _parted(split.train_defective, fold, parts=FOLDS, seed=split.seed)
    return replace(
        split,
        train_good=good,
        held_out_good=(),
        train_defective=known,
        test=tested_good + tested_known,
    )


def _parted(
    images: tuple[Listed, ...], part: int, *, parts: int, seed: int
) -> tuple[tuple[Listed, ...], tuple[Listed, ...]]:
    """`images` without one of so many `parts`, and that part."""
    order = np.random.default_rng([seed, 4]).permutation(len(images))
    chosen = set(order[part::parts].tolist())
    return (
        tuple(image for i, image in enumerate(images) if i not in chosen),
        tuple(image for i, image in enumerate(images) if i in chosen),
    )


def drawn_manifest(one: ImageSet, root: Path) -> Manifest:
    """Draw all splits of the set at `root` with `train.datasets.draw_split`."""
    draws = []
    with _found(one, root) as source:
        for seed in range(DRAWS):
            splits = {
                defects: _renamed(
                    draw_split(source, defects=defects, hold_out=HOLD_OUT, seed=seed), source, root
                )
                for defects in DEFECTS
            }
            most = splits[max(DEFECTS)]
            if not any(image.defective for image in most.test):
                raise TrainingError(
                    f"{root} has no defective image beyond the {max(DEFECTS)} known ones to test"
                )
            if all(image.defective for image in most.test):
                raise TrainingError(f"{root} has no good image to test, in test/good")
            images = sorted(
                (*most.training, *most.held_out_good, *most.test), key=lambda image: image.path
            )
            known = {str(n): _paths(split.train_defective) for n, split in splits.items()}
            draws.append(
                Draw(
                    test_good=_paths(image for image in most.test if not image.defective),
                    held_out=_paths(most.held_out_good),
                    known=known | _known_by_kind(images, seed),
                )
            )
    return Manifest(
        layout=most.layout, images=tuple(images), dropped=most.dropped, draws=tuple(draws)
    )


def _known_by_kind(images: list[Listed], seed: int) -> dict[str, tuple[str, ...]]:
    kinds = sorted({image.kind for image in images if image.defective})
    known = {}
    for number, kind in enumerate(kinds if len(kinds) > 1 else ()):
        of_kind = _paths(image for image in images if image.kind == kind)
        order = np.random.default_rng([seed, 3, number]).permutation(len(of_kind))
        known[_key(kind)] = tuple(of_kind[i] for i in order[: max(DEFECTS)])
    return known


def _key(kind: str) -> str:
    """What a draw calls the known defects of a type; a type may be named as a number is."""
    return f"type {kind}" if kind.isdecimal() else kind


def _paths(images: "Iterator[Listed] | tuple[Listed, ...]") -> tuple[str, ...]:
    return tuple(image.path for image in images)


@contextmanager
def _found(one: ImageSet, root: Path) -> Iterator[Source]:
    if one.labels is None:
        folders = (root / one.good, root / one.defective) if one.good and one.defective else None
        yield find_source(None, *folders) if folders else find_source(root, None, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        for label in ("good", "defective"):
            (Path(folder) / label).mkdir()
        table = (root / one.labels).read_text(encoding="utf-8").splitlines()[1:]
        files = {int(path.stem): path for path in (root / one.name).iterdir()}
        for number, defective in csv.reader(table):
            label = "defective" if int(defective) else "good"
            file = files[int(number)]
            (Path(folder) / label / file.name).symlink_to(file.resolve())
        yield find_source(Path(folder), None, None)


def _renamed(split: Split, source: Source, root: Path) -> Split:
    """`split` with every path as it stands below `root`."""

    def real(name: str) -> str:
        return source.path(name).resolve().relative_to(root.resolve()).as_posix()

    def all_of(images: tuple[Listed, ...]) -> tuple[Listed, ...]:
        return tuple(
            replace(image, path=real(image.path), mask=image.mask and real(image.mask))
            for image in images
        )

    return replace(
        split,
        train_good=all_of(split.train_good),
        held_out_good=all_of(split.held_out_good),
        train_defective=all_of(split.train_defective),
        test=all_of(split.test),
        dropped=tuple(
            Dropped(path=real(one.path), same_as=real(one.same_as)) for one in split.dropped
        ),
    )
