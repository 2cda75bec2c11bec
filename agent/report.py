"""The demo's page: what the line saw, where it looked closer, and how sure it was."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

from agent.demo import Comparison, DemoSummary, Shown
from engine.bundle import replace_file
from engine.errors import ConfigurationError
from engine.frame import Box, Inspection, Pixels
from engine.page import histogram_svg, page
from engine.picture import annotated, data_uri, reduced

_SIDE: Final = 480
"""Pictures are reduced to this, in pixels."""

_HEADINGS: Final = {
    "caught": "Defective parts that raised an alarm",
    "missed": "Defective parts that passed",
    "false_alarm": "Good parts that raised an alarm",
    "passed": "Good parts that passed",
}
_WRONG: Final = {"missed", "false_alarm"}


def write_demo_report(path: Path, summary: DemoSummary, comparison: Comparison) -> None:
    """Write one HTML file that needs no other; makes its folder."""
    html = page("ATAC Agent: demo", "\n".join(_body(summary, comparison)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, html.encode())
    except OSError as error:
        raise ConfigurationError(
            "--report", str(path), f"cannot be written ({error.strerror}); name another file"
        ) from error


def _body(summary: DemoSummary, comparison: Comparison) -> Iterator[str]:
    yield "<h1>ATAC Agent: demo with generated parts</h1>"
    yield f'<p class="statement">{escape(_statement(summary))}</p>'
    yield f'<div class="card"><dl>{"".join(_figures(summary))}</dl></div>'
    good, defective = list(comparison.good_scores), list(comparison.defective_scores)
    if good:
        yield "<h2>Scores</h2>"
        histogram = histogram_svg(good, defective, summary.threshold)
        yield f'<div class="card">{histogram}</div>'
    # One scale for all bars, so that they compare.
    full = max([2 * summary.threshold, *good, *defective])
    for outcome, heading in _HEADINGS.items():
        shown = [part for part in comparison.shown if part.outcome == outcome]
        if shown:
            of = comparison.counts[outcome]
            some = f" (the first {len(shown)} of {of})" if of > len(shown) else f" ({of})"
            yield f"<h2>{escape(heading + some)}</h2>"
            yield from (_part(part, full=full) for part in shown)
    yield (
        '<p class="soft">From left to right: the frame with the box that the second pass looked '
        "into, that box, and the first pass's score map. Its colours have one scale in all "
        "pictures: none below half the threshold, the hottest at twice the threshold. "
        "Without a box the network found nothing to look closer at.</p>"
    )


def _statement(summary: DemoSummary) -> str:
    return (
        f"{summary.caught} of {summary.caught + summary.missed} defective parts raised an alarm; "
        f"{summary.false_alarms} of {summary.false_alarms + summary.passed} good parts did. "
        f"{summary.alarms_received} of {summary.alarms_sent} alarms arrived over MQTT."
    )


def _figures(summary: DemoSummary) -> Iterator[str]:
    figures = {
        "Parts": str(summary.parts),
        "Parts per second": f"{summary.parts_per_second:.1f}",
        "Looked at twice": str(summary.looked_at_twice),
        "Threshold": f"{summary.threshold:.4g}",
    }
    if summary.latency is not None:
        figures["Frame to verdict, median"] = f"{summary.latency.p50_ms:.1f} ms"
        figures["Frame to verdict, 99 %"] = f"{summary.latency.p99_ms:.1f} ms"
    if summary.first_alarm_s is not None:
        figures["First alarm after the start"] = f"{summary.first_alarm_s:.1f} s"
    for name, value in figures.items():
        yield f'<div><dt>{escape(name)}</dt><dd class="figure">{escape(value)}</dd></div>'


def _part(part: Shown, *, full: float) -> str:
    verdict = part.verdict
    frame, found = verdict.frame, verdict.inspection
    assert frame is not None
    assert found is not None
    box = found.box
    crop = frame.pixels[box.top : box.bottom, box.left : box.right]
    pictures = [
        _framed(frame.pixels, found, verdict.threshold),
        _picture(crop, "the box"),
        _picture(annotated(frame.pixels, found, verdict.threshold, max_side=_SIDE), "score map"),
    ]
    what = "good" if part.truth == "good" else f"defective: {part.truth.replace('_', ' ')}"
    colour = "var(--wrong)" if part.outcome in _WRONG else "var(--edge)"
    return (
        f'<section class="card" style="margin:0 0 .8rem;border-color:{colour}">'
        f"<p style='margin:0 0 .6rem'><b>{escape(verdict.trigger.part_id)}</b> "
        f"{verdict.state}, in truth {escape(what)}</p>"
        '<div style="display:grid;grid-template-columns:4fr 3fr 4fr;gap:.6rem;align-items:center">'
        f"{''.join(pictures)}</div>{_bar(found.score, verdict.threshold, full)}</section>"
    )


def _framed(pixels: Pixels, found: Inspection, threshold: float) -> str:
    """The frame; the box is drawn by the page, so the picture stays as the camera gave it."""
    style = ""
    if found.zoomed:
        colour = "--wrong" if found.score > threshold else "--good"
        style = f"border:2px solid var({colour});{_place(found.box, Box.around(pixels))}"
    return (
        f'<div style="position:relative">{_picture(reduced(pixels, _SIDE), "the frame")}'
        f'<div style="position:absolute;{style}"></div></div>'
    )


def _place(box: Box, whole: Box) -> str:
    shares: Sequence[tuple[str, float]] = (
        ("left", box.left / whole.width),
        ("top", box.top / whole.height),
        ("width", box.width / whole.width),
        ("height", box.height / whole.height),
    )
    return ";".join(f"{side}:{share:.2%}" for side, share in shares)


def _picture(pixels: Pixels, alt: str) -> str:
    style = "display:block;width:100%;height:auto;border-radius:4px"
    return f'<img alt="{alt}" style="{style}" src="{data_uri(reduced(pixels, _SIDE))}">'


def _bar(score: float, threshold: float, full: float) -> str:
    """The score as a bar on a scale of 0 … `full`, with a mark at the threshold."""
    colour = "--defective" if score > threshold else "--good"
    return (
        '<div style="position:relative;height:.6rem;margin:.7rem 0 .3rem;border-radius:3px;'
        'background:var(--edge)">'
        f'<div style="height:100%;border-radius:3px;background:var({colour});'
        f'width:{score / full:.1%}"></div>'
        '<div style="position:absolute;top:-.2rem;height:1rem;width:2px;background:var(--ink);'
        f'left:{threshold / full:.1%}"></div></div>'
        f'<p class="soft" style="margin:0">score <b>{score:.2f}</b> against '
        f"threshold {threshold:.2f}</p>"
    )
