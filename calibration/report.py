"""A calibration in words, on a terminal and as one HTML page."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

from calibration.bound import upper_bound
from calibration.record import Calibration
from calibration.scores import Exhibit, Scores
from calibration.threshold import percent
from engine.bundle import replace_file
from engine.errors import CalibrationError
from engine.page import bins, counts, histogram_svg, page
from engine.picture import annotated, data_uri

REPORT: Final = "calibration.html"
"""The page's name, beside `calibration.json` in the bundle's folder."""

_NAMED: Final = 5
"""How many files a warning names; all are in the counts."""


def promise(calibration: Calibration) -> str:
    """What the threshold promises, in one sentence with its n."""
    return (
        f"At most {percent(calibration.max_false_reject)} of good parts will be rejected, with "
        f"{percent(calibration.confidence)} confidence: {calibration.exceedances} of "
        f"n={calibration.good} good parts scored above the threshold {calibration.threshold:.4g}."
    )


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
    training = [name for scores in parts for name in scores.training]
    duplicates = [name for scores in parts for name in scores.duplicates]
    unreadable = [name for scores in parts for name in scores.unreadable]
    found = []
    if training:
        found.append(
            f"{_pictures(len(training))} set aside: training images, whose scores say nothing "
            f"about new parts ({_names(training)})."
        )
    if good.look_alikes:
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
            f"{_pictures(len(duplicates))} set aside: the same pixels as another one "
            f"({_names(duplicates)})."
        )
    if unreadable:
        found.append(
            f"{_pictures(len(unreadable))} could not be read and did not count "
            f"({_names(unreadable)})."
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


def write_report(
    path: Path, calibration: Calibration, good: Scores, defective: Scores | None
) -> None:
    """Write the calibration as one HTML file that needs no other file, atomically."""
    html = page("Calibration report", "\n".join(_body(calibration, good, defective)))
    try:
        replace_file(path, html.encode())
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be written ({error.strerror})") from error


def _body(calibration: Calibration, good: Scores, defective: Scores | None) -> Iterator[str]:
    yield f"<h1>Calibration of bundle {calibration.bundle_id[:12]}, {calibration.precision}</h1>"
    yield f'<p class="statement">{escape(promise(calibration))}</p>'
    yield f"<p>{escape(detection(calibration))}</p>"
    for warning in warnings(calibration, good, defective):
        yield f'<p class="warning">{escape(warning)}</p>'
    good_scores, defective_scores = calibration.good_scores, calibration.defective_scores
    yield "<h2>Scores</h2>"
    histogram = histogram_svg(good_scores, defective_scores, calibration.threshold)
    yield f'<div class="card">{histogram}</div>'
    if defective_scores:
        yield "<h2>Scores of the good parts alone</h2>"
        histogram = histogram_svg(good_scores, (), calibration.threshold)
        yield f'<div class="card">{histogram}</div>'
    yield "<h2>Figures</h2>"
    yield f'<div class="card"><dl>{"".join(_figures(calibration))}</dl></div>'
    yield "<h2>Good parts with the highest scores</h2>"
    yield f'<div class="pictures">{"".join(_gallery(calibration, good, "good"))}</div>'
    if defective is not None and defective.values:
        missed = calibration.defective - calibration.detected
        yield f"<h2>Defective parts with the lowest scores ({missed} missed)</h2>"
        gallery = "".join(_gallery(calibration, defective, "defective"))
        yield f'<div class="pictures">{gallery}</div>'
    yield (
        '<p class="soft">Colours show where the network sees a deviation, on one scale for all '
        "pictures: none below three quarters of the threshold, the hottest at twice the threshold. "
        "The box is where the second pass looked closer.</p>"
        '<p class="soft">The promise rests on counting alone, not on the shape of the '
        "distribution. It holds for good parts like these: same product, camera, lens and light. "
        "When one of them changes, calibrate again.</p>"
    )


def _figures(calibration: Calibration) -> Iterator[str]:
    figures = [
        ("Threshold (NG above)", f"{calibration.threshold:.6g}"),
        ("Good parts", f"{calibration.good}"),
        (
            f"False rejects, with {percent(calibration.confidence)} confidence",
            f"≤ {percent(calibration.guaranteed_false_reject, digits=3)}",
        ),
    ]
    if calibration.detection_interval is not None:
        low, high = calibration.detection_interval
        figures.append(
            (
                f"Defects detected ({percent(low, digits=3)} to {percent(high, digits=3)})",
                percent(calibration.detected / calibration.defective, digits=3),
            )
        )
    yield from (f'<div><dt>{dt}</dt><dd class="figure">{dd}</dd></div>' for dt, dd in figures)
    facts = {
        "Asked for": f"≤ {percent(calibration.max_false_reject)} false rejects",
        "Good parts above the threshold": f"{calibration.exceedances} "
        f"({calibration.allowed_exceedances} allowed)",
        "Look-alikes, duplicates, training images, unreadable": f"{calibration.look_alikes}, "
        f"{calibration.duplicates}, {calibration.training_images}, {calibration.unreadable}",
        "Made": calibration.created_at.replace("T", " ").replace("+00:00", " UTC"),
        "Backend": calibration.backend,
        "Bundle": calibration.bundle_id,
        "Versions": ", ".join(f"{name} {v}" for name, v in calibration.versions.items()),
    }
    yield from (f"<div><dt>{dt}</dt><dd>{escape(dd)}</dd></div>" for dt, dd in facts.items())


def _gallery(calibration: Calibration, scores: Scores, label: str) -> Iterator[str]:
    for exhibit in scores.exhibits:
        above = exhibit.inspection.score > calibration.threshold
        wrong = above == (label == "good")
        verdict = {"good": "would be rejected", "defective": "missed"}[label] if wrong else ""
        yield _figure(calibration, exhibit, verdict)


def _figure(calibration: Calibration, exhibit: Exhibit, verdict: str) -> str:
    picture = annotated(exhibit.pixels, exhibit.inspection, calibration.threshold, max_side=480)
    name = escape("/".join(Path(exhibit.name).parts[-2:]))
    height, width = picture.shape[:2]
    return (
        f"<figure{' class=wrong' if verdict else ''}>"
        f'<img src="{data_uri(picture)}" alt="{name}" width="{width}" height="{height}">'
        f"<figcaption><b>{exhibit.inspection.score:.4g}</b> {verdict}"
        f'<br><span class="soft">{name}</span></figcaption></figure>'
    )


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _bar(block: str, count: int, longest: int, room: int) -> str:
    """At least one block for one part: a lonely miss must be seen."""
    return block * max(count * room // longest, min(count, 1))
