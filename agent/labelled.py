"""What people have labelled on the page, as a data set: what there is, what is missing, folders.

    labelled/labels.jsonl      one line for each word on a part; the latest of a part counts
    labelled/frames/HASH.jpg   the frames

Good parts of the audit set the threshold: they were drawn at random, and training must not see
them. All other good parts and the defective ones are learnt from.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from engine.errors import ConfigurationError
from engine.listing import find_images

RECORDS: Final = "labels.jsonl"
ENOUGH_DEFECTS: Final = 10
"""Known defects that the recipes were measured with; more help less and less."""

Use = Literal["good", "defective", "calibration"]
USES: Final[tuple[Use, ...]] = ("good", "defective", "calibration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The frame of one part, and what it is used for."""

    file: Path
    use: Use
    epoch: str
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """What can be used, and how many labelled parts have no frame or are unsure."""

    parts: tuple[Labelled, ...] = ()
    without_frame: int = 0
    unsure: int = 0

    def of(self, use: Use) -> list[Labelled]:
        """The parts for one use."""
        return [part for part in self.parts if part.use == use]


def read_labelled(
    folder: Path, *, product: str | None = None, cameras: Collection[str] = ()
) -> DataSet:
    """The data set in a folder; empty where there is none. Lines that are no label do not count.

    With a `product` it has that one's parts alone, and with `cameras` those that these have seen.
    """
    latest: dict[tuple[str, int], Mapping[str, Any]] = {}
    audited: set[tuple[str, int]] = set()
    for record in _records(folder / RECORDS):
        if product is not None and record.get("product") != product:
            continue
        if cameras and record.get("camera") not in cameras:
            continue
        key = str(record["epoch"]), int(record["sequence"])
        latest[key] = record
        if record.get("queue") == "audit":
            audited.add(key)
    parts, without_frame, unsure = [], 0, 0
    for key, record in latest.items():
        label = record["label"]
        if label not in {"good", "defective"}:
            unsure += label == "unsure"
            continue
        name = str(record.get("file") or "")
        file = folder / "frames" / Path(name).name
        if not name or not file.is_file():
            without_frame += 1
            continue
        use: Use = "defective"
        if label == "good":
            use = "calibration" if key in audited else "good"
        parts.append(Labelled(file=file, use=use, epoch=key[0], sequence=key[1]))
    return DataSet(parts=tuple(parts), without_frame=without_frame, unsure=unsure)


def calibration_parts(
    labelled: Path,
    good: Path | None,
    *,
    product: str | None = None,
    cameras: Collection[str] = (),
) -> list[Path]:
    """The pictures that may set a threshold: good parts of the audit, and those in folder `good`.

    Those of the audit are chosen by `product` and `cameras`, as `read_labelled` does. Raises
    `ConfigurationError` where the folder cannot be read.
    """
    labels = read_labelled(labelled, product=product, cameras=cameras)
    files = [part.file for part in labels.of("calibration")]
    if good is None:
        return files
    try:
        return [*files, *find_images(good).files]
    except OSError as error:
        raise ConfigurationError(
            "fleet.good", str(good), f"cannot be read ({error.strerror}); put good parts there"
        ) from None


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            record: Any = None
            with suppress(ValueError):
                record = json.loads(line)
            if isinstance(record, dict) and {"epoch", "sequence", "label"} <= record.keys():
                yield record


def gather(found: DataSet, base: Path | None, out: Path) -> dict[Use, int]:
    """Make folders `good`, `defective` and `calibration` of the data set and of `base`.

    Args:
        found: What was labelled.
        base: The images of the first training: `good` or `train/good`, `defective`, and in
            `calibration` good parts that training has not seen.
        out: The folder; it must be new.

    Returns:
        How many pictures each has.

    Raises:
        ConfigurationError: `base` has no good images, or `out` cannot be written.
    """
    wanted: dict[Use, list[Path]] = {use: [part.file for part in found.of(use)] for use in USES}
    if base is not None:
        good = next(
            (base / name for name in ("train/good", "good") if (base / name).is_dir()), None
        )
        if good is None:
            raise ConfigurationError(
                "--base", str(base), "has neither good nor train/good below it"
            )
        wanted["good"] += find_images(good).files
        others: tuple[Use, ...] = ("defective", "calibration")
        for use in others:
            if (base / use).is_dir():
                wanted[use] += find_images(base / use).files
    try:
        out.mkdir(parents=True)
        for use, files in wanted.items():
            put_pictures(files, out / use)
    except OSError as error:
        raise ConfigurationError(
            "--out", str(out), f"cannot be written ({error.strerror})"
        ) from None
    return {use: len(files) for use, files in wanted.items()}


def put_pictures(files: Iterable[Path], folder: Path) -> None:
    """Make a folder of pictures, in place of what it was; raises `OSError`."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        place = folder / f"{number:05d}_{file.name}"
        try:
            os.link(file, place)
        except OSError:  # another disk
            shutil.copyfile(file, place)
