"""What a training came to, and what to collect next, as one HTML page.

Only images that the training was given to look at are on it: good ones that were held out and
known defective ones. Those of the test stay unseen, for `agent evaluate`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath
from typing import Final

import cv2
import numpy as np

from engine.backends.onnxruntime_backend import OnnxRuntimeBackend
from engine.bundle import Bundle, TrainingRecord, replace_file
from engine.errors import AtacError, ImageError, TrainingError
from engine.frame import Inspection
from engine.image import read_image
from engine.inspector import TwoPassInspector
from engine.likeness import fingerprint, look_alikes
from engine.page import Curve, curves_svg, histogram_svg, page
from engine.parity import provisional_threshold
from engine.picture import annotated, attended, data_uri, reduced
from train.datasets import SPLIT, SPLIT_JSON, Listed, Source, Split, read_listed
from train.evaluate import auroc
from train.export import PROFILE
from train.fit import Epoch, learning_rate
from train.profile import PROFILE_JSON, Profile

REPORT: Final = "training.html"
"""The page's name, beside `manifest.json` in the bundle's folder."""

ADVISABLE_GOOD: Final = 50
"""Good images that training should have; `train.datasets.LEAST_GOOD` is what it must have."""

_PROMISES: Final = (0.05, 0.01)
_CONFIDENCE: Final = 0.95
_FAR: Final = 3.0
"""So many interquartile ranges above the upper quartile a score is far out (Tukey 1977)."""
_LEAST_FOR_QUARTERS: Final = 12
_INSTEAD: Final = 64
"""So many training images are looked at when no good image was held out."""
_DOUBTFUL: Final = 6
_CLEAR: Final = 2
_SIDE: Final = 320
_NAMED: Final = 5
"""How many files or types a sentence names; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """One image and what the trained network found in it."""

    item: Listed
    inspection: Inspection

    @property
    def score(self) -> float:
        return self.inspection.score


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """A finished training, looked at.

    `epochs` are all of the training, also those before an interruption. `good` images were held
    out, or learnt from where `split.held_out_good` is empty; `defective` ones were learnt from.
    Both are sorted by score, the highest first. `threshold` is provisional: half-way from the
    highest good score to the next higher defective one. `unreadable` are images that have gone
    since. `look_alikes` of the good images for training look like another one.
    """

    record: TrainingRecord
    profile: Profile
    split: Split
    epochs: tuple[Epoch, ...]
    good: tuple[Seen, ...]
    defective: tuple[Seen, ...]
    unreadable: tuple[str, ...]
    look_alikes: int
    threshold: float
    bundle_id: str

    @property
    def separation(self) -> float | None:
        """AUROC of `good` against `defective`; None without images of either kind."""
        return self.separation_of(self.defective)

    def separation_of(self, defective: Sequence[Seen]) -> float | None:
        """AUROC of `good` against these; None without any."""
        if not (self.good and defective):
            return None
        scores = [seen.score for seen in (*self.good, *defective)]
        labels = [False] * len(self.good) + [True] * len(defective)
        return auroc(np.array(scores), np.array(labels))


def examine(bundle: Bundle, source: Source, epochs: Sequence[Epoch]) -> Outcome:
    """Look at the images that `bundle` may be judged by, with its fp32 network.

    `source` must hold the images of the bundle's split. Raises `TrainingError` when not one good
    image can be read any more.
    """
    split = SPLIT_JSON.validate_json(bundle.read(SPLIT))
    unreadable: list[str] = []
    with OnnxRuntimeBackend(bundle) as backend:
        inspector = TwoPassInspector(backend, bundle.manifest)
        good = _inspected(
            inspector, source, split.held_out_good or split.train_good[:_INSTEAD], unreadable
        )
        defective = _inspected(inspector, source, split.train_defective, unreadable)
    if not good:
        raise TrainingError(f"no good image of {source.root} can be read any more: {unreadable[0]}")
    return Outcome(
        record=bundle.manifest.training,
        profile=PROFILE_JSON.validate_json(bundle.read(PROFILE)),
        split=split,
        epochs=tuple(epochs),
        good=good,
        defective=defective,
        unreadable=tuple(unreadable),
        look_alikes=_look_alikes(source, (*split.train_good, *split.held_out_good)),
        threshold=provisional_threshold(
            [seen.score for seen in good], [seen.score for seen in defective]
        ),
        bundle_id=bundle.id,
    )


def summary(outcome: Outcome) -> str:
    """What was trained and how well it separates, in one or two sentences."""
    record = outcome.record
    trained = (
        f"Trained on {_images(record.good, 'good')} and {_images(record.defective, 'defective')} "
        f"in {_duration(record.seconds)}."
    )
    if outcome.separation is None:
        return f"{trained} Without a known defect nobody can say how well it separates."
    kind = "held-out good" if outcome.split.held_out_good else "good training"
    return (
        f"{trained} A known defect scores above a {kind} image "
        f"in {_percent(outcome.separation)} of all pairs."
    )


def advice(outcome: Outcome) -> list[str]:
    """What to collect next, most telling first; each sentence follows from a number."""
    return [
        *_about_overlap(outcome),
        *_about_types(outcome),
        *_about_promise(outcome),
        *_about_good(outcome),
    ]


def write_report(path: Path, outcome: Outcome, source: Source) -> None:
    """Write the page as one HTML file that needs no other file, atomically.

    A picture that cannot be drawn is replaced by the reason. Raises `TrainingError` when the file
    cannot be written.
    """
    html = page("Training report", "\n".join(_body(outcome, source)))
    try:
        replace_file(path, html.encode())
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})") from error


def _inspected(
    inspector: TwoPassInspector, source: Source, items: Sequence[Listed], unreadable: list[str]
) -> tuple[Seen, ...]:
    found = []
    for item in items:
        try:
            pixels = read_listed(source, item)
        except AtacError as error:
            unreadable.append(str(error))
        else:
            found.append(Seen(item=item, inspection=inspector.inspect(pixels)))
    return tuple(sorted(found, key=lambda seen: seen.score, reverse=True))


def _look_alikes(source: Source, items: Sequence[Listed]) -> int:
    fingerprints = []
    for item in items:
        try:
            fingerprints.append(fingerprint(read_image(source.path(item.path))))
        except ImageError:
            continue  # `examine` names those that matter
    return look_alikes(fingerprints)


def _about_overlap(outcome: Outcome) -> Iterator[str]:
    highest = outcome.good[0]
    for kind, seen in _by_kind(outcome.defective).items():
        low = [one for one in seen if one.score <= highest.score]
        if low:
            yield (
                f"{len(low)} of {_examples(len(seen), kind)} "
                f"{'scores' if len(low) == 1 else 'score'} no higher than the good image "
                f"{_name(highest.item)} ({highest.score:.3g}). Look at both below: if that good "
                f"part has a flaw, take it out; else photograph more defects of type {kind}."
            )
    scores = [seen.score for seen in outcome.good]
    lower, upper = (float(quarter) for quarter in np.quantile(scores, (0.25, 0.75)))
    fence = upper + _FAR * (upper - lower)
    apart = [seen for seen in outcome.good if seen.score > fence]
    if apart and len(scores) >= _LEAST_FOR_QUARTERS:
        stand, them = ("stands", "it") if len(apart) == 1 else ("stand", "them")
        yield (
            f"{_images(len(apart), 'good')} {stand} apart, with scores above {fence:.3g} where "
            f"three quarters of the good ones stay below {upper:.3g} "
            f"({_listed([_name(seen.item) for seen in apart])}). Where one shows a flaw or dust, "
            f"take it out; where it shows a variant of the part, photograph more like {them}."
        )


def _about_types(outcome: Outcome) -> Iterator[str]:
    known = Counter(item.kind for item in outcome.split.train_defective)
    spare = Counter(item.kind for item in outcome.split.test if item.defective)
    if not known:
        yield (
            "No known defect was learnt from: what the network takes for a defect is only painted. "
            "Bring real ones, ten or more, a few of each type."
        )
        return
    single = sorted(kind for kind, count in known.items() if count == 1)
    if single:
        yield (
            f"Only one example each was learnt from: {_listed(single)}. Bring several more, at "
            f"other places of the part{_spare(single, spare)}."
        )
    unknown = sorted(set(spare) - set(known))
    if unknown:
        yield f"These types were not learnt from: {_listed(unknown)}{_spare(unknown, spare)}."


def _about_promise(outcome: Outcome) -> Iterator[str]:
    held = len(outcome.split.held_out_good)
    least, most = (_parts_needed(rate) for rate in _PROMISES)
    if held >= most:
        return
    low, high = (_percent(rate) for rate in _PROMISES)
    sure = f"with {_percent(_CONFIDENCE)} confidence"
    have = f"{_images(held, 'good') if held else 'No good image'} {'were' if held > 1 else 'was'}"
    if held < least:
        yield (
            f"{have} held out. For a threshold that rejects at most {low} of good parts {sure}, "
            f"agent calibrate needs {least} that training has not seen: photograph "
            f"{least - held} more. For {high} it needs {most}: {most - held} more."
        )
    else:
        yield (
            f"{have} held out: enough for agent calibrate to promise that at most {low} of good "
            f"parts are rejected, {sure}. For {high} photograph {most - held} more ({most})."
        )


def _about_good(outcome: Outcome) -> Iterator[str]:
    good = outcome.record.good
    if good < ADVISABLE_GOOD:
        yield (
            f"Training had {_images(good, 'good')}; {ADVISABLE_GOOD} or more are advisable. "
            "Photograph parts of other days, batches and variants."
        )
    total = good + len(outcome.split.held_out_good)
    if outcome.look_alikes:
        yield (
            f"{outcome.look_alikes} of the {total} good images look like another one. If they show "
            "the same parts again, they teach nothing new: photograph other parts instead."
        )
    if outcome.split.dropped:
        dropped = outcome.split.dropped
        yield (
            f"{_images(len(dropped), '')} repeated the pixels of another one and did not count "
            f"({_listed([one.path for one in dropped])})."
        )


def _body(outcome: Outcome, source: Source) -> Iterator[str]:
    held_out = bool(outcome.split.held_out_good)
    yield f"<h1>Training of bundle {outcome.bundle_id[:12]}, profile {outcome.profile.name}</h1>"
    yield f'<p class="statement">{escape(summary(outcome))}</p>'
    if not held_out:
        yield (
            '<p class="warning">No good image was held out, so the good ones on this page are '
            "training images. Their scores are too low to speak of new parts; use "
            "--hold-out 0.15.</p>"
        )
    if outcome.unreadable:
        reasons = _listed(outcome.unreadable)
        yield (
            f'<p class="warning">{_images(len(outcome.unreadable), "")} could not be read again '
            f"and did not count ({escape(reasons)}).</p>"
        )
    yield "<h2>What to collect next</h2>"
    found = "".join(f"<li>{escape(sentence)}</li>" for sentence in advice(outcome))
    yield f"<ul>{found}</ul>" if found else "<p>Nothing stands out.</p>"
    yield "<h2>Scores</h2>"
    histogram = histogram_svg(
        [seen.score for seen in outcome.good],
        [seen.score for seen in outcome.defective],
        outcome.threshold,
    )
    yield f'<div class="card">{histogram}</div>'
    learnt = (
        "Known defects were learnt from: new ones may score lower. " if outcome.defective else ""
    )
    yield (
        f'<p class="soft">{learnt}The threshold is provisional; agent calibrate sets the one that '
        "counts. What the network makes of images it has never seen is for agent evaluate to "
        "say.</p>"
    )
    if outcome.defective:
        yield "<h2>Types of defects</h2>"
        yield f'<div class="card">{_table(outcome)}</div>'
    yield "<h2>Loss and learning rate</h2>"
    yield f'<div class="card">{_curves(outcome)}</div>'
    yield "<h2>Figures</h2>"
    yield f'<div class="card"><dl>{"".join(_figures(outcome))}</dl></div>'
    yield from _galleries(outcome, source)


def _table(outcome: Outcome) -> str:
    highest = outcome.good[0].score
    kinds = _by_kind(outcome.defective)
    rows = {**kinds, "all": list(outcome.defective)} if len(kinds) > 1 else kinds
    cells = []
    for kind, seen in rows.items():
        scores = [one.score for one in seen]
        above = sum(score > highest for score in scores)
        wrong = ' class="wrong"' if above < len(seen) else ""
        cells.append(
            f"<tr><td>{escape(kind)}</td><td>{len(seen)}</td><td>{min(scores):.3g}</td>"
            f"<td>{float(np.median(scores)):.3g}</td><td{wrong}>{above}</td>"
            f"<td>{outcome.separation_of(seen):.3f}</td></tr>"
        )
    return (
        "<table><tr><th>type</th><th>learnt from</th><th>lowest score</th><th>median</th>"
        f"<th>above all good</th><th>AUROC</th></tr>{''.join(cells)}</table>"
    )


def _curves(outcome: Outcome) -> str:
    profile = outcome.profile
    loss = [(float(epoch.number), epoch.loss) for epoch in outcome.epochs]
    steps = 200  # enough for a smooth line and for upright steps
    rate = [
        (profile.epochs * i / steps, learning_rate(profile, profile.epochs * i / steps))
        for i in range(steps + 1)
    ]
    joins = 0 < profile.zoom_from < profile.epochs
    return curves_svg(
        [
            Curve(label="loss", points=loss, dots=True),
            Curve(label="learning rate", points=rate),
        ],
        end=float(profile.epochs),
        axis="epoch",
        mark=(float(profile.zoom_from), "pass 2 joins") if joins else None,
    )


def _figures(outcome: Outcome) -> Iterator[str]:
    record, split, profile = outcome.record, outcome.split, outcome.profile
    separation = outcome.separation
    figures = [
        ("Learnt from", f"{record.good} good, {record.defective} defective"),
        ("Held out", f"{len(split.held_out_good)} good"),
        ("AUROC on this page", "–" if separation is None else f"{separation:.4f}"),
        ("Last loss", f"{record.final_loss:.3g}"),
        ("Time", _duration(record.seconds)),
    ]
    yield from (f'<div><dt>{dt}</dt><dd class="figure">{dd}</dd></div>' for dt, dd in figures)
    watched = [
        f"{epoch.separation:.3f} after {epoch.number}"
        for epoch in outcome.epochs
        if not math.isnan(epoch.separation)
    ]
    facts = {
        "Profile": profile.name,
        "Seed": f"{record.seed}",
        "Epochs, batch": f"{record.epochs}, {profile.batch}",
        "AUROC seen on the way (epochs)": ", ".join(watched) or "–",
        "Backbone": f"{record.backbone}, {'frozen' if profile.freeze else 'trained'}",
        "Pretrained": record.pretrained,
        "Kept for the test": f"{sum(not item.defective for item in split.test)} good, "
        f"{sum(item.defective for item in split.test)} defective",
        "Bundle": outcome.bundle_id,
        "Versions": ", ".join(f"{name} {v}" for name, v in record.versions.items()),
    }
    yield from (f"<div><dt>{dt}</dt><dd>{escape(dd)}</dd></div>" for dt, dd in facts.items())


def _galleries(outcome: Outcome, source: Source) -> Iterator[str]:
    kind = "Held-out good" if outcome.split.held_out_good else "Good training"
    galleries: list[tuple[str, Sequence[Seen]]] = [
        (f"{kind} images with the highest scores", outcome.good[:_DOUBTFUL]),
        ("Known defects with the lowest scores", outcome.defective[::-1][:_DOUBTFUL]),
        (
            "The clearest of both, to compare",
            (
                *outcome.good[_DOUBTFUL:][-_CLEAR:],
                *outcome.defective[: max(0, len(outcome.defective) - _DOUBTFUL)][:_CLEAR],
            ),
        ),
    ]
    yield "<h2>How to read the pictures</h2>"
    yield (
        '<p class="soft">Each part is shown as it was photographed; under the attention of pass 1, '
        "from violet to yellow, with the box that follows from it; under its deviations, on one "
        "scale for all pictures (none below three quarters of the provisional threshold, the "
        "hottest at twice that); and as pass 2 saw it, closer. The number is the score.</p>"
    )
    for title, chosen in galleries:
        if chosen:
            shown = "".join(_figure(outcome, source, seen) for seen in chosen)
            yield f'<h2>{title}</h2><div class="pictures wide">{shown}</div>'


def _figure(outcome: Outcome, source: Source, seen: Seen) -> str:
    item, inspection = seen.item, seen.inspection
    highest = outcome.good[0].score
    wrong = item.defective and seen.score <= highest
    try:
        views = "".join(_views(outcome, source, seen))
    except (AtacError, cv2.error) as error:
        views = f"<span>cannot be shown: {escape(str(error))}</span>"
    remark = " no higher than a good part" if wrong else ""
    if not inspection.zoomed:
        remark += " pass 2 had nothing to look closer at"
    return (
        f'<figure{" class=wrong" if wrong else ""}><div class="views">{views}</div>'
        f"<figcaption><b>{seen.score:.4g}</b>{escape(remark)}"
        f'<br><span class="soft">{escape(_name(item))}</span></figcaption></figure>'
    )


def _views(outcome: Outcome, source: Source, seen: Seen) -> Iterator[str]:
    pixels, inspection = read_listed(source, seen.item), seen.inspection
    box = inspection.box
    pictures = {
        "part": reduced(pixels, _SIDE),
        "attention": attended(pixels, inspection, max_side=_SIDE),
        "deviations": annotated(pixels, inspection, outcome.threshold, max_side=_SIDE),
    }
    if inspection.zoomed:
        closer = pixels[box.top : box.bottom, box.left : box.right]
        pictures["closer"] = reduced(closer, _SIDE)
    for name, picture in pictures.items():
        height, width = picture.shape[:2]
        yield (
            f'<div><span>{name}</span><img src="{data_uri(picture)}" alt="{name}" '
            f'width="{width}" height="{height}"></div>'
        )


def _parts_needed(rate: float) -> int:
    """The fewest good parts, none of them rejected, that exclude a higher `rate`."""
    return math.ceil(math.log(1 - _CONFIDENCE) / math.log(1 - rate))


def _by_kind(seen: Sequence[Seen]) -> dict[str, list[Seen]]:
    kinds: dict[str, list[Seen]] = {}
    for one in sorted(seen, key=lambda one: one.item.kind):
        kinds.setdefault(one.item.kind, []).append(one)
    return kinds


def _spare(kinds: Sequence[str], spare: Counter[str]) -> str:
    """What the data holds of `kinds` that was kept for the test."""
    kept = [f"{spare[kind]} more of {kind}" for kind in kinds if spare[kind]]
    if not kept:
        return ""
    return f"; the data holds {_listed(kept)}, kept for the test: a larger --defects takes some"


def _examples(count: int, kind: str) -> str:
    return f"{count} known {'example' if count == 1 else 'examples'} of {kind}"


def _images(count: int, label: str) -> str:
    return f"{count} {label} ".rstrip() + (" image" if count == 1 else " images")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _name(item: Listed) -> str:
    """A file as a caption has room for it: its folder and its name."""
    return "/".join(PurePosixPath(item.path).parts[-2:])


def _percent(rate: float) -> str:
    return f"{100 * rate:.4g} %"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
