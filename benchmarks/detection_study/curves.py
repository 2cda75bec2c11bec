"""Why detection goals are missed: resolution, backbone, known defects and good parts, as curves.

    python -m benchmarks.detection_study.curves docs/pictures/detection-goals.svg

From the kept scores of `benchmarks.detection_study.choice`, on validation: good images of the pool,
each by a bank without it, against known defects that were left out. Nothing of the test is used.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.detection_study.choice import _KEPT, draws_of, scores_of, validated
from calibration.price import at_promise

_FOUND, _AUROC = 1, 0
_GOALS: Final = {
    "mvtec_pill": (0.980, 0.93),
    "magnetic_tile": (0.975, 0.85),
    "mvtec_bottle": (1.0, 1.0),
    "brain_mri": (0.960, None),
    "head_ct": (0.990, None),
}
"""With ten known defects: AUROC, and the share found at 3 %; of scans there are too few for 3 %."""
_COLOURS: Final = ("#2b6cb0", "#c05621", "#2f855a", "#97266d", "#4a5568")
_RESOLUTION: Final = {"224 px": "224", "320 px": "320", "448 px": "448"}
_BACKBONE: Final = {"ResNet-50": "224", "DenseNet-201": "DenseNet-201"}
_KNOWN: Final = {
    "none": "224",
    "one": "heads 1 known, w 0.25",
    "ten": "heads 10 known, w 0.25",
}
_GOOD_PARTS: Final = (20, 40, 60, 80, 100, 130, 160, 200, 260)
_DRAWS: Final = 60
_CONFIDENCE: Final = 0.95

_WIDTH, _HEIGHT, _LEFT, _TOP = 250, 190, 46, 34
"""Of a panel, and where its plot begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot: `places` on the x axis, and for each set its values there, None where not known."""

    title: str
    places: tuple[str, ...]
    values: Mapping[str, Sequence[float | None]]
    goals: Mapping[str, float | None]
    lowest: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    kept = json.loads(_KEPT.read_text(encoding="utf-8"))["sets"]
    found = panels(kept, _FOUND, "found at 3 %", 0.0)
    found.append(by_good_parts(kept))
    rows = [found, panels(kept, _AUROC, "AUROC", 0.75)]
    for panel in (each for row in rows for each in row):
        print(panel.title, panel.places)
        for name, values in panel.values.items():
            shown = " ".join("–" if each is None else f"{each:.3f}" for each in values)
            print(f"  {name:14s} {shown}")
    options.picture.write_text(drawn(rows), encoding="utf-8")


def panels(kept: Mapping[str, Any], figure: int, what: str, lowest: float) -> list[Panel]:
    """A panel each for resolution, backbone and known defects, the mean over draws."""

    def mean(one: dict[str, Any], option: str) -> float | None:
        rows = [validated(one, option, draw)[figure] for draw in draws_of(one, option)]
        return float(np.mean(rows)) if rows else None

    shown = [name for name in _GOALS if figure == _AUROC or _GOALS[name][_FOUND] is not None]
    return [
        Panel(
            title=f"{title}: {what}",
            places=tuple(options),
            values={n: [mean(kept[n], option) for option in options.values()] for n in shown},
            goals={name: _GOALS[name][figure] for name in shown},
            lowest=lowest,
        )
        for title, options in (
            ("views", _RESOLUTION),
            ("backbone", _BACKBONE),
            ("known defects", _KNOWN),
        )
    ]


def by_good_parts(kept: Mapping[str, Any]) -> Panel:
    """What fewer good parts find: some of the pool, at the promise that these carry, up to 3 %."""
    rng = np.random.default_rng(0)
    values: dict[str, list[float | None]] = {}
    for name, one in kept.items():
        scores = scores_of(one, "224", 0)
        good = scores[one["draws"][0]["pool"]]
        draws = one["draws"] if one["same_test"] else one["draws"][:1]
        defects = scores[sorted({row for each in draws for row in each["known"]})]
        values[name] = [
            None if count > len(good) else _mean_found(good, defects, count, rng)
            for count in _GOOD_PARTS
        ]
    return Panel(
        title="good parts: found",
        places=tuple(str(count) for count in _GOOD_PARTS),
        values=values,
        goals={},
        lowest=0.0,
    )


def _mean_found(
    good: "np.ndarray[Any, Any]",
    defects: "np.ndarray[Any, Any]",
    count: int,
    rng: np.random.Generator,
) -> float:
    return float(
        np.mean(
            [
                at_promise(
                    rng.permutation(good)[:count].tolist(),
                    (),
                    defects.tolist(),
                    max_false_reject=0.03,
                    confidence=_CONFIDENCE,
                ).found
                for _ in range(_DRAWS)
            ]
        )
    )


def drawn(rows: Sequence[Sequence[Panel]]) -> str:
    """The panels as one SVG picture that needs no other file."""
    width, height = _WIDTH * max(map(len, rows)), (_HEIGHT + 20) * len(rows) + 30
    parts = [
        _panel(panel, column * _WIDTH, row * (_HEIGHT + 20))
        for row, each in enumerate(rows)
        for column, panel in enumerate(each)
    ]
    for place, (name, colour) in enumerate(zip(_GOALS, _COLOURS, strict=True)):
        x = _LEFT + place * 150
        parts.append(
            f'<circle cx="{x}" cy="{height - 14}" r="5" fill="{colour}"/>'
            f'<text x="{x + 10}" y="{height - 10}">{escape(name)}</text>'
        )
    parts.append(f'<text x="{_LEFT + 760}" y="{height - 10}">dashed: goal with ten known</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" fill="#1a202c">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panel(panel: Panel, left: int, top: int) -> str:
    last = max(1, len(panel.places) - 1)
    span, tall = _WIDTH - _LEFT - 18, _HEIGHT - _TOP - 24

    def x(place: int) -> float:
        return left + _LEFT + span * place / last

    def y(value: float) -> float:
        return top + _TOP + tall * (1 - (value - panel.lowest) / (1 - panel.lowest))

    ticks = np.linspace(panel.lowest, 1, 6)
    parts = [
        f'<text x="{left + _LEFT}" y="{top + 18}" font-weight="600">{panel.title}</text>',
        *(
            f'<path d="M{x(0):.1f} {y(tick):.1f}H{x(last):.1f}" stroke="#e2e8f0"/>'
            f'<text x="{x(0) - 6:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>'
            for tick in ticks
        ),
        *(
            f'<text x="{x(place):.1f}" y="{top + _HEIGHT - 6}" text-anchor="middle">{label}</text>'
            for place, label in enumerate(panel.places)
        ),
    ]
    for name, colour in zip(_GOALS, _COLOURS, strict=True):
        values = panel.values.get(name, ())
        parts += _curve(values, x, y, colour)
        goal = panel.goals.get(name)
        if goal is not None and goal < 1:
            parts.append(
                f'<path d="M{x(0):.1f} {y(goal):.1f}H{x(last):.1f}" stroke="{colour}" '
                'stroke-dasharray="4 3"/>'
            )
    return "".join(parts)


def _curve(
    values: Sequence[float | None],
    x: Callable[[int], float],
    y: Callable[[float], float],
    colour: str,
) -> list[str]:
    points = [(x(place), y(each)) for place, each in enumerate(values) if each is not None]
    line = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
    dots = [f'<circle cx="{a:.1f}" cy="{d:.1f}" r="3" fill="{colour}"/>' for a, d in points]
    return [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


if __name__ == "__main__":
    main()
