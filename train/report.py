"""What a training came to, and what to collect next, as one HTML page.

Only images that the training was given to look at are on it: good ones that were held out and
known defective ones. Those of the test stay unseen, for `agent evaluate`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from markupsafe import Markup

from engine.backends.onnxruntime import OnnxRuntimeBackend
from engine.bundle import TrainingRecord, replace_file
from engine.errors import AtacError, TrainingError
from engine.frame import Box, Inspection, Pixels
from engine.likeness import fingerprint, look_alikes
from engine.methods import MethodSpec, open_method
from engine.pages.charts import Curve, curves_svg, histogram_svg
from engine.pages.outlook import Outlook
from engine.pages.rendering import render
from engine.pages.text import counted, listed, percent, short
from engine.parity import provisional_threshold
from engine.picture import annotated, attended, reduced
from engine.region import Regions
from train.checkpoint import Epoch
from train.datasets import ADVISABLE_GOOD, DEFAULT_DEFECTS, Images, Listed, Split, regions_of
from train.evaluate import auroc
from train.export.gate import shown_good
from train.recipes import RecipeSettings
from train.run import Finished
from train.spots import CONTRAST, FOUND, Spots, spots_found

REPORT: Final = "training.html"
"""The page's name, beside `manifest.json` in the bundle's folder."""

_PROMISES: Final = (0.05, 0.01)
_CONFIDENCE: Final = 0.95
_FAR: Final = 3.0
"""A score this many interquartile ranges above the upper quartile is far out (Tukey 1977)."""
_LEAST_FOR_QUARTERS: Final = 12
_SPOTTED: Final = 12
"""Good images on which spots are put."""
_DOUBTFUL: Final = 6
_CLEAR: Final = 2
_SIDE: Final = 480


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
    highest good score to the next higher defective one. `look_alikes` of the good images for
    training look like another one. `geometry` says how much of a frame a view shows.
    """

    record: TrainingRecord
    settings: RecipeSettings
    split: Split
    epochs: tuple[Epoch, ...]
    good: tuple[Seen, ...]
    defective: tuple[Seen, ...]
    look_alikes: int
    threshold: float
    bundle_id: str
    geometry: str = ""

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

    def above_good(self, defective: Sequence[Seen]) -> list[Seen]:
        """Those of `defective` that score above every good image."""
        return [seen for seen in defective if seen.score > self.good[0].score]


def examine(finished: Finished) -> Outcome:
    """Look at what the trained network found in the images that it may be judged by."""
    split, written = finished.split, finished.written

    def seen(items: Sequence[Listed]) -> tuple[Seen, ...]:
        found = (Seen(item=item, inspection=written.inspections[item.path]) for item in items)
        return tuple(sorted(found, key=lambda one: one.score, reverse=True))

    good, defective = seen(shown_good(split)), seen(split.train_defective)
    alike = (*split.train_good, *split.held_out_good)
    return Outcome(
        record=written.bundle.manifest.training,
        settings=finished.settings,
        split=split,
        epochs=finished.epochs,
        good=good,
        defective=defective,
        look_alikes=look_alikes([fingerprint(finished.images.pixels(item)) for item in alike]),
        threshold=provisional_threshold(
            [one.score for one in good], [one.score for one in defective]
        ),
        bundle_id=written.bundle.id,
        geometry=_geometry(written.bundle.manifest.method),
    )


def _geometry(method: MethodSpec) -> str:
    """How large views are, and how many pixels of the frame one of theirs shows."""
    side, spec = method.network.side, method.regions
    if spec is None:
        return f"{side} × {side} pixels, of the whole frame"
    sizes = {region.size for region in spec.regions}
    width, height = (max(lengths) for lengths in zip(*sizes, strict=True))
    of = f"{'at most ' if len(sizes) > 1 else ''}{width} × {height} pixels"
    return (
        f"{side} × {side} pixels, of {counted(len(spec.regions), 'region')} of each frame, {of}: a "
        f"pixel of a view shows {width / side:.3g} × {height / side:.3g} of the frame"
    )


def summary(outcome: Outcome, outlook: Outlook | None = None) -> str:
    """What was trained, what that says of it where no `outlook` says more, and what to do next."""
    record = outcome.record
    trained = (
        f"Trained on {record.good} good and {counted(record.defective, 'defective image')} "
        f"in {_duration(record.seconds)}."
    )
    if outlook is not None:
        return f"{trained} Next: agent evaluate tests it, agent calibrate sets the threshold."
    if not outcome.defective:
        return f"{trained} Without a known defect, nobody can say how well it separates."
    of, above = len(outcome.defective), len(outcome.above_good(outcome.defective))
    apart = "The" if above == of else f"{above or 'None'} of the"
    verb = "is" if 1 in {above, of} else "are"
    learnt = f"{apart} {counted(of, 'defect')} it learnt {verb} told apart."
    return f"{trained} {learnt} That is no test. Next: agent evaluate, then agent calibrate."


def advice(outcome: Outcome, outlook: Outlook | None = None) -> list[str]:
    """What to do next, most telling first; each sentence follows from a number.

    With an `outlook` that begins with its steps, and the promise is its affair.
    """
    return [
        *(_about_overlap(outcome) if outlook is None else outlook.steps),
        *_about_defects(outcome),
        *_about_masks(outcome),
        *_about_types(outcome),
        *(_about_promise(outcome) if outlook is None else ()),
        *_about_good(outcome),
    ]


def small_defects(finished: Finished, threshold: float) -> Spots:
    """Which sizes of spots the bundle's network finds on good images that may judge it."""
    bundle = finished.written.bundle
    with open_method(bundle.manifest.method, OnnxRuntimeBackend(bundle)) as inspector:
        return spots_found(inspector, _spotted(finished), threshold=threshold)


def _spotted(finished: Finished) -> Iterator[tuple[Pixels, list[Box]]]:
    """Good images, and the boxes that are inspected of each."""
    spec = finished.written.bundle.manifest.method.regions
    for item in shown_good(finished.split)[:_SPOTTED]:
        pixels = finished.images.pixels(item)
        if spec is None:
            yield pixels, [Box.around(pixels)]
        else:
            yield pixels, [cut.box for cut in regions_of(Regions(spec), finished.images, item)]


def write_report(
    path: Path,
    outcome: Outcome,
    images: Images,
    outlook: Outlook | None = None,
    spots: Spots | None = None,
) -> None:
    """Write the page as one HTML file that needs no other file, atomically.

    A picture that cannot be drawn is replaced by the reason.

    Args:
        path: The file.
        outcome: What the training came to.
        images: Those of the split.
        outlook: What will be found and rejected, where the recipe's scores can say it.
        spots: How small a defect may be.

    Raises:
        TrainingError: The file cannot be written.
    """
    html = render(
        "training.html.j2",
        title="Training report",
        bundle_id=outcome.bundle_id,
        recipe=outcome.settings.type,
        summary=summary(outcome, outlook),
        outlook=outlook,
        warnings=list(_warnings(outcome) if outlook is None else ()),
        advice=advice(outcome, outlook),
        histogram=_histogram(outcome, outlook),
        spots=None if spots is None else {"said": about_spots(spots), "curve": _spots(spots)},
        rows=_rows(outcome),
        looks_closer=outcome.settings.looks_closer,
        galleries=_galleries(outcome, images, outlook),
        curves=_curves(outcome) if outcome.settings.descends else "",
        facts=_facts(outcome),
    )
    try:
        replace_file(path, html)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror})") from error


def about_spots(spots: Spots) -> str:
    """The smallest defect that is found, in words."""
    those = f"spots that differ by {CONTRAST} grey levels from what they cover"
    if spots.smallest is None:
        largest = max(spots.found)
        return (
            f"Not even {those} are found reliably: of those {largest} pixels wide "
            f"{percent(spots.found[largest], digits=2)}."
        )
    share = percent(spots.smallest / spots.width, digits=2)
    return (
        f"The smallest defect found: of {those}, {percent(FOUND)} or more are found from "
        f"{spots.smallest} pixels on ({share} of the width of {spots.width} pixels)."
    )


def _spots(spots: Spots) -> Markup:
    points = [(float(size), 100 * share) for size, share in sorted(spots.found.items())]
    mark = None if spots.smallest is None else (float(spots.smallest), f"{spots.smallest} pixels")
    return curves_svg(
        [Curve(label="found, %", points=points, dots=True)],
        end=points[-1][0],
        axis="width of the spot in pixels",
        mark=mark,
    )


def _about_overlap(outcome: Outcome) -> Iterator[str]:
    highest = outcome.good[0]
    for kind, seen in _by_kind(outcome.defective).items():
        low = len(seen) - len(outcome.above_good(seen))
        if low:
            yield (
                f"Type {kind}: {low} of {len(seen)} known defects did not score above the good "
                f"image {short(highest.item.path)} ({highest.score:.3g}). Look at both below: if "
                "that good part has a flaw, remove it; else photograph more defects of this type."
            )
    scores = [seen.score for seen in outcome.good]
    lower, upper = (float(quarter) for quarter in np.quantile(scores, (0.25, 0.75)))
    fence = upper + _FAR * (upper - lower)
    apart = [short(seen.item.path) for seen in outcome.good if seen.score > fence]
    if apart and len(scores) >= _LEAST_FOR_QUARTERS:
        yield (
            f"Good images far above the others: {listed(apart)} (scores above {fence:.3g}; three "
            f"quarters of the good ones are below {upper:.3g}). If an image shows a flaw or dust, "
            "remove it; if it shows a variant of the part, photograph more of that variant."
        )


def _about_defects(outcome: Outcome) -> Iterator[str]:
    known = len(outcome.split.train_defective)
    kept = sum(item.defective for item in outcome.split.test)
    sort = "sort them into parts/defective/TYPE"
    if not outcome.settings.learns_defects:
        yield (
            f"The recipe {outcome.settings.type} learns from good parts alone. Once you have "
            f"{2 * DEFAULT_DEFECTS} defects, {sort} and compare with --recipe nearest."
        )
    elif not known:
        knows = "good parts" if outcome.settings.leaves_out else "synthetic defects"
        yield (
            f"No known defect was learnt from: the network knows {knows} only. Bring "
            f"{2 * DEFAULT_DEFECTS} real ones or more, several of each type, and {sort}. Half of "
            "them are kept for the test."
        )
    elif known < DEFAULT_DEFECTS:
        more = DEFAULT_DEFECTS - known
        yield f"{counted(more, 'more defect')} would help most; {sort}." + (
            f" {kept} of yours were kept for the test; a larger --defects learns from some of them."
            if kept
            else ""
        )


def _about_masks(outcome: Outcome) -> Iterator[str]:
    known = outcome.split.train_defective
    without = [item for item in known if item.mask is None]
    if without:
        yield (
            f"{len(without)} of the {counted(len(known), 'known defect')} have no mask. A picture "
            "that is white where the part is defective, in ground_truth/TYPE, tells training where "
            "to look. Measured once, with line on magnetic tiles: AUROC .953 with ten masks, .915 "
            "without."
        )


def _about_types(outcome: Outcome) -> Iterator[str]:
    known = Counter(item.kind for item in outcome.split.train_defective)
    spare = Counter(item.kind for item in outcome.split.test if item.defective)
    single = sorted(kind for kind, count in known.items() if count == 1)
    if single:
        yield (
            f"Only one example each was learnt from: {listed(single)}. Bring several more, at "
            f"other places of the part{_spare(single, spare)}."
        )
    unknown = sorted(set(spare) - set(known)) if known else []
    if unknown:
        yield f"These types were not learnt from: {listed(unknown)}{_spare(unknown, spare)}."


def _about_promise(outcome: Outcome) -> Iterator[str]:
    held = len(outcome.split.held_out_good)
    least, most = (_parts_needed(rate) for rate in _PROMISES)
    low, high = (percent(rate) for rate in _PROMISES)
    sure = f"with {percent(_CONFIDENCE)} confidence"
    if held < least:
        yield (
            f"Good images held out: {held}. For a threshold that rejects at most {low} of good "
            f"parts {sure}, agent calibrate needs {least} that training has not seen: photograph "
            f"{least - held} more. For {high} it needs {most}: {most - held} more."
        )
    elif held < most:
        yield (
            f"Good images held out: {held}. That is enough for agent calibrate to promise that at "
            f"most {low} of good parts are rejected, {sure}. For {high} photograph {most - held} "
            f"more ({most})."
        )


def _about_good(outcome: Outcome) -> Iterator[str]:
    good = outcome.record.good
    if good < ADVISABLE_GOOD:
        yield (
            f"Training had {counted(good, 'good image')}; {ADVISABLE_GOOD} or more are advisable. "
            "Photograph parts of other days, batches and variants."
        )
    total = good + len(outcome.split.held_out_good)
    if outcome.look_alikes:
        yield (
            f"{outcome.look_alikes} of the {total} good images look like another one. If they show "
            "the same parts again, they teach nothing new: photograph other parts instead."
        )
    dropped = [one.path for one in outcome.split.dropped]
    if dropped:
        yield (
            f"Left out, since their pixels repeat those of another image: "
            f"{counted(len(dropped), 'image')} ({listed(dropped)})."
        )


def _warnings(outcome: Outcome) -> Iterator[str]:
    if not outcome.split.held_out_good:
        yield (
            "No good image was held out, so the good ones on this page are training images. Their "
            "scores are lower than those of new parts; use --hold-out 0.15."
        )


def _rows(outcome: Outcome) -> list[dict[str, object]]:
    """The table of types, with a row of all where there are several."""
    kinds = _by_kind(outcome.defective)
    if len(kinds) > 1:
        kinds["all"] = list(outcome.defective)
    return [
        {
            "kind": kind,
            "count": len(seen),
            "lowest": min(one.score for one in seen),
            "median": float(np.median([one.score for one in seen])),
            "above": len(outcome.above_good(seen)),
            "auroc": outcome.separation_of(seen),
        }
        for kind, seen in kinds.items()
    ]


def _curves(outcome: Outcome) -> Markup:
    end, joins = outcome.settings.epochs, outcome.settings.second_pass_from
    points = [(float(epoch.number), epoch) for epoch in outcome.epochs]
    return curves_svg(
        [
            Curve(label="loss", points=[(at, epoch.loss) for at, epoch in points], dots=True),
            Curve(
                label="learning rate", points=[(at, epoch.learning_rate) for at, epoch in points]
            ),
        ],
        end=float(end),
        axis="epoch",
        mark=(float(joins), "pass 2 joins") if 0 < joins < end else None,
    )


def _facts(outcome: Outcome) -> dict[str, str]:
    record, split = outcome.record, outcome.split
    watched = [
        f"{epoch.separation:.3f} after {epoch.number}"
        for epoch in outcome.epochs
        if not math.isnan(epoch.separation)
    ]
    separation = outcome.separation
    epochs = {
        "AUROC seen on the way (epochs)": ", ".join(watched) or "–",
        "Last loss": f"{record.final_loss:.3g}",
        "Epochs": f"{record.epochs}",
    }
    return {
        "Learnt from": f"{record.good} good, {record.defective} defective",
        "Held out": f"{len(split.held_out_good)} good",
        "AUROC on this page": "–" if separation is None else f"{separation:.4f}",
        "Views": outcome.geometry,
        **(epochs if outcome.settings.descends else {}),
        "Time": _duration(record.seconds),
        "Recipe": record.recipe,
        "Seed": f"{record.seed}",
        "Backbone": record.backbone,
        **outcome.settings.facts,
        "Pretrained": record.pretrained,
        "Kept for the test": f"{sum(not item.defective for item in split.test)} good, "
        f"{sum(item.defective for item in split.test)} defective",
        "Bundle": outcome.bundle_id,
        "Versions": ", ".join(f"{name} {v}" for name, v in record.versions.items()),
    }


def _histogram(outcome: Outcome, outlook: Outlook | None) -> Markup:
    if outlook is not None:
        return histogram_svg(outlook.good_scores, outlook.defective_scores, outlook.threshold)
    good, defective = ([seen.score for seen in each] for each in (outcome.good, outcome.defective))
    return histogram_svg(good, defective, outcome.threshold)


def _galleries(
    outcome: Outcome, images: Images, outlook: Outlook | None
) -> list[dict[str, object]]:
    """What the deployed network sees.

    Where other models have scored good images that it learnt, its own scores of them mislead.
    """
    kind = "Held-out good" if outcome.split.held_out_good else "Good training"
    good = outcome.good if outlook is None or outcome.split.held_out_good else ()
    galleries: dict[str, Sequence[Seen]] = {
        f"{kind} images with the highest scores": good[:_DOUBTFUL],
        "Known defects with the lowest scores": outcome.defective[::-1][:_DOUBTFUL],
        "The clearest of both, to compare": (
            *good[_DOUBTFUL:][-_CLEAR:],
            *outcome.defective[: max(0, len(outcome.defective) - _DOUBTFUL)][:_CLEAR],
        ),
    }
    return [
        {"title": title, "shown": [_figure(outcome, images, seen) for seen in chosen]}
        for title, chosen in galleries.items()
        if chosen
    ]


def _figure(outcome: Outcome, images: Images, seen: Seen) -> dict[str, object]:
    wrong = seen.item.defective and not outcome.above_good([seen])
    remarks = ["no higher than a good part"] if wrong else []
    if not seen.inspection.zoomed and outcome.settings.looks_closer:
        remarks.append("no region for pass 2")
    views: dict[str, Pixels] = {}
    problem = ""
    try:
        views = _views(outcome, images, seen)
    except (AtacError, cv2.error) as error:
        problem = str(error)
    return {
        "score": seen.score,
        "name": short(seen.item.path),
        "wrong": wrong,
        "remark": ", ".join(remarks),
        "views": views,
        "problem": problem,
    }


def _views(outcome: Outcome, images: Images, seen: Seen) -> dict[str, Pixels]:
    pixels, inspection = images.pixels(seen.item), seen.inspection
    box = inspection.box
    pictures = {
        "part": reduced(pixels, _SIDE),
        "attention": attended(pixels, inspection, max_side=_SIDE),
        "deviations": annotated(pixels, inspection, outcome.threshold, max_side=_SIDE),
    }
    if inspection.zoomed:
        closer = pixels[box.top : box.bottom, box.left : box.right]
        pictures["closer"] = reduced(closer, _SIDE)
    return pictures


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
    return f"; the data holds {listed(kept)}, kept for the test: a larger --defects takes some"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
