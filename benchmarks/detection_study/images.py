"""Which images a step may read, by the committed splits of `benchmarks/tables/splits`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.tables.sets import DEFECTS, read_manifest, source_of, split_of, with_all_good
from train.datasets import Listed, Source

Rows = npt.NDArray[np.int64]
"""Places in `Images.items`."""

_MOST = max(DEFECTS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """One draw of a set.

    `pool` is every good image outside the test. `known` are its ten known defects in the order in
    which they become known, and `one` is the known defect where there is one only. `validation` are
    the known defects of all draws where all draws test the same good images, else `known`: as the
    splits are, what is known in one draw is tested in another. `defects` are all there are.
    """

    name: str
    source: Source
    items: tuple[Listed, ...]
    pool: Rows
    known: Rows
    one: Rows
    validation: Rows
    tested_good: Rows
    defects: Rows


def read_images(name: str, draw: int, data: Path, *, limit: int | None = None) -> Images:
    """The images of one draw of the set `data / name`.

    Args:
        name: A set with committed splits.
        draw: Its number there.
        data: The folder of the sets.
        limit: Of each kind only so many images, for a quick look at whether a command works.
    """
    manifest = read_manifest(name)
    split = with_all_good(split_of(manifest, draw, defects=_MOST))
    drawn = manifest.draws[draw]
    fixed = all(one.test_good == drawn.test_good for one in manifest.draws)
    paths: dict[str, list[str]] = {
        "pool": [image.path for image in split.train_good],
        "known": list(drawn.known[str(_MOST)]),
        "one": list(drawn.known["1"]),
        "validation": sorted(
            {
                path
                for one in (manifest.draws if fixed else (drawn,))
                for path in one.known[str(_MOST)]
            }
        ),
        "tested_good": [image.path for image in split.test if not image.defective],
        "defects": [image.path for image in manifest.images if image.defective],
    }
    if limit is not None:
        paths = {role: some[:limit] for role, some in paths.items()}
    used = {path for some in paths.values() for path in some}
    items = tuple(image for image in manifest.images if image.path in used)
    place = {image.path: row for row, image in enumerate(items)}

    def rows(some: Iterable[str]) -> Rows:
        return np.array([place[path] for path in some], dtype=np.int64)

    return Images(
        name=name,
        source=source_of(manifest, data / name),
        items=items,
        **{role: rows(some) for role, some in paths.items()},
    )
