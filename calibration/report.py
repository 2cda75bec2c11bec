"""A calibration in words, on a terminal and as one HTML page."""

from pathlib import Path
from typing import Final

from calibration.bound import upper_bound
from calibration.outlook import (
    Costs,
    deciding,
    drawn,
    found_by_type,
    headline,
    look_first,
    outlook_of,
    prices_text,
    promise,
)
from calibration.record import Calibration
from calibration.scores import Scores
from engine.bundle import replace_file
from engine.errors import CalibrationError
from engine.pages.charts import bins, counts, histogram_svg
from engine.pages.rendering import render
from engine.pages.text import counted, listed, percent, short

REPORT: Final = "calibration.html"
"""The page's name, beside `calibration.json` in the bundle's folder."""


def misses(calibration: Calibration) -> str:
    """What of the given defects the threshold lets pass, in one sentence; empty without defects."""
    missed, of = calibration.defective - calibration.detected, calibration.defective
    if not of:
        return ""
    if not missed:
        return f"None of your {counted(of, 'defect')} would pass."
    return f"{missed} of your {counted(of, 'defect')} would pass."


def detection(calibration: Calibration) -> str:
    """What the threshold catches, in one sentence with its interval."""
    if calibration.detection_interval is None:
        return "No defective parts were given, so the detection rate is not known."
    low, high = calibration.detection_interval
    return (
        f"{calibration.detected} of {calibration.defective} defective parts are detected: "
        f"{percent(calibration.detected / calibration.defective, digits=3)} "
        f"({percent(calibration.confidence)} interval: "
        f"{percent(low, digits=3)} to {percent(high, digits=3)})."
    )


def warnings(calibration: Calibration, good: Scores, defective: Scores | None) -> list[str]:
    """What weakens the promise or was left out; empty when there is nothing to say."""
    parts = [good] if defective is None else [good, defective]
    training = [short(name) for scores in parts for name in scores.training]
    duplicates = [short(name) for scores in parts for name in scores.duplicates]
    unreadable = [name for scores in parts for name in scores.unreadable]
    found = []
    if training:
        found.append(
            f"{counted(len(training), 'picture')} set aside: training images, whose scores say "
            f"nothing about new parts ({listed(training)})."
        )
    if good.look_alikes and good.cross_fitted:
        found.append(
            f"{good.look_alikes} of the {calibration.good} good pictures look like another one. If "
            "they show the same parts again, a model that left one of them out has still seen its "
            "part: the scores are too low, and more good parts will be rejected than estimated. "
            "Keep one picture of each part and train again, or use good parts of other days."
        )
    elif good.look_alikes:
        distinct = calibration.good - good.look_alikes
        weaker = upper_bound(
            calibration.allowed_exceedances, distinct, confidence=calibration.confidence
        )
        found.append(
            f"{good.look_alikes} of the {calibration.good} good pictures look like another one. "
            "The promise takes each for a part of its own. If they show the same parts again, "
            f"{distinct} parts remain, which promise no better than {percent(weaker, digits=3)}."
        )
    if duplicates:
        found.append(
            f"{counted(len(duplicates), 'picture')} set aside: the same pixels as another one "
            f"({listed(duplicates)})."
        )
    if unreadable:
        found.append(
            f"{counted(len(unreadable), 'picture')} could not be read and did not count "
            f"({listed(unreadable)})."
        )
    return found


def histogram_text(calibration: Calibration, *, width: int = 78) -> str:
    """The scores as horizontal bars, one line per bin, cut by the threshold."""
    good, defective = calibration.good_scores, calibration.defective_scores
    edges = bins([*good, *defective], calibration.threshold, about=16)
    rows = list(zip(edges, edges[1:], counts(good, edges), counts(defective, edges), strict=False))
    room = width - 34 if defective else width - 22
    longest = max(max(row[2], row[3]) for row in rows)
    lines = [f"{'score up to':>12} {'good':>6}" + (f" {'defective':>10}" if defective else "")]
    for start, stop, good_count, defective_count in rows:
        if start == calibration.threshold:
            lines.append(f"{calibration.threshold:12.4g} {' threshold '.center(width - 14, '-')}")
        bars = _bar("█", good_count, longest, room // (2 if defective else 1))
        line = f"{stop:12.4g} {good_count or '':>6}"
        if defective:
            line += f" {defective_count or '':>10}"
            bars += _bar("░", defective_count, longest, room // 2)
        lines.append(f"{line}  {bars}".rstrip())
    return "\n".join(lines)


def report_text(calibration: Calibration, costs: Costs, defective: Scores | None) -> str:
    """The report for a terminal: what a person wants to know first, then prices and scores."""
    types = found_by_type(calibration, defective)
    by_type = ", ".join(f"{one.kind} {one.found} of {one.of}" for one in types)
    sentences = (
        look_first(calibration, costs),
        headline(calibration),
        promise(calibration),
        misses(calibration),
        detection(calibration),
        f"Found by type: {by_type}." if types else "",
        deciding(calibration, costs),
    )
    said = "\n".join(filter(None, sentences))
    return f"{said}\n\n{prices_text(costs, calibration)}\n\n{histogram_text(calibration)}"


def write_report(
    path: Path, calibration: Calibration, costs: Costs, good: Scores, defective: Scores | None
) -> None:
    """Write the calibration as one HTML file that needs no other file, atomically.

    Args:
        path: The file.
        calibration: What is reported.
        costs: What other promises and other good parts would find.
        good: The good parts that it was made from.
        defective: The defective parts, if there were any.
    """
    good_scores, defective_scores = calibration.good_scores, calibration.defective_scores
    threshold = calibration.threshold
    outlook = outlook_of(calibration, costs, good, defective)
    html = render(
        "calibration.html.j2",
        title="Calibration report",
        calibration=calibration,
        outlook=outlook,
        misses=misses(calibration),
        missed=calibration.defective - calibration.detected,
        detection=detection(calibration),
        warnings=warnings(calibration, good, defective),
        histograms=[
            histogram_svg(good_scores, shown, threshold)
            for shown in ([defective_scores, ()] if defective_scores else [()])
        ],
        figures=_figures(calibration),
        facts=_facts(calibration),
        good=_shown(good, threshold, good=True)[len(outlook.suspects) :],
        defective=[] if defective is None else _shown(defective, threshold, good=False),
    )
    try:
        replace_file(path, html)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be written ({error.strerror})") from error


def _figures(calibration: Calibration) -> dict[str, str]:
    sure = percent(calibration.confidence)
    figures = {
        "Threshold (NG above)": f"{calibration.threshold:.6g}",
        "Good parts": f"{calibration.good}",
        f"False rejects, {sure} confidence{'' if calibration.is_proved else ', estimated'}": (
            f"≤ {percent(calibration.guaranteed_false_reject, digits=3)}"
        ),
    }
    if calibration.detection_interval is not None:
        low, high = (percent(end, digits=3) for end in calibration.detection_interval)
        detected = percent(calibration.detected / calibration.defective, digits=3)
        figures[f"Defects detected ({low} to {high})"] = detected
    return figures


def _facts(calibration: Calibration) -> dict[str, str]:
    return {
        "Asked for": f"≤ {percent(calibration.max_false_reject)} false rejects",
        "Good parts above the threshold": f"{calibration.exceedances} "
        f"({calibration.allowed_exceedances} allowed)",
        "Scored by models that had left them out": f"{calibration.cross_fitted} good, "
        f"{calibration.cross_fitted_defective} defective",
        "Look-alikes, duplicates, training images, unreadable": f"{calibration.look_alikes}, "
        f"{calibration.duplicates}, {calibration.training_images}, {calibration.unreadable}",
        "Made": calibration.created_at.replace("T", " ").replace("+00:00", " UTC"),
        "Backend": calibration.backend,
        "Bundle": calibration.bundle_id,
        "Versions": ", ".join(f"{name} {v}" for name, v in calibration.versions.items()),
    }


def _shown(scores: Scores, threshold: float, *, good: bool) -> list[dict[str, object]]:
    """The pictures of the page; a remark says what the threshold gets wrong, or nothing."""
    remark = "would be rejected" if good else "missed"
    return [
        {
            "picture": drawn(one, threshold),
            "score": one.score,
            "name": short(one.name),
            "remark": remark if (one.score > threshold) == good else "",
        }
        for one in scores.exhibits
    ]


def _bar(block: str, count: int, longest: int, room: int) -> str:
    """At least one block for one part: a lonely miss must be seen."""
    return block * max(count * room // longest, min(count, 1))
