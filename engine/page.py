"""Reports as one HTML file: no script, no other file, light and dark, phone and screen."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np

COLOURS: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --faint: #b9c0ca;
  --ground: #f6f7f9; --card: #fff; --edge: #dfe3e8; --good: #2f6db5; --defective: #c07a16;
  --wrong: #cf2e2e; --warn: #fff4d6; --warn-edge: #d9a521; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa4b2; --faint: #4b5563;
  --ground: #12161c; --card: #1b2129; --edge: #2d3540; --good: #6aa5ea; --defective: #e2a548;
  --wrong: #ff6b61; --warn: #362c12; --warn-edge: #b58a1c; } }
"""
"""CSS: the names of all colours, for light and dark."""

_STYLE: Final = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.1rem; font-weight: 600; color: var(--soft); margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.statement { font-size: 1.35rem; line-height: 1.4; margin: 0 0 1rem; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-edge); margin: .6rem 0;
  padding: .6rem .9rem; border-radius: 4px; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  padding: 1rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem 1.2rem;
  margin: 0; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dd.figure { font-size: 1.3rem; font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  gap: .8rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  overflow: hidden; }
figure.wrong { border: 2px solid var(--wrong); }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .45rem .6rem; font-size: .85rem; overflow-wrap: anywhere; }
figcaption b { font-variant-numeric: tabular-nums; }
figure.wrong figcaption b { color: var(--wrong); }
.views { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; align-items: end;
  font-size: .85rem; color: var(--soft); }
.views span { display: block; padding: .3rem .6rem 0; }
.pictures.wide { grid-template-columns: 1fr; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--edge); }
th { color: var(--soft); font-size: .85rem; font-weight: 400; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; }
td.wrong { color: var(--wrong); font-weight: 600; }
li { margin: .4rem 0; }
@media (max-width: 38rem) { .views { grid-template-columns: repeat(2, 1fr); }
  table, th { font-size: .75rem; } th, td { padding: .35rem .2rem; } }
.soft { color: var(--soft); font-size: .9rem; }
svg text { font-size: 14px; }
@media (max-width: 38rem) { svg text { font-size: 24px; } }
@media print { body { background: none; } .card, figure { break-inside: avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document; `title` is text, `body` is HTML.

    Classes with a look: `statement`, `warning`, `card`, `pictures` (of `figure`, `figure.wrong`),
    `pictures wide` (of figures that hold `views`, four beside each other), `soft`, `dl` with
    `dd.figure`, and `table` with `td.wrong`.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{COLOURS}{_STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def bins(values: Sequence[float], threshold: float, *, about: int) -> list[float]:
    """Edges of about `about` equal bins that hold all `values`, one edge exactly at `threshold`.

    Bins are open on the left and closed on the right, as verdicts are: the threshold itself
    still passes. At least one bin lies on each side of the threshold.
    """
    low, high = min([*values, threshold]), max([*values, threshold])
    # Bins finer than the numbers themselves would have no width.
    step = max((high - low) / about, 1e-9 * max(abs(low), abs(high))) or 1.0
    # The leftmost edge is outside its bin, so it must lie below the lowest value, rounding or not.
    below = math.floor((threshold - low) / step + 1e-6) + 1
    above = max(1, math.ceil((high - threshold) / step))
    edges = [threshold + i * step for i in range(-below, above + 1)]
    edges[-1] = max(edges[-1], high)
    return edges


def counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """How many `values` lie in each bin `(edges[i], edges[i + 1]]`."""
    found = np.searchsorted(np.asarray(edges), np.asarray(values, dtype=np.float64), side="left")
    return [int(count) for count in np.bincount(found, minlength=len(edges))[1 : len(edges)]]


_LEFT, _RIGHT, _TOP, _ROW, _GAP = 60, 784, 66, 130, 46


def histogram_svg(
    good: Sequence[float],
    defective: Sequence[float],
    threshold: float,
    *,
    learnt: Sequence[float] = (),
    about: int = 48,
) -> str:
    """Scores of good parts above those of defective ones, on one axis, cut by the threshold.

    An `<svg>` element that scales with the page. Each row has its own height scale, written at
    its left. What lands on the wrong side of the threshold is drawn in the colour of mistakes.
    Defective parts that were `learnt` from have a row of their own, the last.
    """
    edges = bins([*good, *defective, *learnt], threshold, about=about)
    rows = [("good", good), ("defective", defective), ("defective, learnt from", learnt)]
    rows = [(label, values) for label, values in rows if values or label == "good"]
    bottom = _TOP + len(rows) * (_ROW + _GAP) - _GAP
    cut = _x(threshold, edges)
    # Words go where the line is not.
    anchor, aside = ("start", "end") if cut < (_LEFT + _RIGHT) / 2 else ("end", "start")
    beside = _RIGHT if aside == "end" else _LEFT
    parts = [f"<title>Scores of {len(good)} good and {len(defective)} defective parts</title>"]
    for row, (label, values) in enumerate(rows):
        base = _TOP + row * (_ROW + _GAP) + _ROW
        found = counts(values, edges)
        parts += _bars(label, found, edges, threshold, base)
        parts += (
            _line(_LEFT, base, _RIGHT, base, "--faint"),
            _text(_LEFT - 8, base, "0", "end"),
            _text(_LEFT - 8, base - _ROW + 12, str(max(found)), "end"),
            _text(beside, base - _ROW - 12, f"{label}, n = {len(values)}", aside, bold=True),
        )
    parts += (
        _line(cut, 30, cut, bottom, "--ink", 'stroke-width="1.5" stroke-dasharray="5 3"'),
        _text(cut, 22, f"threshold {threshold:.4g}", anchor, bold=True),
    )
    for tick in _ticks(edges[0], edges[-1]):
        at = _x(tick, edges)
        parts += (
            _line(at, bottom, at, bottom + 6, "--faint"),
            _text(at, bottom + 26, f"{tick:g}", "middle"),
        )
    parts.append(_text((_LEFT + _RIGHT) / 2, bottom + 54, "score", "middle"))
    return (
        f'<svg viewBox="0 0 800 {bottom + 62}" width="100%" role="img" '
        f'fill="var(--ink)">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one row of `curves_svg` shows: `points` (x, y), x ascending, every y 0 or more."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def curves_svg(
    curves: Sequence[Curve], *, end: float, axis: str, mark: tuple[float, str] | None = None
) -> str:
    """Curves above each other over one axis from 0 to `end` of whole numbers, called `axis`.

    An `<svg>` element that scales with the page. Each row has its own height scale, from 0 to its
    highest point, which is written at its left. `mark` is a place on the axis and what it is.
    """
    edges = (0.0, end)
    bottom = _TOP + len(curves) * (_ROW + _GAP) - _GAP
    parts = [f"<title>{escape(' and '.join(curve.label for curve in curves))}</title>"]
    for row, curve in enumerate(curves):
        base = _TOP + row * (_ROW + _GAP) + _ROW
        highest = max((y for _, y in curve.points), default=0.0) or 1.0
        places = [(_x(x, edges), base - y / highest * _ROW) for x, y in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts += (
            _line(_LEFT, base - _ROW, _RIGHT, base - _ROW, "--faint", 'stroke-dasharray="2 4"'),
            _line(_LEFT, base, _RIGHT, base, "--faint"),
            _text(_LEFT, base - _ROW - 12, f"{highest:.3g}", "start"),
            _text(_LEFT - 8, base, "0", "end"),
            _text(_RIGHT, base - _ROW - 12, curve.label, "end", bold=True),
            f'<polyline fill="none" stroke="var(--good)" stroke-width="2.5" points="{path}"/>',
        )
        if curve.dots:
            parts += (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--good)">'
                f"<title>{axis} {at:g}: {value:.4g}</title></circle>"
                for (x, y), (at, value) in zip(places, curve.points, strict=True)
            )
    if mark is not None:
        at, words = _x(mark[0], edges), mark[1]
        parts += (
            _line(at, 30, at, bottom, "--ink", 'stroke-width="1.5" stroke-dasharray="5 3"'),
            _text(at, 22, words, "start" if at < (_LEFT + _RIGHT) / 2 else "end"),
        )
    for tick in (tick for tick in _ticks(*edges) if tick.is_integer()):
        at = _x(tick, edges)
        parts += (
            _line(at, bottom, at, bottom + 6, "--faint"),
            _text(at, bottom + 26, f"{tick:g}", "middle"),
        )
    parts.append(_text((_LEFT + _RIGHT) / 2, bottom + 54, axis, "middle"))
    return (
        f'<svg viewBox="0 0 800 {bottom + 62}" width="100%" role="img" '
        f'fill="var(--ink)">{"".join(parts)}</svg>'
    )


def _bars(
    label: str, found: Sequence[int], edges: Sequence[float], threshold: float, base: int
) -> Iterator[str]:
    for count, start, stop in zip(found, edges, edges[1:], strict=False):
        if count:
            height = max(2.0, count / max(found) * _ROW)
            left, right = _x(start, edges), _x(stop, edges)
            kind = "good" if label == "good" else "defective"
            wrong = (start >= threshold) == (kind == "good")
            yield (
                f'<rect x="{left + 0.5:.1f}" y="{base - height:.1f}" '
                f'width="{max(1.0, right - left - 1):.1f}" height="{height:.1f}" '
                f'fill="var({"--wrong" if wrong else f"--{kind}"})">'
                f"<title>{count} {label}, score {start:.4g} to {stop:.4g}</title></rect>"
            )


def _x(score: float, edges: Sequence[float]) -> float:
    return _LEFT + (score - edges[0]) / (edges[-1] - edges[0]) * (_RIGHT - _LEFT)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, extra: str = "") -> str:
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="var({colour})" {extra}/>'


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`: at least four, at most eleven."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (5, 2, 1) if (high - low) / (power * factor) >= 4)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{i * step:.6g}") for i in range(first, last + 1)]
