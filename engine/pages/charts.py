"""Charts of the pages, as `<svg>` elements whose colours are those of `colours.css`."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape


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
    logarithmic: bool = False,
) -> Markup:
    """Scores of good parts above those of defective ones, on one axis, cut by the threshold.

    An `<svg>` element that scales with the page. Each row has its own height scale, written at
    its left. What lands on the wrong side of the threshold is drawn in the colour of mistakes.

    Args:
        good: Scores of good parts.
        defective: Scores of defective parts that training did not learn from.
        threshold: Where verdicts change.
        learnt: Scores of defective parts that training learnt from; they have the last row.
        about: Roughly how many bins the axis has.
        logarithmic: Whether the axis is; all scores are then above 0.
    """
    on_axis: Callable[[float], float] = math.log10 if logarithmic else float
    rows = [("good", good), ("defective", defective), ("defective, learnt from", learnt)]
    rows = [
        (label, [on_axis(score) for score in values])
        for label, values in rows
        if values or label == "good"
    ]
    at = on_axis(threshold)
    edges = bins([score for _, values in rows for score in values], at, about=about)
    bottom = _TOP + len(rows) * (_ROW + _GAP) - _GAP
    cut = _x(at, edges)
    # Words go where the line is not.
    anchor, aside = ("start", "end") if cut < (_LEFT + _RIGHT) / 2 else ("end", "start")
    beside = _RIGHT if aside == "end" else _LEFT
    parts = [f"<title>Scores of {len(good)} good and {len(defective)} defective parts</title>"]
    for row, (label, values) in enumerate(rows):
        base = _TOP + row * (_ROW + _GAP) + _ROW
        found = counts(values, edges)
        parts += _bars(label, found, edges, at, base, logarithmic=logarithmic)
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
    for place, score in _log_ticks(edges) if logarithmic else _plain_ticks(edges):
        x = _x(place, edges)
        parts += (
            _line(x, bottom, x, bottom + 6, "--faint"),
            _text(x, bottom + 26, f"{score:g}", "middle"),
        )
    parts.append(_text((_LEFT + _RIGHT) / 2, bottom + 54, "score", "middle"))
    return _svg(parts, bottom + 62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one row of `curves_svg` shows: `points` (x, y), x ascending, every y 0 or more."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def curves_svg(
    curves: Sequence[Curve], *, end: float, axis: str, mark: tuple[float, str] | None = None
) -> Markup:
    """Curves above each other over one axis from 0 to `end` of whole numbers, called `axis`.

    An `<svg>` element that scales with the page. Each row has its own height scale, from 0 to its
    highest point, which is written at its left.

    Args:
        curves: The rows, from the top.
        end: The last number of the axis.
        axis: What the axis counts.
        mark: A place on the axis, and what it is.
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
                f"<title>{escape(axis)} {at:g}: {value:.4g}</title></circle>"
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
    return _svg(parts, bottom + 62)


def _svg(parts: Iterable[str], height: int) -> Markup:
    """Safe, since every text in `parts` was escaped by `_text` or is a number."""
    return Markup(  # noqa: S704
        f'<svg viewBox="0 0 800 {height}" width="100%" role="img" '
        f'fill="var(--ink)">{"".join(parts)}</svg>'
    )


def _bars(
    label: str,
    found: Sequence[int],
    edges: Sequence[float],
    threshold: float,
    base: int,
    *,
    logarithmic: bool,
) -> Iterator[str]:
    for count, start, stop in zip(found, edges, edges[1:], strict=False):
        if count:
            height = max(2.0, count / max(found) * _ROW)
            left, right = _x(start, edges), _x(stop, edges)
            kind = "good" if label == "good" else "defective"
            wrong = (start >= threshold) == (kind == "good")
            low, high = (10**start, 10**stop) if logarithmic else (start, stop)
            yield (
                f'<rect x="{left + 0.5:.1f}" y="{base - height:.1f}" '
                f'width="{max(1.0, right - left - 1):.1f}" height="{height:.1f}" '
                f'fill="var({"--wrong" if wrong else f"--{kind}"})">'
                f"<title>{count} {label}, score {low:.4g} to {high:.4g}</title></rect>"
            )


def _x(score: float, edges: Sequence[float]) -> float:
    return _LEFT + (score - edges[0]) / (edges[-1] - edges[0]) * (_RIGHT - _LEFT)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, extra: str = "") -> str:
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="var({colour})" {extra}/>'


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _plain_ticks(edges: Sequence[float]) -> list[tuple[float, float]]:
    return [(tick, tick) for tick in _ticks(edges[0], edges[-1])]


def _log_ticks(edges: Sequence[float]) -> list[tuple[float, float]]:
    """Places and scores of 1, 2 and 5 times the powers of ten; of the powers alone where many."""
    low, high = edges[0], edges[-1]
    factors = (1, 2, 5) if high - low < 3 else (1,)
    scores = (
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in factors
    )
    return [(math.log10(score), score) for score in scores if low <= math.log10(score) <= high]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`: at least four, at most eleven."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (5, 2, 1) if (high - low) / (power * factor) >= 4)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{i * step:.6g}") for i in range(first, last + 1)]
