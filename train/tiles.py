"""Tiles: a frame, or each of its regions, inspected in pieces.

A view has one size, however large the frame is: what is a few pixels wide on a large frame is less
than one pixel of the view, so that pass 1 does not see it and pass 2 never goes there. Tiles are
regions (docs/regions.md), so all that regions have holds for them.
"""

import math
import re
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal

from pydantic import ValidationError

from engine.errors import ConfigurationError
from engine.region_spec import RegionSpec, RegionsSpec

MOST: Final = 32
"""Tiles at most, all regions of a frame together."""
COARSEST: Final = 4.0
"""Pixels of the frame that one pixel of a view shows at most, across and down, with `auto`."""
_LONGEST: Final = 1.5  # how many times as long as wide a tile of `auto` may be
_OVERLAP: Final = 1 / 8  # of a tile's side, with each neighbour
_OPTION: Final = "--tiles"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How many tiles there are across and down."""

    columns: int
    rows: int

    @property
    def count(self) -> int:
        return self.columns * self.rows

    def size(self, of: tuple[int, int]) -> tuple[int, int]:
        """Width and height of each tile of a rectangle of this width and height."""
        return _side(of[0], self.columns), _side(of[1], self.rows)


Tiles = Grid | Literal["auto"]
"""`auto`: as many as the frame's size and the views' ask for."""


def tiles_of(text: str) -> Tiles:
    """What `--tiles` means: `3x2` is three across and two down; raises `ConfigurationError`."""
    if text == "auto":
        return "auto"
    written = re.fullmatch(r"\s*(\d{1,3})\s*[xX×]\s*(\d{1,3})\s*", text, flags=re.ASCII)
    grid = Grid(columns=int(written[1]), rows=int(written[2])) if written else None
    if grid is None or not 1 <= grid.count <= MOST:
        remedy = f"write 3x2 for three tiles across and two down, {MOST} at most in all, or auto"
        raise ConfigurationError(_OPTION, text, remedy)
    return grid


def fewest(size: tuple[int, int], *, side: int) -> Grid:
    """The fewest tiles of a rectangle, nearly square, of which a view shows enough.

    Raises `ConfigurationError` where these are too many.
    """
    fitting = []
    for columns, rows in product(range(1, MOST + 1), repeat=2):
        grid = Grid(columns=columns, rows=rows)
        width, height = grid.size(size)
        shape = max(width / height, height / width)
        if grid.count <= MOST and max(width, height) <= COARSEST * side and shape <= _LONGEST:
            fitting.append((grid.count, shape, grid))
    if not fitting:
        raise ConfigurationError(
            _OPTION,
            "auto",
            f"needs more than {MOST} tiles for {size[0]} × {size[1]} pixels with views of {side}; "
            "write how many, as 8x4, or name the regions that matter: docs/regions.md",
        )
    return min(fitting, key=lambda one: one[:2])[2]


def tiled(
    regions: RegionsSpec | None, tiles: Tiles, *, frame: tuple[int, int], side: int
) -> RegionsSpec | None:
    """The same regions in tiles; of a whole frame that stays in one piece None.

    Args:
        regions: What is inspected; None: the whole frame.
        tiles: Of each region.
        frame: Width and height of the frames, where there are no regions.
        side: Of the views.

    Raises:
        ConfigurationError: They are too many, or too small.
    """
    whole = RegionSpec(name="frame", crop=(0, 0, *frame))
    spec = RegionsSpec(frame=frame, regions=(whole,)) if regions is None else regions
    parted: list[tuple[RegionSpec, Grid]] = []
    for region in spec.regions:
        grid = fewest(region.size, side=side) if tiles == "auto" else tiles
        if min(grid.size(region.size)) < 2:
            remedy = f"is too fine for {region.size[0]} × {region.size[1]} pixels; write fewer"
            raise ConfigurationError(_OPTION, f"{grid.columns}x{grid.rows}", remedy)
        parted.append((region, grid))
    count = sum(grid.count for _, grid in parted)
    if regions is None and count == 1:
        return None
    if count > MOST:
        remedy = f"makes {count} tiles of {len(spec.regions)} regions; {MOST} are possible"
        raise ConfigurationError(_OPTION, _said(tiles), remedy)
    try:
        found = [
            tile
            for region, grid in parted
            for tile in _cut(region, grid, named="" if regions is None else f"{region.name}: ")
        ]
        return replace(spec, regions=tuple(found))
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ConfigurationError(_OPTION, _said(tiles), message) from None


def _cut(region: RegionSpec, grid: Grid, *, named: str) -> list[RegionSpec]:
    if grid.count == 1:
        return [region]
    width, height = grid.size(region.size)
    placement = region.placement()
    found = []
    for row, column in product(range(grid.rows), range(grid.columns)):
        across = _start(column, grid.columns, region.size[0] - width) + width / 2
        down = _start(row, grid.rows, region.size[1] - height) + height / 2
        x, y = placement @ (across, down, 1.0)
        left, top = round(x - width / 2), round(y - height / 2)
        found.append(
            RegionSpec(
                name=f"{named}row {row + 1}, column {column + 1}",
                crop=(left, top, left + width, top + height),
                rotate=region.rotate,
                ignore=region.ignore,
            )
        )
    return found


def _side(length: int, count: int) -> int:
    """Of each of `count` pieces of a `length` that overlap."""
    return math.ceil(length / (count - (count - 1) * _OVERLAP))


def _start(number: int, count: int, last: int) -> int:
    return round(number * last / (count - 1)) if count > 1 else 0


def _said(tiles: Tiles) -> str:
    return tiles if isinstance(tiles, str) else f"{tiles.columns}x{tiles.rows}"
