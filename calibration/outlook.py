"""A calibration for a person: what will be found and rejected, what decides it, what to do next."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from calibration.bound import good_parts_needed, interval
from calibration.price import (
    Expected,
    Price,
    Removal,
    arguable,
    prices,
    with_more_parts,
    without_highest,
)
from calibration.record import Calibration, calibrate
from calibration.scores import Exhibit, Scores, with_cross_fitted
from calibration.threshold import best_promise, is_carried
from engine.bundle import Bundle
from engine.cross_fitted import cross_fitted_of, pictures_in
from engine.frame import Pixels
from engine.pages.outlook import Outlook, PriceRow, Suspect, TypeRow
from engine.pages.text import counted, percent, short
from engine.picture import annotated

_SHOWN: Final = 4
"""Good parts whose pictures decide."""
_LISTED: Final = 3
"""Removals that are listed."""
_SIDE: Final = 480
_CONFIDENCE: Final = 0.95
_FEW_DEFECTS: Final = 20
_ENOUGH_DEFECTS: Final = 50
"""From here on a headline needs no interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What other promises, fewer and more good parts would find.

    `names` are of the good parts with the highest scores, the highest first; a removal of two takes
    the first two of them. `arguable` is the removal that is worth a look, if any is.
    """

    prices: tuple[Price, ...]
    names: tuple[str, ...]
    removals: tuple[Removal, ...]
    arguable: Removal | None
    more: tuple[Expected, ...]


def costs_of(calibration: Calibration, good: Scores) -> Costs:
    """The costs of `calibration`, which was made from `good`."""
    scores, defects = calibration.good_scores, calibration.defective_scores
    rate, sure = calibration.max_false_reject, calibration.confidence
    most = min(_LISTED, len(scores) - 1)
    by_score = sorted(zip(good.values, good.names, strict=True), key=lambda one: -one[0])
    return Costs(
        prices=prices(scores, defects, confidence=sure),
        names=tuple(name for _, name in by_score[: _shown(calibration)]),
        removals=tuple(
            without_highest(
                scores, defects, removed=removed, max_false_reject=rate, confidence=sure
            )
            for removed in range(1, most + 1)
        ),
        arguable=arguable(scores, defects, max_false_reject=rate, confidence=sure),
        more=with_more_parts(scores, defects, max_false_reject=rate, confidence=sure),
    )


def promise(calibration: Calibration) -> str:
    """What the threshold promises, in one sentence with its n."""
    rate, sure = percent(calibration.max_false_reject), percent(calibration.confidence)
    of = calibration.good
    above = f"{calibration.exceedances} of n={of} good parts scored above the threshold"
    if calibration.is_proved:
        return (
            f"At most {rate} of good parts will be rejected, with {sure} confidence: {above} "
            f"{calibration.threshold:.4g}."
        )
    own = calibration.cross_fitted
    each = "each" if own == of else f"{own} of them"
    return (
        f"At most {rate} of good parts are expected to be rejected, estimated with the bound of "
        f"{sure} confidence and not proved: {above} {calibration.threshold:.4g}, {each} scored by "
        "a model that had not seen the part, but is not the one that will run."
    )


def headline(calibration: Calibration) -> str:
    """What will be found and what rejected, in one sentence."""
    rejected = f"{1000 * calibration.max_false_reject:g}"
    verb = "will" if calibration.is_proved else "should"
    good = f"of 1 000 good parts at most {rejected} {verb} be rejected"
    if not calibration.defective:
        return (
            f"{good.capitalize()}. How many defects will be found is not known: no defect was "
            "given."
        )
    of, found = calibration.defective, calibration.detected
    if of < _ENOUGH_DEFECTS:
        low, high = interval(found, of, confidence=calibration.confidence)
        share = f"about {_of_100(found / of)}"
        known = f" ({counted(of, 'defect')}: {_of_100(low)} to {_of_100(high)})"
    else:
        share, known = f"{_of_100(found / of)}", ""
    return f"Of 100 defects like yours, {share} will be found{known}; {good}."


def look_first(calibration: Calibration, costs: Costs) -> str:
    """The good parts that cost detection, in words; empty where none do."""
    removal = costs.arguable
    if removal is None:
        return ""
    names = _named(costs, removal)
    one = removal.removed == 1
    them, are = ("it", "Is it") if one else ("them", "Are they")
    missing = (
        f" (the promise would then need {counted(removal.missing, 'more good part')})"
        if removal.missing
        else ""
    )
    threshold = f"the threshold would be {removal.threshold:.4g} instead of "
    threshold += f"{calibration.threshold:.4g}"
    if removal.found is None:
        effect = f"far above the others. Without {them} {threshold}{missing}."
        return f"Look at {names} first: {effect} {are} really good?"
    lost = removal.found - calibration.detected
    cost = "It costs" if one else "They cost"
    return (
        f"Look at {names} first: {are.lower()} really good? {cost} {lost} of your "
        f"{calibration.defective} defects: without {them} {removal.found} would be found instead "
        f"of {calibration.detected}, as {threshold}{missing}."
    )


def deciding(calibration: Calibration, costs: Costs) -> str:
    """Which good part sets the threshold, and what the threshold would be without it."""
    rank = calibration.allowed_exceedances
    name = short(costs.names[rank])
    effect = "there would be too few good parts for this promise"
    for removal in costs.removals[:1]:  # none where there is one good part alone
        if not removal.missing:
            effect = f"the threshold would be {removal.threshold:.4g}"
    alone = (
        f"{name} sets the threshold; {counted(rank, 'good part')} may score higher"
        if rank
        else f"{name} alone sets the threshold"
    )
    return f"{alone}. If it is not really good, remove it: {effect}."


def prices_text(costs: Costs, calibration: Calibration) -> str:
    """The table of prices for a terminal."""
    rows = [_row(price, calibration) for price in costs.prices]
    lines = [f"{'good parts rejected':>19}  {'defects found':>13}  threshold"]
    for row in rows:
        mark = " <" if row.is_asked else ""
        lines.append(f"{'≤ ' + row.promise:>19}  {row.found:>13}  {row.threshold}{mark}")
    return "\n".join(lines)


def outlook_of(
    calibration: Calibration, costs: Costs, good: Scores, defective: Scores | None
) -> Outlook:
    """What a page leads with.

    Args:
        calibration: The threshold.
        costs: What other promises and other good parts would find.
        good: The good parts that the calibration was made from.
        defective: The defective parts, if there were any; their folders are their types.
    """
    return Outlook(
        look_first=look_first(calibration, costs),
        headline=headline(calibration),
        basis=promise(calibration),
        suspects=tuple(_suspects(calibration, costs, good)),
        prices=tuple(_row(price, calibration) for price in costs.prices),
        steps=tuple(_steps(calibration, costs)),
        types=found_by_type(calibration, defective),
        good_scores=calibration.good_scores,
        defective_scores=calibration.defective_scores,
        threshold=calibration.threshold,
    )


def found_by_type(calibration: Calibration, defective: Scores | None) -> tuple[TypeRow, ...]:
    """How many of each type are found, the folders of the parts being their types."""
    found: dict[str, list[bool]] = {}
    if defective is not None:
        for name, score in zip(defective.names, defective.values, strict=True):
            found.setdefault(PurePath(name).parent.name, []).append(score > calibration.threshold)
    rows = (
        TypeRow(kind=kind, found=sum(found[kind]), of=len(found[kind])) for kind in sorted(found)
    )
    return tuple(rows) if len(found) > 1 else ()


def training_outlook(bundle: Bundle) -> Outlook | None:
    """What a training may expect by its own images, each scored by a model that left it out.

    None where the recipe has no such scores, or where they are too few for any promise.
    """
    cross_fitted = cross_fitted_of(bundle)
    if cross_fitted is None:
        return None
    pictures = pictures_in(bundle, cross_fitted)
    good = with_cross_fitted(None, cross_fitted, pictures, label="good")
    defective = with_cross_fitted(None, cross_fitted, pictures, label="defective")
    rate = best_promise(len(good.values), confidence=_CONFIDENCE)
    if not is_carried(len(good.values), max_false_reject=rate, confidence=_CONFIDENCE):
        return None
    calibration = calibrate(
        bundle,
        good,
        defective,
        precision="fp32",
        backend="training",
        max_false_reject=rate,
        confidence=_CONFIDENCE,
    )
    return outlook_of(calibration, costs_of(calibration, good), good, defective)


def _suspects(calibration: Calibration, costs: Costs, good: Scores) -> Iterator[Suspect]:
    rank = calibration.allowed_exceedances
    those = ("it", "these two", "these three")
    for place, one in enumerate(good.exhibits[: _shown(calibration)]):
        if place == rank:
            remark = "sets the threshold" if rank else "alone sets the threshold"
        else:
            remark = "would be rejected" if one.score > calibration.threshold else ""
        removal = costs.removals[place] if place < len(costs.removals) else None
        if removal is not None and removal.threshold < calibration.threshold:
            found = f", {removal.found} of {calibration.defective} found" if removal.found else ""
            without = f"without {those[place]}: threshold {removal.threshold:.4g}{found}"
            remark = f"{remark}; {without}" if remark else without
        yield Suspect(
            name=short(one.name),
            score=one.score,
            remark=remark,
            picture=drawn(one, calibration.threshold),
        )


def drawn(exhibit: Exhibit, threshold: float) -> Pixels:
    """The picture of a part as pages show it."""
    if exhibit.inspection is None:
        return exhibit.pixels
    return annotated(exhibit.pixels, exhibit.inspection, threshold, max_side=_SIDE)


def _row(price: Price, calibration: Calibration) -> PriceRow:
    of = calibration.defective
    if price.threshold is None:
        threshold, found = f"{counted(price.missing, 'more good part')} needed", ""
    else:
        threshold = f"{price.threshold:.4g}"
        found = "–" if price.found is None else f"{price.found} of {of}"
    return PriceRow(
        promise=percent(price.max_false_reject),
        threshold=threshold,
        found=found,
        is_asked=price.max_false_reject == calibration.max_false_reject,
    )


def _steps(calibration: Calibration, costs: Costs) -> Iterator[str]:
    of, found = calibration.defective, calibration.detected
    if costs.arguable is not None:
        removal = costs.arguable
        names = _named(costs, removal)
        gain = f": {removal.found} of {of} defects instead of {found}" if of else ""
        yield (
            f"Look again at {names}. What is not really good goes among the defects; then "
            f"calibrate again{gain}."
        )
    if not of:
        yield ("Give defective parts, with --defective: nobody knows yet how many will be found.")
    better = [one for one in costs.more if of and one.found > found / of + 0.5 / of]
    for one in better[:2]:
        yield (
            f"Bring {counted(one.more, 'more good part')}: about {_of_100(one.found)} of 100 "
            f"defects instead of {_of_100(found / of)} (estimated from these scores)."
        )
    dearer = [
        price
        for price in costs.prices
        if price.max_false_reject > calibration.max_false_reject and (price.found or 0) > found
    ]
    if dearer:
        price = dearer[0]
        yield (
            f"If the line can bear {percent(price.max_false_reject)} instead of "
            f"{percent(calibration.max_false_reject)} false rejects: {price.found} of {of} defects "
            f"instead of {found} (--max-false-reject {100 * price.max_false_reject:g}%)."
        )
    if 0 < of < _FEW_DEFECTS:
        say = "says" if of == 1 else "say"
        yield (
            f"{counted(of, 'defect')} {say} little. Bring {_FEW_DEFECTS} or more, several of a "
            "type."
        )
    if not calibration.is_proved:
        needed = good_parts_needed(
            max_false_reject=calibration.max_false_reject, confidence=calibration.confidence
        )
        yield (
            f"For a proof, bring {needed} good parts that training has not seen: agent calibrate "
            "--good DIR --strict."
        )


def _named(costs: Costs, removal: Removal) -> str:
    """The parts that `removal` takes, as a sentence names them."""
    *others, last = (short(name) for name in costs.names[: removal.removed])
    return f"{', '.join(others)} and {last}" if others else last


def _shown(calibration: Calibration) -> int:
    """How many of the highest good parts decide: all that may be rejected, and some others."""
    return max(_SHOWN, calibration.allowed_exceedances + 1)


def _of_100(share: float) -> int:
    """A share as a number of 100, never rounded up: not all are found before all are."""
    return math.floor(100 * share + 1e-9)
