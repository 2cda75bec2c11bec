"""Watches whether the line still is what its calibration has seen; a fault says what to do.

The score test (`calibration/drift.py`) takes every OK part, in the recording thread. After an alarm
it begins again, and the fault stays until a number of parts have passed without another one. The
audit is counted again with each label that comes of it.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from agent.part import Part, State
from agent.station.controls import Controls
from calibration.drift import ALPHA, PARTS_BETWEEN, Audit, ScoreTest, audit
from calibration.record import Calibration

_LOG: Final = logging.getLogger("atac_agent.line")
_STAYS: Final = 2000
"""Parts without a further alarm after which scores are taken for what they were."""
_REMEDY: Final = "calibrate again with good parts of now: agent calibrate --config agent.yaml"
SCORES: Final = (
    "scores of OK parts are no longer like those of the calibration, so its promise may not hold: "
    f"look at the last parts, the light and the lens; if all of them are right, {_REMEDY}"
)
AUDIT: Final = (
    "more good parts are rejected than the calibration promises, as labels of the audit show: "
    f"{_REMEDY}, or train again with what was labelled"
)
Audited = Callable[[str, float], tuple[int, int] | None]
"""Of a calibration and its threshold: audited good parts, and how many of them were above it."""


class DriftWatch:
    """Hears of every recorded part; all else may be called by any thread."""

    def __init__(
        self, controls: Controls, audited: Audited = lambda _calibration_id, _threshold: None
    ) -> None:
        self._controls = controls
        self._audited = audited
        self._calibration_id: str | None = None
        self._test: ScoreTest | None = None
        self._stays = 0
        self._audit: tuple[str, Audit] | None = None

    @property
    def fault(self) -> str | None:
        """What has changed, what it means and what to do."""
        found = self.audit
        if found is not None and found.is_broken:
            return AUDIT
        return SCORES if self._stays else None

    @property
    def audit(self) -> Audit | None:
        """What the audit of the calibration in force has come to; `None` without one."""
        known = self._audit
        return known[1] if known and known[0] == self._controls.model.calibration_id else None

    def recount(self) -> None:
        """Count the audit again; waits for the ledger."""
        model = self._controls.model
        calibration = model.calibration
        if calibration is None:
            return
        counts = self._audited(model.calibration_id, calibration.threshold)
        if counts is not None:
            good, above = counts
            found = audit(above, good, promised=calibration.max_false_reject)
            self._audit = model.calibration_id, found

    def told(self) -> Mapping[str, object]:
        """All figures, as JSON can hold them."""
        model, found, test = self._controls.model, self.audit, self._test
        return {
            "calibration": None if model.calibration is None else _told(model.calibration),
            "bundle_id": model.bundle_id,
            "threshold": self._controls.threshold.value,
            "fault": self.fault,
            "parts": 0 if test is None else test.parts,
            "evidence": 0.0 if test is None else test.evidence,
            "parts_between": PARTS_BETWEEN,
            "alpha": ALPHA,
            "audit": found
            and {
                "good": found.good,
                "exceedances": found.exceedances,
                "p_value": found.p_value,
                "stake": found.stake,
                "between": found.between,
                "is_broken": found.is_broken,
            },
        }

    def add(self, part: Part) -> None:
        """Take one part; called in the recording thread."""
        ended, found, model = part.ended, part.inspection, self._controls.model
        if model.calibration is None or ended.calibration_id != model.calibration_id:
            return
        if ended.calibration_id != self._calibration_id:
            calibration = model.calibration
            self._calibration_id, self._stays = ended.calibration_id, 0
            self._test = ScoreTest(calibration.good_scores, threshold=calibration.threshold)
        if self._test is None or found is None or ended.state not in {State.OK, State.NG}:
            return
        self._stays = max(0, self._stays - 1)
        if self._test.add(found.score):
            if not self._stays:
                _LOG.warning("drift: %s", SCORES)
            self._stays = _STAYS


def _told(calibration: Calibration) -> Mapping[str, object]:
    return {
        "threshold": calibration.threshold,
        "max_false_reject": calibration.max_false_reject,
        "confidence": calibration.confidence,
        "good": calibration.good,
        "is_proved": calibration.is_proved,
        "created_at": calibration.created_at,
        "good_scores": calibration.good_scores,
        "defective_scores": calibration.defective_scores,
    }
