"""The file that names the regions of a frame (docs/regions.md), and an image of what is ignored."""

import json
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from agent.settings_errors import explained
from agent.settings_file import Written, read_yaml
from agent.settings_values import AnyPath
from engine.bundle import MANIFEST, open_bundle
from engine.errors import ImageError, InspectionError
from engine.image import read_image
from engine.outline import MOST_ROUND, motion
from engine.outline import outline as outline_of
from engine.region_spec import EdgeSpec, OutlineSpec, Polygon, RegionSpec, RegionsSpec, Sides
from engine.spec import spec

_KEY: Final = "--regions"
_GREY: Final = 127
_MOST_RUNS: Final = 9_000
_BRIGHT: Final = 127
"""A brighter pixel of such an image is ignored."""


@spec
class _Region:
    """A region as the file has it; `ignore_image` is white where nothing is inspected."""

    name: str
    crop: Sides
    rotate: float = 0.0
    ignore: tuple[Polygon, ...] = ()
    ignore_image: AnyPath | None = None


@spec
class _Outline:
    """As `OutlineSpec`, of the part in the image `drawn_on`."""

    within: Sides
    drawn_on: AnyPath
    contrast: Annotated[float, Field(ge=1, le=100)] = 25.0
    turns: bool = True
    most_degrees: Annotated[float, Field(gt=0, lt=90)] = 30.0


@spec
class _File:
    frame: tuple[int, int]
    regions: Annotated[tuple[_Region, ...], Field(min_length=1)]
    find: tuple[EdgeSpec, ...] = ()
    outline: _Outline | None = None


_FILE: Final = TypeAdapter(_File)


def read_regions(path: Path) -> RegionsSpec | None:
    """The regions that a YAML file names, or those that a bundle has.

    Raises `ConfigurationError`, naming key, value, remedy and line, for what cannot be.
    """
    if (path / MANIFEST).is_file():
        return open_bundle(path).manifest.method.regions
    written = read_yaml(path, key=_KEY)
    try:
        file = _FILE.validate_json(json.dumps(written.data), strict=True)
    except ValidationError as error:
        raise explained(error, written, _File) from None
    ignored = [
        (*region.ignore, *_drawn(region, place, file.frame, written))
        for place, region in enumerate(file.regions)
    ]
    outline = None if file.outline is None else _measured(file.outline, file.frame, written)
    try:
        spec = RegionsSpec(
            frame=file.frame,
            regions=tuple(
                RegionSpec(name=each.name, crop=each.crop, rotate=each.rotate, ignore=polygons)
                for each, polygons in zip(file.regions, ignored, strict=True)
            ),
            find=file.find,
            outline=outline,
        )
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise written.refused(("regions",), [each.name for each in file.regions], message) from None
    if outline is not None:
        try:
            motion(spec.blank(_GREY), outline)
        except InspectionError:
            remedy = "leaves too little room around the part; make it larger"
            raise written.refused(("outline", "within"), list(outline.within), remedy) from None
    return spec


def _measured(wanted: _Outline, frame: tuple[int, int], written: Written) -> OutlineSpec:
    """The outline of the part in the image that is named."""
    path = written.path.parent / wanted.drawn_on
    key = ("outline", "drawn_on")
    try:
        image = read_image(path)
    except ImageError as error:
        raise written.refused(key, str(path), str(error)) from None
    height, width = image.shape[:2]
    if (width, height) != tuple(frame):
        remedy = f"has {width} × {height} pixels; name an image as large as the frames"
        raise written.refused(key, str(path), remedy)
    left, top, right, bottom = wanted.within
    if left >= right or top >= bottom or right > width or bottom > height:
        remedy = "should be left, top, right, bottom in the frame"
        raise written.refused(("outline", "within"), list(wanted.within), remedy)
    try:
        found = outline_of(image, wanted.within, wanted.contrast)
    except InspectionError as error:
        raise written.refused(key, str(path), str(error)) from None
    length, breadth = found.size
    if wanted.turns and length < MOST_ROUND * breadth:
        remedy = (
            f"the part, {length:.0f} × {breadth:.0f} pixels, is too round to have a direction; "
            "write turns: false"
        )
        raise written.refused(("outline", "turns"), wanted.turns, remedy)
    return OutlineSpec(
        within=wanted.within,
        at=found.at,
        angle=found.angle,
        size=found.size,
        contrast=wanted.contrast,
        turns=wanted.turns,
        most_degrees=wanted.most_degrees,
    )


def _drawn(region: _Region, place: int, frame: tuple[int, int], written: Written) -> list[Polygon]:
    """What is white in an image, as rectangles of whole pixels."""
    if region.ignore_image is None:
        return []
    key = ("regions", str(place), "ignore_image")
    path = written.path.parent / region.ignore_image
    try:
        image = read_image(path)
    except ImageError as error:
        raise written.refused(key, str(path), str(error)) from None
    height, width = image.shape[:2]
    if (width, height) != tuple(frame):
        raise written.refused(
            key, str(path), f"has {width} × {height} pixels; make it as large as the frames"
        )
    found = _rectangles(image.reshape(height, width, -1).max(axis=2) > _BRIGHT)
    if not found:
        raise written.refused(key, str(path), "has no white pixel; make white what is ignored")
    if len(found) > _MOST_RUNS:
        raise written.refused(key, str(path), "is too ragged; draw it with a hard, larger brush")
    return found


def _rectangles(white: npt.NDArray[np.bool_]) -> list[Polygon]:
    """Rectangles that cover just the white pixels; equal rows that follow are one."""
    found: list[Polygon] = []
    open_runs: dict[tuple[int, int], int] = {}
    for row in range(white.shape[0] + 1):
        runs = _runs(white[row]) if row < white.shape[0] else set[tuple[int, int]]()
        for run in open_runs.keys() - runs:
            (left, right), top = run, open_runs.pop(run)
            # Corners are middles of pixels, and belong to the polygon.
            found.append(((left, top), (right - 1, top), (right - 1, row - 1), (left, row - 1)))
        for run in runs - open_runs.keys():
            open_runs[run] = row
    return found


def _runs(row: npt.NDArray[np.bool_]) -> set[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
    return {(int(left), int(right)) for left, right in edges.reshape(-1, 2)}
