"""The figure that counts: the defects found where few good parts are rejected.

Computed from the scores of a ledger, so that old runs are reported again without training. Where a
row has cross-fitted scores, those of all its good parts set the threshold and the test's good parts
are judged by it. Elsewhere the good parts that training has not seen, those held out and those of
the test, are parted in all ways: four fifths set the threshold, the others are judged.
"""

from collections.abc import Sequence
from statistics import fmean

from benchmarks.tables.runs import CONFIDENCE, Record
from calibration.price import AtPromise, at_promise, over_all_partings

LIMITS = (0.03, 0.01)
"""Shares of good parts that a user lets be rejected."""


def promise_of(record: Record, *, limit: float, kind: str | None = None) -> AtPromise:
    """What `record` finds at the promise, of one type of defect or of all.

    Args:
        record: One run.
        limit: The share of good parts that may be rejected; where the good parts are too few for
            it, the lowest that they carry.
        kind: The type of defect; None: all.
    """
    test = record.run.split().test
    pairs = list(zip(test, record.scores, strict=True))
    good = [score for item, score in pairs if not item.defective]
    defective = [score for item, score in pairs if item.defective and kind in (None, item.kind)]
    if record.cross_fitted_scores:
        return at_promise(
            (*record.cross_fitted_scores, *record.held_out_scores),
            good,
            defective,
            max_false_reject=limit,
            confidence=CONFIDENCE,
        )
    return over_all_partings(
        (*record.held_out_scores, *good),
        defective,
        max_false_reject=limit,
        confidence=CONFIDENCE,
    )


def mean_promise(records: Sequence[Record], *, limit: float, kind: str | None = None) -> AtPromise:
    """The mean over draws; `promised` and `parts` are those of the draw that promises least."""
    every = [promise_of(record, limit=limit, kind=kind) for record in records]
    least = max(every, key=lambda one: one.promised)
    rejected = [one.false_rejects for one in every if one.false_rejects is not None]
    return AtPromise(
        promised=least.promised,
        parts=least.parts,
        found=fmean(one.found for one in every),
        false_rejects=fmean(rejected) if rejected else None,
    )
