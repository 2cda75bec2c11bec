"""Folders of images → a split that is written down → training images in memory.

    DATA/train/good   DATA/test/good   DATA/test/<type>   DATA/ground_truth/<type>/<stem>_mask.png

is MVTec's layout. Plain folders work as well: DATA/good and DATA/defective (sub-folders name the
types) or DATA/good and DATA/<type>, with masks in DATA/ground_truth, or any two folders of good and
defective parts.

The split lists every image by path and content hash. It is drawn from sorted paths with a seed,
so it is the same on every file system.
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeVar

import cv2
import numpy as np
from pydantic import TypeAdapter

from engine.bundle import Bundle, Sha256, pixels_sha256
from engine.errors import ConfigurationError, ImageError, InspectionError, TrainingError
from engine.frame import Box, Pixels
from engine.image import read_image
from engine.listing import Listing, find_images, is_part_folder, reason_by_name
from engine.methods import MethodSpec
from engine.region import Cut, Regions, cut_mask
from engine.region_spec import RegionsSpec
from engine.spec import spec
from train.anomalies import Mask
from train.cache import ByteLimitedCache

_Method = TypeVar("_Method", bound=MethodSpec)

GOOD: Final = "good"
DEFECTIVE: Final = "defective"
MASKS: Final = "ground_truth"
_NO_TYPES: Final = frozenset(
    {"annotations", "gt", "groundtruth", "labels", "mask", "masks", "test", "train", "val"}
)
"""Folders beside `good` that are known to hold something else than a type of defect."""
DEFAULT_DEFECTS: Final = 10
LEAST_GOOD: Final = 8
"""Fewer good images than fill half a batch are no basis for learning what good is."""
ADVISABLE_GOOD: Final = 50
"""Good images that training should have."""
_SAME_SHAPE: Final = 0.02  # relative difference of two aspect ratios that rounding can make
PLAIN_TEST_SHARE: Final = 0.25
"""Share of good images that plain folders give to the test, as DevNet and DRA do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the images are: MVTec's layout below `root`, or the folders `good` and `defective`.

    `types` are the folders of defects beside `good`, each named as its type of defect. `bits` are
    the significant ones of 16-bit images, where the files do not say.
    """

    layout: Literal["mvtec", "plain"]
    root: Path
    good: Path | None = None
    defective: Path | None = None
    types: tuple[str, ...] = ()
    bits: int | None = None

    def path(self, name: str) -> Path:
        """The file of the image that a split calls `name`."""
        first, *rest = PurePosixPath(name).parts
        if first == GOOD and self.good is not None:
            return self.good.joinpath(*rest)
        if first == DEFECTIVE and self.defective is not None:
            return self.defective.joinpath(*rest)
        return self.root / name


@spec
class Listed:
    """One image of a split: its path below the data folder, in POSIX form, and its pixels' hash.

    `kind` is `good` or the type of defect; `mask` the path of its ground truth, if there is one.
    """

    path: str
    sha256: Sha256
    kind: str
    mask: str | None = None

    @property
    def defective(self) -> bool:
        return self.kind != GOOD


@spec
class Dropped:
    """An image that shows the same pixels as another one, and therefore counts only once."""

    path: str
    same_as: str


@spec
class Split:
    """Who trains, who is held out, who tests; no image is in two places."""

    layout: Literal["mvtec", "plain"]
    seed: int
    train_good: tuple[Listed, ...]
    held_out_good: tuple[Listed, ...]
    train_defective: tuple[Listed, ...]
    test: tuple[Listed, ...]
    dropped: tuple[Dropped, ...]

    @property
    def training(self) -> tuple[Listed, ...]:
        return self.train_good + self.train_defective

    @property
    def unseen_good(self) -> tuple[Listed, ...]:
        """Good images that training never sees: those held out, else those of the test."""
        return self.held_out_good or tuple(item for item in self.test if not item.defective)


SPLIT: Final = "split.json"
SPLIT_JSON: Final = TypeAdapter(Split)
REGIONS_JSON: Final[TypeAdapter[RegionsSpec | None]] = TypeAdapter(RegionsSpec | None)


def find_source(data: Path | None, good: Path | None, defective: Path | None) -> Source:
    """What `--data`, `--good` and `--defective` mean; raises `ConfigurationError`."""
    if good is not None and data is not None:
        raise ConfigurationError("--good", str(good), "does not go with --data; give one of them")
    if good is not None:
        return Source(
            layout="plain",
            root=_folder("--good", good),
            good=good,
            defective=None if defective is None else _folder("--defective", defective),
        )
    if defective is not None:
        raise ConfigurationError("--defective", str(defective), "needs --good DIR beside it")
    if data is None:
        raise ConfigurationError("--data", None, "give --data DIR, or --good DIR --defective DIR")
    _folder("--data", data)
    if _is_folder("--data", data / "train" / GOOD):
        return Source(layout="mvtec", root=data)
    if _is_folder("--data", data / GOOD):
        types = _types_beside(data)
        has_defective = _is_folder("--data", data / DEFECTIVE)
        if types and has_defective:
            remedy = (
                f"has {types[0]} beside {DEFECTIVE}; move it into {DEFECTIVE}, or out of the data"
            )
            raise ConfigurationError("--data", str(data), remedy)
        return Source(
            layout="plain",
            root=data,
            good=data / GOOD,
            defective=data / DEFECTIVE if has_defective else None,
            types=types,
        )
    raise ConfigurationError(
        "--data",
        str(data),
        "has neither train/good (MVTec's layout) nor good beside defective or folders that name "
        "the types of defect; name the folders with --good DIR --defective DIR",
    )


def left_out(source: Source) -> list[str]:
    """What of the data is used for nothing, one line for each folder; for people."""
    if source.good is not None:
        folders = [source.good, *(source.root / name for name in source.types)]
        folders += [] if source.defective is None else [source.defective]
    else:
        folders = [source.root / "train", source.root / "test"]
    lines = [f"{folder}: {said}" for folder in folders if (said := str(_searched(folder)))]
    if source.good is None:
        others = [name for name in _folders(source.root / "train") if name != GOOD]
        lines += [f"{source.root / 'train' / name}: only {GOOD} is used there" for name in others]
    lines += _loose(source)
    masks = source.root / MASKS
    if masks.is_dir():
        used = {mask for *_, mask in _listing(source) if mask is not None}
        found = [path.relative_to(source.root).as_posix() for path in _searched(masks).files]
        if unused := [name for name in found if name not in used]:
            lines.append(
                f"{masks}: {len(unused)} files belong to no image (first: {unused[0]}); the mask "
                f"of scratch/001.png is {MASKS}/scratch/001_mask.png"
            )
    return lines


def _loose(source: Source) -> list[str]:
    """Images that lie beside the folders, where nobody looks for them."""
    places = {source.root}
    if source.good is None:
        places |= {source.root / "train", source.root / "test"}
    if {source.good, source.defective} & places:
        return []  # the folder itself is one of good or defective parts
    lines = []
    for place in sorted(place for place in places if place.is_dir()):
        names = sorted(each.name for each in place.iterdir() if reason_by_name(each.name) is None)
        if loose := [name for name in names if (place / name).is_file()]:
            lines.append(
                f"{place}: {len(loose)} images lie beside its folders and are not used "
                f"(first: {loose[0]})"
            )
    return lines


def draw_split(
    source: "Source | Images", *, defects: int | None, hold_out: float, seed: int
) -> Split:
    """Hash all images of `source`, leave out repeated ones, and draw who trains.

    Args:
        source: The images; `Images` keep what was read.
        defects: How many known defects train instead of test; default ten, at most half of them.
        hold_out: Share of the training images that are kept unseen.
        seed: Of the draw.

    Raises:
        TrainingError: There are too few images, some cannot be read, or one image is called good
            and defective.
    """
    images = source if isinstance(source, Images) else Images(source, limit=0)
    source = images.source
    listed, dropped = _distinct(_hashed(images, _listing(source)))
    good_train = [item for item in listed if _is_for_training(item)]
    test_good = [item for item in listed if not item.defective and not _is_for_training(item)]
    faulty = [item for item in listed if item.defective]

    if source.layout == "plain":
        count = round(PLAIN_TEST_SHARE * len(good_train))
        test_good, good_train = _drawn(good_train, count, seed=seed, stream=0)
    known = min(DEFAULT_DEFECTS, len(faulty) // 2) if defects is None else defects
    if known > len(faulty):
        raise TrainingError(
            f"--defects {known} asks for more defective images than the {len(faulty)} there are"
        )
    known_defects, unknown_defects = _drawn(faulty, known, seed=seed, stream=1)
    held = max(1, round(hold_out * len(good_train))) if hold_out else 0
    held_out, kept = _drawn(good_train, held, seed=seed, stream=2)
    if len(kept) < LEAST_GOOD:
        raise TrainingError(
            f"'{source.root}' has only {len(good_train) + len(test_good)} different good images, "
            f"which leaves {len(kept)} to train on ({held} held out); at least {LEAST_GOOD} are "
            "needed, 50 or more are advisable"
        )
    if not held_out and not test_good:
        raise TrainingError(
            f"'{source.root}' leaves no good image that training has not seen, so exports could "
            "not be compared; hold some out: --hold-out 0.15"
        )
    return Split(
        layout=source.layout,
        seed=seed,
        train_good=tuple(kept),
        held_out_good=tuple(held_out),
        train_defective=tuple(known_defects),
        test=(*test_good, *unknown_defects),
        dropped=tuple(dropped),
    )


def unseen_images(source: Source, bundle: Bundle) -> tuple[Listed, ...]:
    """What a bundle can be tested on: all images of `source` that its training never used.

    Of MVTec's layout that is the folder `test`. Known by content, so it serves for the data the
    bundle was trained on and for any other; good images held out for the threshold stay out.
    """
    used = set(bundle.manifest.training.training_sha256)
    if SPLIT in bundle.manifest.files:
        split = SPLIT_JSON.validate_json(bundle.read(SPLIT))
        used |= {item.sha256 for item in split.held_out_good}
    listed, _ = _distinct(_hashed(Images(source, limit=0), _listing(source)))
    return tuple(
        item
        for item in listed
        if item.sha256 not in used and (source.layout == "plain" or item.path.startswith("test/"))
    )


def read_listed(source: Source, item: Listed) -> Pixels:
    """The pixels of a split's image; raises `TrainingError` when they are not those listed."""
    pixels = read_image(source.path(item.path), bits=source.bits)
    if pixels_sha256(pixels) != item.sha256:
        raise TrainingError(
            f"{source.path(item.path)} is not the image that the split lists; "
            "give the data the bundle was trained on"
        )
    return pixels


def read_mask(source: Source, item: Listed, pixels: Pixels) -> Mask | None:
    """Where `item` is defective, `(H, W)` bool, or None when nobody drew it.

    A mask kept at a smaller size than its image is enlarged; one of another shape is refused.
    """
    if item.mask is None:
        return None
    path = source.path(item.mask)
    drawn = read_image(path)
    height, width = pixels.shape[:2]
    mask = np.asarray(drawn.reshape(*drawn.shape[:2], -1).any(axis=2), dtype=np.uint8)
    if abs(mask.shape[1] / mask.shape[0] * height / width - 1) > _SAME_SHAPE:
        raise ImageError(str(path), f"is {mask.shape} pixels where its image is {pixels.shape[:2]}")
    return np.asarray(
        cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.bool_)
    )


class Images:
    """The images of `source`, each read and hashed once, and kept while all fit into memory.

    What does not fit into `limit` bytes is read and hashed again when it is asked for.
    """

    def __init__(self, source: Source, *, limit: int = 2 << 30) -> None:
        self.source = source
        self._pixels: ByteLimitedCache[str, Pixels] = ByteLimitedCache(limit=limit)
        self._masks: ByteLimitedCache[str, Mask] = ByteLimitedCache(limit=limit // 4)

    def digest(self, name: str) -> str:
        """The hash of what image `name` shows; raises `ImageError` when it cannot be read."""
        return pixels_sha256(
            self._kept(name, lambda: read_image(self.source.path(name), bits=self.source.bits))
        )

    def pixels(self, item: Listed) -> Pixels:
        """The pixels of a split's image; raises `TrainingError` when they are not those listed."""
        return self._kept(item.path, lambda: read_listed(self.source, item))

    def mask(self, item: Listed) -> Mask | None:
        """As `read_mask`."""
        if item.mask is None:
            return None

        def read() -> Mask:
            mask = read_mask(self.source, item, self.pixels(item))
            assert mask is not None
            return mask

        return self._masks.get(item.mask, read, lambda mask: mask.nbytes)

    def forget_others(self, items: Collection[Listed]) -> None:
        """Give the memory of all images but `items` back."""
        self._pixels.forget_others({item.path for item in items})

    def _kept(self, name: str, read: Callable[[], Pixels]) -> Pixels:
        return self._pixels.get(name, read, lambda pixels: pixels.nbytes)


class TrainingImages:
    """The pictures that training learns from, by number: good ones, then defective ones.

    Each is a whole frame of `split.training` or, with `regions`, one region of it; a defect is
    learnt from in the regions where it is. Inspectors take `method(…)` and whole frames. Pictures
    of one image follow each other.

    Args:
        images: All images.
        split: Who trains.
        regions: Of each frame; None: the whole frame.
        anywhere: A defect that nobody has drawn may be in any region: there is a picture of each.
            Else it is an error.
    """

    def __init__(
        self,
        images: Images,
        split: Split,
        regions: RegionsSpec | None = None,
        *,
        anywhere: bool = False,
    ) -> None:
        self._anywhere = anywhere
        self.images = images
        self.split = split
        self.regions = regions
        self._regions = None if regions is None else Regions(regions)
        good: list[tuple[Listed, int]] = [
            (item, place)
            for item in split.train_good
            for place in range(1 if regions is None else len(regions.regions))
        ]
        defective = [pair for item in split.train_defective for pair in self._defective_in(item)]
        self.good = range(len(good))
        self.defective = range(len(good), len(good) + len(defective))
        self._items = [*good, *defective]
        first = {item.path: index for index, (item, _) in reversed([*enumerate(self._items)])}
        self._first = [first[item.path] for item, _ in self._items]

    def first(self, index: int) -> int:
        """The first picture of the image that picture `index` is of; it stands for the image."""
        return self._first[index]

    def by_image(self, pictures: Iterable[int]) -> list[tuple[int, ...]]:
        """`pictures` in order, those of one image together."""
        return [tuple(of_one) for _, of_one in groupby(pictures, self.first)]

    def item(self, index: int) -> Listed:
        """The image that picture `index` is of."""
        return self._items[index][0]

    def frame(self, index: int) -> Pixels:
        """Native pixels, mono or RGB."""
        item, place = self._items[index]
        cuts = self._cuts(item)
        return self.images.pixels(item) if cuts is None else cuts[place].pixels

    def mask(self, index: int) -> Mask | None:
        """Where picture `index` is defective; all False for a good one, None when unknown."""
        item, place = self._items[index]
        if not item.defective:
            return np.zeros(self.frame(index).shape[:2], dtype=np.bool_)
        mask, cuts = self.images.mask(item), self._cuts(item)
        return mask if mask is None or cuts is None else cut_mask(mask, cuts[place])

    def box_in_frame(self, index: int, box: Box) -> Box:
        """Where a box of picture `index` lies in its frame."""
        item, place = self._items[index]
        cuts = self._cuts(item)
        frame = Box.around(self.images.pixels(item))
        return box if cuts is None else cuts[place].in_frame(box, frame)

    def method(self, method: _Method) -> _Method:
        """The same method, for whole frames."""
        return replace(method, regions=self.regions)

    def _cuts(self, item: Listed) -> list[Cut] | None:
        return None if self._regions is None else regions_of(self._regions, self.images, item)

    def _defective_in(self, item: Listed) -> list[tuple[Listed, int]]:
        """A defective image in each region where its defect is."""
        cuts = self._cuts(item)
        if cuts is None:
            return [(item, 0)]
        mask = self.images.mask(item)
        if mask is None and len(cuts) > 1 and not self._anywhere:
            raise TrainingError(
                f"{item.path} has no mask, so nobody knows in which of the {len(cuts)} regions its "
                f"defect is; draw one below {MASKS}, take --recipe nearest, or train without "
                "known defects: --defects 0"
            )
        return [
            (item, place)
            for place, cut in enumerate(cuts)
            if mask is None or cut_mask(mask, cut).any()
        ]


def regions_of(regions: Regions, images: Images, item: Listed) -> list[Cut]:
    """The regions of an image; raises `TrainingError` where it has no place for them."""
    try:
        return regions.cut(images.pixels(item))
    except InspectionError as error:
        raise TrainingError(f"{item.path}: {error}") from None


def _folder(option: str, path: Path) -> Path:
    if not _is_folder(option, path):
        raise ConfigurationError(option, str(path), "is not a folder")
    return path


def _is_folder(option: str, path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise ConfigurationError(option, str(path), f"cannot be read ({error.strerror})") from None


def _types_beside(data: Path) -> tuple[str, ...]:
    """The folders beside `good` that hold images: each is a type of defect."""
    names = [name for name in _folders(data) if name not in {GOOD, DEFECTIVE, MASKS}]
    types = [name for name in names if _searched(data / name).files]
    for name in types:
        if name.lower() in _NO_TYPES:
            remedy = (
                f"has {name} beside {GOOD}, which names no type of defect; masks belong to "
                f"{MASKS}, and what is not used out of the data"
            )
            raise ConfigurationError("--data", str(data), remedy)
    return tuple(types)


def _folders(parent: Path) -> list[str]:
    """The folders in `parent` that may hold images of parts."""
    try:
        return sorted(entry.name for entry in os.scandir(parent) if is_part_folder(entry))
    except OSError as error:
        raise TrainingError(f"{parent} cannot be read ({error.strerror})") from None


def _listing(source: Source) -> list[tuple[str, str, str | None]]:
    """Every image as (name, kind, mask), training first, in sorted order."""
    if source.good is not None:
        rows = [(f"{GOOD}/{name}", GOOD) for name in _names(source.good)]
        if source.defective is not None:
            faulty = _names(source.defective)
            if not faulty:
                raise TrainingError(f"{source.defective} holds no images")
            for name in faulty:
                *folders, _ = PurePosixPath(name).parts
                kind = folders[0] if folders and folders[0] != GOOD else DEFECTIVE
                rows.append((f"{DEFECTIVE}/{name}", kind))
        for kind in source.types:
            rows += [(f"{kind}/{name}", kind) for name in _names(source.root / kind)]
        return _with_masks(source, rows)
    rows = [(f"train/{GOOD}/{name}", GOOD) for name in _names(source.root / "train" / GOOD)]
    test = source.root / "test"
    kinds = _folders(test) if test.is_dir() else []
    rows += [(f"test/{kind}/{name}", kind) for kind in kinds for name in _names(test / kind)]
    return _with_masks(source, rows)


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in _searched(folder).files]


def _searched(folder: Path) -> Listing:
    """The images below `folder`; raises `TrainingError` where a part of it cannot be read."""
    try:
        listing = find_images(folder)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be read ({error.strerror})") from None
    if (unreadable := listing.unreadable) is not None:
        raise TrainingError(
            f"{folder}: {unreadable.count} of its folders cannot be read, the first is "
            f"{unreadable.first}; make them readable or move them"
        )
    return listing


def _with_masks(
    source: Source, rows: Sequence[tuple[str, str]]
) -> list[tuple[str, str, str | None]]:
    """Rows (name, kind) with the masks there are: `ground_truth` has the folders of the defects."""

    def mask_of(name: str) -> str | None:
        *folders, file = PurePosixPath(name).parts
        folders = folders if folders[0] in source.types else folders[1:]
        mask = PurePosixPath(MASKS, *folders, f"{PurePosixPath(file).stem}_mask.png")
        return mask.as_posix() if (source.root / mask).is_file() else None

    return [(name, kind, None if kind == GOOD else mask_of(name)) for name, kind in rows]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_for_training(item: Listed) -> bool:
    return not item.defective and not item.path.startswith("test/")


def _hashed(images: Images, rows: Sequence[tuple[str, str, str | None]]) -> list[Listed]:
    unwritable = [name for name, _, _ in rows if not _is_text(name)]
    if unwritable:
        raise TrainingError(
            f"{len(unwritable)} of {len(rows)} images have names that are no UTF-8 (an archive "
            "from another system often makes such); rename them:\n  "
            + "\n  ".join(
                name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                for name in unwritable
            )
        )

    def digest(row: tuple[str, str, str | None]) -> str | ImageError:
        try:
            return images.digest(row[0])
        except ImageError as error:
            return error

    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest, rows))
    damaged = [str(found) for found in digests if isinstance(found, ImageError)]
    if damaged:
        raise TrainingError(
            f"{len(damaged)} of {len(rows)} images cannot be used; remove or replace them:\n  "
            + "\n  ".join(damaged)
        )
    return [
        Listed(path=name, sha256=found, kind=kind, mask=mask)
        for (name, kind, mask), found in zip(rows, digests, strict=True)
        if isinstance(found, str)
    ]


def _distinct(items: Sequence[Listed]) -> tuple[list[Listed], list[Dropped]]:
    first: dict[str, Listed] = {}
    dropped = []
    for item in items:
        earlier = first.setdefault(item.sha256, item)
        if earlier is item:
            continue
        if earlier.defective != item.defective:
            raise TrainingError(
                f"{earlier.path} ({earlier.kind}) and {item.path} ({item.kind}) are the same "
                "image; it cannot be good and defective: remove one of them"
            )
        dropped.append(Dropped(path=item.path, same_as=earlier.path))
    return list(first.values()), dropped


def _drawn(
    items: Sequence[Listed], count: int, *, seed: int, stream: int
) -> tuple[list[Listed], list[Listed]]:
    """`count` items drawn by `seed`, and the others; more drawn items include the fewer."""
    order = np.random.default_rng([seed, stream]).permutation(len(items))
    chosen = set(order[:count].tolist())
    return (
        [item for i, item in enumerate(items) if i in chosen],
        [item for i, item in enumerate(items) if i not in chosen],
    )
