"""The demo's page: what the line saw, where it looked closer, and how sure it was."""

import math
from pathlib import Path
from typing import Final

from agent.demo import Comparison, DemoSummary, Shown
from engine.bundle import replace_file
from engine.errors import ConfigurationError
from engine.pages.charts import histogram_svg
from engine.pages.rendering import render
from engine.picture import annotated, boxed, reduced

_SIDE: Final = 480
"""Pictures are reduced to this, in pixels."""

_HEADINGS: Final = {
    "caught": "Defective parts that raised an alarm",
    "missed": "Defective parts that passed",
    "false_alarm": "Good parts that raised an alarm",
    "passed": "Good parts that passed",
}
_WRONG: Final = {"missed", "false_alarm"}
NEXT_STEPS: Final = (
    ("Train on your own images", "agent train --data parts --out model --backbone-weights FILE"),
    ("Set the threshold with good parts", "agent calibrate --bundle model --good later/good"),
    ("Inspect what your camera sees", "agent run --config agent.yaml"),
)
"""What comes after the demo: words, and the command."""


def write_demo_report(path: Path, summary: DemoSummary, comparison: Comparison) -> None:
    """Write one HTML file that needs no other; makes its folder."""
    good, defective = list(comparison.good_scores), list(comparison.defective_scores)
    threshold = summary.threshold
    # One scale for all bars, so that they compare; the threshold is its middle.
    farthest = max(
        [2.0, *(abs(math.log(score / threshold)) for score in (*good, *defective) if score > 0)]
    )
    html = render(
        "demo.html.j2",
        title="ATAC Agent: demo",
        statement=_statement(summary),
        figures=_figures(summary),
        histogram=(
            histogram_svg(
                good,
                defective,
                threshold,
                logarithmic=min(threshold, *good, *defective) > 0,
            )
            if good
            else None
        ),
        threshold=threshold,
        next_steps=NEXT_STEPS,
        sections=[
            {
                "heading": heading,
                "count": comparison.counts[outcome],
                "wrong": outcome in _WRONG,
                "parts": parts,
            }
            for outcome, heading in _HEADINGS.items()
            if (
                parts := [
                    _part(one, farthest) for one in comparison.shown if one.outcome == outcome
                ]
            )
        ],
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, html)
    except OSError as error:
        raise ConfigurationError(
            "--report", str(path), f"cannot be written ({error.strerror}); name another file"
        ) from error


def _statement(summary: DemoSummary) -> str:
    return (
        f"{summary.caught} of {summary.caught + summary.missed} defective parts raised an alarm; "
        f"{summary.false_alarms} of {summary.false_alarms + summary.passed} good parts did. "
        f"{summary.alarms_received} of {summary.alarms_sent} alarms arrived over MQTT."
    )


def _figures(summary: DemoSummary) -> dict[str, str]:
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
    return figures


def _part(part: Shown, farthest: float) -> dict[str, object]:
    frame, found, verdict = part.part.frame, part.part.inspection, part.part.ended
    assert frame is not None
    assert found is not None
    box, threshold = found.box, verdict.threshold
    crop = frame.pixels[box.top : box.bottom, box.left : box.right]
    return {
        "id": part.part.part_id,
        "state": verdict.state,
        "truth": "good" if part.truth == "good" else f"defective: {part.truth.replace('_', ' ')}",
        "score": found.score,
        "place": _place(found.score, threshold, farthest),
        "pictures": {
            "the frame": boxed(frame.pixels, found, threshold, max_side=_SIDE),
            "the box": reduced(crop, _SIDE),
            "score map": annotated(frame.pixels, found, threshold, max_side=_SIDE),
        },
    }


def _place(score: float, threshold: float, farthest: float) -> float:
    """How long the bar of a score is, 0 to 1: the threshold is at a half, ratios are lengths."""
    ratio = math.log(score / threshold) if score > 0 else -farthest
    return min(1.0, max(0.0, 0.5 + ratio / (2 * farthest)))
