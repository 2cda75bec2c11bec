"""Watches whether the line still is what its calibration has seen; a fault says what to do.

The score test (`calibration/drift.py`) takes every OK part, in the recording thread. After an alarm
it begins again, and the fault stays until a number of parts have passed without another one.
"""

import logging
from typing import Final

from agent.part import Part, State
from agent.station.controls import Controls
from calibration.drift import ScoreTest

_LOG: Final = logging.getLogger("atac_agent.line")
_STAYS: Final = 2000
"""Parts without a further alarm after which scores are taken for what they were."""
SCORES: Final = (
    "scores of OK parts are no longer like those of the calibration, so its promise may not hold: "
    "look at the last parts, the light and the lens; if all of them are right, calibrate again "
    "with good parts of now: agent calibrate --config agent.yaml --frames 300"
)


class DriftWatch:
    """Hears of every recorded part; `fault` may be read by any thread."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._calibration_id: str | None = None
        self._test: ScoreTest | None = None
        self._stays = 0

    @property
    def fault(self) -> str | None:
        """What has changed, what it means and what to do."""
        return SCORES if self._stays else None

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
