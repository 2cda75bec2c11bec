"""Which good parts set a threshold, and with what they were scored.

Parts that training has not seen prove a promise. Where they are too few, a recipe that has scored
each of its own parts without it may lend those; they are an estimate (docs/calibration.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from calibration.price import AtPromise, at_promise, over_all_partings
from calibration.record import CalibrationRecord
from calibration.threshold import best_promise, is_carried, require_enough
from engine.backends.base import BACKENDS, PrecisionChoice, Runtime
from engine.bundle import Bundle, Precision
from engine.cross_fitted import CrossFitted, cross_fitted_of
from engine.errors import ConfigurationError

_LIMITS: Final = (0.03, 0.01)
_CONFIDENCE: Final = 0.95
_FEWEST: Final = 2
"""Good parts that a threshold needs; of one alone there is no other to judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The promise that a user wants; without a limit, the lowest usual one that parts carry."""

    max_false_reject: float | None
    confidence: float

    def rate(self, parts: int) -> float:
        """The limit on false rejects with this number of good parts."""
        return self.max_false_reject or best_promise(parts, confidence=self.confidence)

    def is_carried_by(self, parts: int) -> bool:
        """Whether this number of good parts is enough."""
        return is_carried(parts, max_false_reject=self.rate(parts), confidence=self.confidence)


def precision_for(
    wanted: PrecisionChoice, parts: int, cross_fitted: CrossFitted | None, asked: Asked
) -> PrecisionChoice:
    """In what to score: fp32 where scores of training, which are in fp32, will be needed.

    Args:
        wanted: What the user said.
        parts: How many good parts there are that training has not seen, at most.
        cross_fitted: Training's own scores, if there are any.
        asked: The promise.
    """
    needs_training = cross_fitted is not None and not asked.is_carried_by(parts)
    return "fp32" if needs_training and wanted == "auto" else wanted


def lent_by_training(
    cross_fitted: CrossFitted | None, runtime: Runtime, *, has_parts: bool
) -> CrossFitted | None:
    """Training's own scores, where they are those that `runtime` would give; else None.

    Raises `ConfigurationError` where there are no other parts either.
    """
    if cross_fitted is None:
        return None
    if runtime.precision == "fp32" and BACKENDS.find(runtime.backend).settings.on_cpu:
        return cross_fitted
    if has_parts:
        return None
    raise ConfigurationError(
        "--good",
        None,
        f"is not given, and training has scored its parts in fp32 on a CPU, not in "
        f"{runtime.precision} by {runtime.backend}; name it, or let auto choose",
    )


def require_enough_with(asked: Asked, parts: int, lent: CrossFitted | None) -> None:
    """Raise `CalibrationError` unless `parts` and those that training lends can be enough."""
    of_training = 0 if lent is None else len(lent.good)
    most = parts + of_training
    require_enough(
        most,
        max_false_reject=asked.rate(most),
        confidence=asked.confidence,
        of_training=of_training,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdScores:
    """Scores that set a threshold, and of whose good parts; none: the test's own do."""

    of: str
    values: tuple[float, ...]
    is_proved: bool
    sha256: frozenset[str] = frozenset()
    """Of the parts' pixels: none of these parts may be in the test too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAtPromise:
    """What is found at one limit on false rejects, overall (`all`) and by type of defect."""

    scores_of: str
    is_proved: bool
    by_kind: dict[str, AtPromise]
    confidence: float = _CONFIDENCE

    @property
    def overall(self) -> AtPromise:
        return self.by_kind["all"]


def threshold_scores(
    bundle: Bundle, record: CalibrationRecord | None, precision: Precision
) -> ThresholdScores:
    """Scores of good parts that neither training nor a test saw, or none."""
    if record is not None:
        found = record.calibration
        return ThresholdScores(
            of="the calibration",
            values=found.good_scores,
            is_proved=found.is_proved,
            sha256=frozenset(found.good_sha256),
        )
    cross_fitted = cross_fitted_of(bundle)
    if cross_fitted is not None and precision == "fp32":
        return ThresholdScores(
            of="training, each scored without itself",
            values=tuple(part.score for part in cross_fitted.good),
            is_proved=False,
            sha256=frozenset(part.sha256 for part in cross_fitted.good),
        )
    return ThresholdScores(of="the test, parted in all ways", values=(), is_proved=True)


def found_at_promises(
    scores: ThresholdScores,
    good: Sequence[float],
    defective: Sequence[float],
    by_kind: Mapping[str, Sequence[float]],
) -> list[FoundAtPromise]:
    """What each limit on false rejects finds; one where the parts carry no lower one.

    Args:
        scores: Set the threshold.
        good: Scores of good parts of the test.
        defective: Scores of its defective parts.
        by_kind: The same by type of defect.
    """
    given, kinds = scores.values, {"all": defective, **by_kind}
    if not defective or len(given or good) < _FEWEST:
        return []
    promises = [
        FoundAtPromise(
            scores_of=scores.of,
            is_proved=scores.is_proved,
            by_kind={
                kind: at_promise(given, good, bad, max_false_reject=rate, confidence=_CONFIDENCE)
                if given
                else over_all_partings(good, bad, max_false_reject=rate, confidence=_CONFIDENCE)
                for kind, bad in kinds.items()
            },
        )
        for rate in _LIMITS
    ]
    least = promises[-1].overall.promised
    return [one for one in promises if one.overall.promised > least] + promises[-1:]
