"""Turned steel flanges on a belt, most of them good.

Every part is a pure function of `(seed, number)`, so what is wrong with it is known: demo,
benchmarks and tests compare verdicts with the truth. A good part is not a perfect one: it lies a
little off, turned a little, under light that varies, with dust and a faint smudge now and then.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from engine.frame import Map, Pixels

WIDTH: Final = 640
HEIGHT: Final = 480
DEFECTS: Final = ("scratch", "chip", "dent", "stain", "missing_hole", "print_smear")
GOOD: Final = "good"
VISIBLE: Final = 300.0
"""How much `visibility` a person needs: that of 10 × 10 pixels which differ by 30 grey levels.

A speck of dust, which a good part may have, comes to 400 at most, a smudge to 0.
"""

SPECKS: Final = 4
"""How many specks of dust a part has at most, unless it says otherwise."""

_SHADED_BELT: Final = 22.0  # grey level of the belt beside a part
_NOTICEABLE: Final = 12.0  # grey levels; grooves and smudges of good parts differ by as much

_SIDE: Final = 384  # of the square sprite that a part is drawn on, in pixels
_CENTRE: Final = _SIDE / 2
_RIM: Final = 168.0  # radii of the part, in pixels
_BORE: Final = 44.0
_HOLE_CIRCLE: Final = 130.0
_HOLE: Final = 15.0
_NEAR: Final = 48
_HOLES: Final = 6
_PRINT: Final = 88.0
_RAIL: Final = 26  # height of the guide rails at the top and bottom of the picture
_SPARE: Final = 64  # by how many pixels the noise tile is larger than the picture

Generator = np.random.Generator
Rgba = npt.NDArray[np.uint8]
"""uint8 `(384, 384, 4)`: RGB, and how much of the belt the part hides."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GeneratedPart:
    """A picture of one part, and the truth about it.

    `pixels` is uint8 `(480, 640, 3)` RGB; `defect` one of `DEFECTS`, or `None` for a good part;
    `mask` is uint8 `(480, 640)`, 255 where the defect is, all 0 for a good part.
    """

    pixels: Pixels
    defect: str | None
    mask: Pixels


def part(seed: int, number: int, defect_rate: float) -> GeneratedPart:
    """Part `number` of the belt `seed`, on which a share `defect_rate` is defective."""
    rng = np.random.default_rng([seed, number])
    return _pictured(rng, _fate(rng, defect_rate), SPECKS)


def truth(seed: int, number: int, defect_rate: float) -> str:
    """What `part` would show, without drawing it: `good` or one of `DEFECTS`."""
    return _fate(np.random.default_rng([seed, number]), defect_rate) or GOOD


def made(
    seed: int, number: int, defect: str | None, *, specks: int = SPECKS, most: int = 1
) -> GeneratedPart:
    """A good part, or one with a `defect` of `DEFECTS`; those that `write_parts` would write."""
    group = 0 if defect is None else 2
    return _pictured(np.random.default_rng([seed, group, number]), defect, specks, most)


def write_parts(
    folder: Path,
    *,
    seed: int,
    good: int,
    defective: int,
    test_good: int,
    kinds: tuple[str, ...] = DEFECTS,
    specks: int = SPECKS,
    most: int = 1,
) -> None:
    """Write parts as PNG files in MVTec's layout, to train and test on.

    Args:
        folder: Where to.
        seed: Of all parts.
        good: How many good ones go to `train/good`.
        defective: How many defective ones go to `test/<defect>`, with masks as
            `ground_truth/<defect>/NNN_mask.png`.
        test_good: How many good ones go to `test/good`.
        kinds: The kinds of defects in turn; one that is named twice is drawn twice as often.
        specks: How many specks of dust a part has at most.
        most: How many defects, of one kind, a defective part has at most.
    """
    for number in range(good):
        _write(
            folder / "train" / GOOD / f"{number:03d}.png",
            made(seed, number, None, specks=specks).pixels,
        )
    for number in range(test_good):
        other = _pictured(np.random.default_rng([seed, 1, number]), None, specks)
        _write(folder / "test" / GOOD / f"{number:03d}.png", other.pixels)
    drawn = dict.fromkeys(kinds, 0)
    for number, kind in enumerate(islice(cycle(kinds), defective)):
        index = drawn[kind]
        drawn[kind] += 1
        faulty = made(seed, number, kind, specks=specks, most=most)
        _write(folder / "test" / kind / f"{index:03d}.png", faulty.pixels)
        _write(folder / "ground_truth" / kind / f"{index:03d}_mask.png", faulty.mask)


def _fate(rng: Generator, defect_rate: float) -> str | None:
    """Good or which defect; always the first two draws, so `truth` need not draw the rest."""
    defective = rng.random() < defect_rate
    kind = DEFECTS[int(rng.integers(len(DEFECTS)))]
    return kind if defective else None


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(".png", bgr)[1].tobytes())


def _pictured(rng: Generator, defect: str | None, specks: int, most: int = 1) -> GeneratedPart:
    scene = _scene()
    rgba, mask = scene.part.copy(), np.zeros((_SIDE, _SIDE), np.uint8)
    _soil(rng, rgba, specks)
    if defect is not None:
        for _ in range(int(rng.integers(1, most + 1))):
            rgba, where = _spoilt(rng, rgba, defect)
            mask |= where

    angle, size = rng.uniform(-8, 8), rng.uniform(0.985, 1.015)
    turn = np.array(cv2.getRotationMatrix2D((_CENTRE, _CENTRE), angle, size), dtype=np.float64)
    left = (WIDTH - _SIDE) // 2 + int(rng.integers(-24, 25))
    top = (HEIGHT - _SIDE) // 2 + int(rng.integers(-8, 9))
    turn[:, 2] += rng.random(2)  # parts do not stop at whole pixels
    laid = cv2.warpAffine(rgba, turn, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR)
    laid_mask = cv2.warpAffine(mask, turn, (_SIDE, _SIDE), flags=cv2.INTER_NEAREST)

    shift = int(rng.integers(scene.belt.shape[1] - WIDTH))
    pixels = scene.belt[:, shift : shift + WIDTH].copy()
    pixels[:_RAIL] = scene.rails[:_RAIL]
    pixels[-_RAIL:] = scene.rails[-_RAIL:]
    window = pixels[top : top + _SIDE, left : left + _SIDE]
    hidden = cv2.cvtColor(laid[..., 3], cv2.COLOR_GRAY2RGB)
    shaded = cv2.multiply(window, scene.shadow, scale=1 / 255)
    seen = cv2.multiply(shaded, cv2.bitwise_not(hidden), scale=1 / 255)
    window[:] = cv2.add(seen, cv2.multiply(laid[..., :3], hidden, scale=1 / 255))

    gain = rng.uniform(0.95, 1.05) / 255
    x, y = (int(offset) for offset in rng.integers(0, _SPARE, 2))
    grain = scene.grain[y : y + HEIGHT, x : x + WIDTH]
    lit = cv2.multiply(pixels, scene.light, scale=gain)
    pixels = np.asarray(cv2.add(lit, grain, dtype=cv2.CV_8U), dtype=np.uint8)

    full = np.zeros((HEIGHT, WIDTH), np.uint8)
    full[top : top + _SIDE, left : left + _SIDE] = laid_mask
    return GeneratedPart(pixels=pixels, defect=defect, mask=full)


def _spoilt(rng: Generator, good: Rgba, kind: str) -> tuple[Rgba, Pixels]:
    """The sprite with a defect, and its mask; one that nobody would see is drawn again."""
    while True:
        rgba, mask = good.copy(), np.zeros((_SIDE, _SIDE), np.uint8)
        _DRAW[kind](rng, rgba, mask)
        if visibility(good, rgba) >= VISIBLE:
            return rgba, mask


def visibility(before: Rgba, after: Rgba) -> float:
    """How plainly a person sees that a sprite has changed: contrast × √area.

    That is what decides whether the eye finds a patch in noise (Rose 1948); grey levels × pixels.
    Changes below `_NOTICEABLE` do not count, however large they are.
    """
    change = np.abs(_grey_on_belt(after) - _grey_on_belt(before))
    return float(np.sqrt((change[change >= _NOTICEABLE] ** 2).sum()))


def _grey_on_belt(rgba: Rgba) -> Map:
    share = _share(rgba[..., 3])
    grey = cv2.cvtColor(rgba[..., :3], cv2.COLOR_RGB2GRAY)
    return np.asarray(grey * share + _SHADED_BELT * (1 - share), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scene:
    """What all pictures share, drawn once."""

    part: Rgba
    ink: Map
    """How much print there is, 0 … 1, over the sprite."""
    belt: Pixels
    rails: Pixels
    shadow: Pixels
    light: Pixels
    grain: npt.NDArray[np.int16]


@functools.cache
def _scene() -> _Scene:
    rng = np.random.default_rng(20_240)
    # A second thread draws what is not random, as a start waits for all of it.
    with ThreadPoolExecutor(1) as beside:
        ink = beside.submit(_ink)
        part = beside.submit(lambda: _flange(ink.result(), holes=True))
        shadow, light = beside.submit(_shadow), beside.submit(_light)
        return _Scene(
            belt=_belt(rng),
            rails=_rails(rng),
            grain=_grain(rng),
            ink=ink.result(),
            part=part.result(),
            shadow=shadow.result(),
            light=light.result(),
        )


@functools.cache
def _blank() -> Rgba:
    """The part before its holes are drilled."""
    return _flange(_scene().ink, holes=False)


def _polar() -> tuple[Map, Map, Map, Map]:
    """x, y, radius and angle of every sprite pixel about the part's centre."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE].astype(np.float32) + np.float32(0.5 - _CENTRE)
    return x, y, np.hypot(x, y), np.arctan2(y, x)


def _below(distance: Map, edge: float) -> Map:
    """1 where `distance` is below `edge`, 0 above, a one-pixel ramp between (antialiasing)."""
    return np.asarray(np.clip(edge + 0.5 - distance, 0, 1), dtype=np.float32)


def _ring(radius: Map, at: float, width: float) -> Map:
    return np.asarray(np.exp(-(((radius - at) / width) ** 2)), dtype=np.float32)


def _flange(ink: Map, *, holes: bool) -> Rgba:
    x, y, radius, angle = _polar()
    rng = np.random.default_rng(7)
    # Turning leaves fine grooves. They mirror the lamp as a bow tie across the face.
    grooves = cv2.GaussianBlur(rng.normal(0, 1, (1, 512)).astype(np.float32), (5, 1), 0.9)
    groove = grooves[0, np.minimum((radius * 2).astype(int), 511)]
    lamp = np.cos(angle + 0.9) ** 2
    bright = 132 + 62 * lamp**3 + 16 * np.cos(angle - 2.2) + groove * (4 + 9 * lamp)
    # The raised hub and the recessed face differ a little; steps catch light on one side.
    bright += 10 * _below(radius, 66)
    toward = np.cos(angle + 2.3)
    for at, width, height in ((66, 1.8, 46), (_RIM - 5, 4.5, 52), (_BORE + 4, 3.0, -58)):
        bright += height * toward * _ring(radius, at, width)
    bright -= 58 * _ring(radius, 109, 1.3)
    alpha = _below(radius, _RIM)
    bore = _below(radius, _BORE)
    bright = bright * (1 - bore) + (26 + 14 * toward * _ring(radius, _BORE - 5, 6)) * bore
    if holes:
        bright = bright.astype(np.float64)
        for hole_x, hole_y in _hole_centres():
            near = _around(hole_x, hole_y)
            x_off, y_off = x[near] - hole_x, y[near] - hole_y
            away = np.hypot(x_off, y_off)
            side = np.cos(np.arctan2(y_off, x_off) + 2.3)
            rim = bright[near] - 55 * side * _ring(away, _HOLE + 2, 2.4)
            inside = _below(away, _HOLE)
            deep = 30 - 16 * side * _ring(away, _HOLE - 2, 3)
            bright[near] = rim * (1 - inside) + deep * inside
    bright = bright * (1 - 0.74 * ink)
    hides = np.asarray((alpha * 255).round(), dtype=np.uint8)
    return np.dstack([_rgb(bright, (0.985, 1.0, 1.025)), hides])


def _around(x: float, y: float) -> tuple[slice, slice]:
    """The sprite's pixels about a hole here; what it does to others is below any rounding."""
    left, top = int(x + _CENTRE) - _NEAR, int(y + _CENTRE) - _NEAR
    return np.s_[top : top + 2 * _NEAR, left : left + 2 * _NEAR]


def _hole_centres() -> list[tuple[float, float]]:
    angles = (np.arange(_HOLES) + 0.25) * (2 * np.pi / _HOLES)
    return [(_HOLE_CIRCLE * np.cos(a), _HOLE_CIRCLE * np.sin(a)) for a in angles]


def _ink() -> Map:
    """The marking, set along a circle between hub and holes."""
    strip = np.zeros((64, 1100), np.uint8)
    cv2.putText(
        strip, "ATAC  F-68 H7", (10, 46), cv2.FONT_HERSHEY_DUPLEX, 1.35, 255, 3, cv2.LINE_AA
    )
    cv2.putText(strip, "LOT 2247 A", (640, 46), cv2.FONT_HERSHEY_DUPLEX, 1.35, 255, 3, cv2.LINE_AA)
    _, _, radius, angle = _polar()
    along = (np.mod(angle + 1.1 * np.pi, 2 * np.pi) / (2 * np.pi) * strip.shape[1]).astype(
        np.float32
    )
    across = ((_PRINT + 16 - radius) * 2).astype(np.float32)
    ink = cv2.remap(strip, along, across, cv2.INTER_AREA)
    return _share(ink)


def _share(grey: npt.NDArray[Any]) -> Map:
    """Grey values 0 … 255 as 0 … 1."""
    return np.asarray(grey / 255, dtype=np.float32)


def _rgb(bright: npt.NDArray[Any], tint: tuple[float, float, float]) -> Pixels:
    rgb = np.empty((*bright.shape, 3), np.uint8)
    for channel, share in enumerate(np.array(tint, np.float32)):
        coloured = bright * share
        np.clip(coloured, 0, 255, out=coloured)
        rgb[..., channel] = coloured.round(out=coloured)
    return rgb


def _belt(rng: Generator) -> Pixels:
    """A woven rubber belt, longer than the picture; pictures cut a window out of it."""
    shape = (HEIGHT, WIDTH + 512)
    weave = 3.0 * np.sin(np.arange(shape[1]) * (2 * np.pi / 6))[None, :]
    weave = weave + 3.0 * np.sin(np.arange(shape[0]) * (2 * np.pi / 6))[:, None]
    cloud = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), 24) * 110
    fine = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), 0.8) * 5
    bright = 58 + weave + cloud + fine
    return _rgb(bright, (0.86, 1.0, 0.96))


def _rails(rng: Generator) -> Pixels:
    """Brushed guide rails: the top and bottom `_RAIL` rows of the picture."""
    rough = rng.normal(0, 1, (HEIGHT, WIDTH))
    near = 2 * _RAIL  # what is farther from a rail does not reach it
    both = [
        cv2.GaussianBlur(rows.astype(np.float32), (0, 0), sigmaX=18, sigmaY=0.6)
        for rows in (rough[:near], rough[-near:])
    ]
    brushed = np.vstack([both[0][:_RAIL], both[1][-_RAIL:]])
    depth = np.minimum(np.arange(2 * _RAIL), np.arange(2 * _RAIL)[::-1]).astype(np.float32)
    profile = 120 + 40 * np.exp(-(((depth - 12) / 5) ** 2)) - 95 * (depth > _RAIL - 5)
    bright = profile[:, None] + brushed * 60
    return _rgb(bright, (1.0, 1.0, 1.0))


def _shadow() -> Pixels:
    x, y, _, _ = _polar()
    dark = cv2.GaussianBlur(_below(np.hypot(x - 7, y - 9), _RIM), (0, 0), 7)
    return _rgb(255 * (1 - 0.62 * dark), (1.0, 1.0, 1.0))


def _light() -> Pixels:
    """One lamp, up left: brightest there, falling off to the corners."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    fall = 1 - 0.30 * np.hypot((x - 0.36 * WIDTH) / WIDTH, (y - 0.30 * HEIGHT) / HEIGHT) ** 1.4
    return _rgb(255 * fall, (1.0, 1.0, 1.0))


def _grain(rng: Generator) -> npt.NDArray[np.int16]:
    """Sensor noise, σ = 2.2 grey levels, larger than a picture so that it can be shifted."""
    return rng.normal(0, 2.2, (HEIGHT + _SPARE, WIDTH + _SPARE, 3)).round().astype(np.int16)


def _on_face(rng: Generator, inner: float, outer: float) -> tuple[int, int]:
    """A random sprite pixel whose distance from the centre is `inner … outer`."""
    angle = rng.uniform(0, 2 * np.pi)
    radius = np.sqrt(rng.uniform(inner**2, outer**2))
    return int(_CENTRE + radius * np.cos(angle)), int(_CENTRE + radius * np.sin(angle))


def _tint(rgba: Rgba, amount: npt.NDArray[Any], colour: tuple[int, int, int]) -> None:
    """Blend `colour` over the sprite, `amount` 0 … 1 per pixel, where `amount` is not zero."""
    rows = np.flatnonzero(amount.any(axis=1))
    columns = np.flatnonzero(amount.any(axis=0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    share = amount[window][..., None]
    below = rgba[window][..., :3]
    rgba[window][..., :3] = (below * (1 - share) + np.array(colour) * share).astype(np.uint8)


def _blob(rng: Generator, centre: tuple[int, int], size: float) -> Map:
    """An irregular round patch, 0 … 1, about `size` pixels across, with a soft ragged edge."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    wobble = sum(
        rng.uniform(0.04, 0.22) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
        for k in range(1, 5)
    )
    radii = size / 2 * (1 + wobble)
    outline = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1) + centre
    patch = np.zeros((_SIDE, _SIDE), np.uint8)
    cv2.fillPoly(patch, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return _share(patch)


def _soil(rng: Generator, rgba: Rgba, specks: int) -> None:
    """Dust and a faint smudge: a good part may have them."""
    for _ in range(int(rng.integers(0, specks + 1))):
        tone = int(rng.choice([96, 200]))
        cv2.circle(rgba, _on_face(rng, 50, 160), 1, (tone, tone, tone, 255), -1, cv2.LINE_AA)
    if rng.random() < 0.3:
        size = rng.uniform(40, 90)
        smudge = cv2.GaussianBlur(_blob(rng, _on_face(rng, 60, 120), size), (0, 0), 9)
        _tint(rgba, smudge * np.float32(0.10) * _face(), (90, 90, 95))


@functools.cache
def _face() -> Map:
    """Where the sprite shows the part's metal: 1, elsewhere 0."""
    x, y, radius, _ = _polar()
    metal = _below(radius, _RIM) * (1 - _below(radius, _BORE))
    for hole_x, hole_y in _hole_centres():
        metal *= 1 - _below(np.hypot(x - hole_x, y - hole_y), _HOLE)
    return np.asarray(metal, dtype=np.float32)


def _scratch(rng: Generator, rgba: Rgba, mask: Pixels) -> None:
    length, width = rng.uniform(28, 120), int(rng.integers(1, 3))
    heading, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
    steps = np.linspace(0, 1, 12)
    headings = heading + bend * steps
    track = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], axis=1), axis=0) * length / 12
    # Moved so that its middle lies on the face: a long one may run out over an edge.
    track += np.array(_on_face(rng, 62, 140)) - track[6]
    line = [np.round(track * 16).astype(np.int32)]
    drawn = np.zeros((_SIDE, _SIDE), np.uint8)
    cv2.polylines(drawn, line, isClosed=False, color=255, thickness=width, lineType=8, shift=4)
    lit = _share(cv2.GaussianBlur(drawn, (3, 3), 0.7)) * _face()
    burr = np.roll(lit, (1, 1 + width // 2), axis=(0, 1)) * _face()
    _tint(rgba, burr * np.float32(0.75), (48, 48, 52))
    _tint(rgba, lit * np.float32(0.9), (240, 242, 248))
    mask[np.maximum(lit, burr) > 0.2] = 255


def _chip(rng: Generator, rgba: Rgba, mask: Pixels) -> None:
    size, angle = rng.uniform(16, 52), rng.uniform(0, 2 * np.pi)
    centre = (
        int(_CENTRE + (_RIM - 1) * np.cos(angle)),
        int(_CENTRE + (_RIM - 1) * np.sin(angle)),
    )
    gone = _blob(rng, centre, size)
    edge = np.clip(cv2.GaussianBlur(gone, (0, 0), 2.2) * 2, 0, 1) * _face()
    _tint(rgba, edge * np.float32(0.7), (214, 216, 222))
    mask[(gone > 0.5) & (rgba[..., 3] > 127)] = 255
    rgba[..., 3] = (rgba[..., 3] * (1 - gone)).astype(np.uint8)


def _dent(rng: Generator, rgba: Rgba, mask: Pixels) -> None:
    spread = rng.uniform(5, 14)
    x, y = (
        grid - at
        for grid, at in zip(
            np.meshgrid(np.arange(_SIDE), np.arange(_SIDE)),
            _on_face(rng, 58, 150),
            strict=True,
        )
    )
    bowl = np.exp(-(x**2 + y**2) / (2 * spread**2))
    slope = (x * 0.62 + y * 0.78) / spread * bowl * _face()  # seen from the lamp
    change = (slope * rng.uniform(110, 150) - 22 * bowl * _face())[..., None]
    rgba[..., :3] = np.clip(rgba[..., :3] + change, 0, 255).astype(np.uint8)
    mask[np.abs(change[..., 0]) > 12] = 255


def _stain(rng: Generator, rgba: Rgba, mask: Pixels) -> None:
    patch = cv2.GaussianBlur(_blob(rng, _on_face(rng, 66, 138), rng.uniform(16, 64)), (0, 0), 1.6)
    rim = np.clip(patch - cv2.GaussianBlur(patch, (0, 0), 4), 0, 1)
    amount = (patch * np.float32(rng.uniform(0.45, 0.7)) + rim * np.float32(0.5)) * _face()
    brown = (94, 62, 30) if rng.random() < 0.6 else (44, 40, 38)
    _tint(rgba, np.clip(amount, 0, 1), brown)
    mask[amount > 0.15] = 255


def _missing_hole(rng: Generator, rgba: Rgba, mask: Pixels) -> None:
    x, y = _hole_centres()[int(rng.integers(_HOLES))]
    reach = _HOLE + 6
    cover = np.zeros((_SIDE, _SIDE), np.uint8)
    cv2.circle(cover, (round(_CENTRE + x), round(_CENTRE + y)), round(reach), 255, -1)
    rgba[cover > 0] = _blank()[cover > 0]
    mask[cover > 0] = 255


def _print_smear(rng: Generator, rgba: Rgba, mask: Pixels) -> None:
    ink = _scene().ink
    printed = np.argwhere(ink > 0.5)
    row, column = printed[int(rng.integers(len(printed)))]
    region = cv2.GaussianBlur(_blob(rng, (int(column), int(row)), rng.uniform(44, 90)), (0, 0), 3)
    length = int(rng.integers(13, 27))
    stroke = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    heading = rng.uniform(0, 2 * np.pi)
    end = (
        round(length + length * np.cos(heading)),
        round(length + length * np.sin(heading)),
    )
    cv2.line(stroke, (length, length), end, 1.0, 2, cv2.LINE_AA)
    dragged = cv2.filter2D(ink, -1, stroke / stroke.sum()) * 1.8
    amount = np.clip(dragged, 0, 0.82) * region * _face()
    _tint(rgba, amount, (40, 42, 48))
    mask[amount > 0.2] = 255


_Draw = Callable[[Generator, Rgba, Pixels], None]
_DRAW: Final[dict[str, _Draw]] = {
    "scratch": _scratch,
    "chip": _chip,
    "dent": _dent,
    "stain": _stain,
    "missing_hole": _missing_hole,
    "print_smear": _print_smear,
}
