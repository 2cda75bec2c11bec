"""The threshold in force: the calibration's, unless somebody was allowed to change it.

A change is written into the ledger before it counts: who asked, when, from what to what. It holds
from the next part on and over restarts, until it is taken back or the calibration is another one.
One outside the scores of the calibration rejects nearly all parts, or none: it is refused unless
that is asked for by name, and a fault while it holds.
"""

import logging
import math
import threading
from typing import Final

from agent.record.annotations import ThresholdChange
from agent.record.ledger import Ledger

_LOG: Final = logging.getLogger("atac_agent.line")
ANY_SCORES: Final = (-math.inf, math.inf)


class Threshold:
    """The threshold in force: read by the workers for each part, changed by any thread.

    Args:
        ledger: Keeps the changes.
        calibrated: What the calibration says.
        calibration_id: Names the calibration.
        scores: The lowest and the highest score of the calibration's parts.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        calibrated: float,
        calibration_id: str,
        scores: tuple[float, float] = ANY_SCORES,
    ) -> None:
        self._ledger = ledger
        self._changing = threading.Lock()
        self.take(
            calibrated=calibrated,
            calibration_id=calibration_id,
            scores=scores,
            changed=ledger.changed_threshold(calibration_id),
        )

    def take(
        self,
        *,
        calibrated: float,
        calibration_id: str,
        scores: tuple[float, float],
        changed: float | None,
    ) -> None:
        """Go on with another calibration.

        Args:
            calibrated: What the calibration says.
            calibration_id: Names the calibration.
            scores: The lowest and the highest score of its parts.
            changed: What this calibration's threshold was changed to, if it was.
        """
        with self._changing:
            self._calibrated = calibrated
            self._calibration_id = calibration_id
            self._scores = scores
            self._in_force = calibrated if changed is None else changed
        if changed is not None:
            _LOG.warning(
                "the threshold was set to %.10g by a request (calibrated: %.3g)",
                changed,
                calibrated,
            )

    @property
    def value(self) -> float:
        """The threshold for the next part."""
        return self._in_force

    @property
    def calibrated(self) -> float:
        """What the calibration says."""
        return self._calibrated

    @property
    def fault(self) -> str | None:
        """What a threshold outside the calibration's scores means for parts."""
        reason = self.outside(self._in_force)
        return None if reason is None else f"{reason}; it was set by a request"

    def outside(self, value: float) -> str | None:
        """Why `value` is no threshold for these parts; `None` when it may be one."""
        low, high = self._scores
        if low <= value < high or value == self._calibrated:
            return None
        which = "nearly every part is" if value < low else "no part is likely to be"
        return (
            f"{value:.10g} lies outside the scores of the calibration, {low:.3g} to {high:.3g}: "
            f"{which} NG"
        )

    def change(self, value: float | None, *, by: str, nonce: str, why: str = "") -> bool:
        """Use `value` from the next part on, `None` for the calibration's.

        Args:
            value: The threshold.
            by: Who asks.
            nonce: The request's.
            why: The reason that is given.

        Returns:
            `False` when the ledger cannot be written, or the bundle has just been replaced: then
            nothing has changed.
        """
        by = "".join(letter if letter.isprintable() else "\ufffd" for letter in by)
        new = self._calibrated if value is None else value
        change = ThresholdChange(
            calibration_id=self._calibration_id,
            by=by,
            nonce=nonce,
            why=why,
            old=self._in_force,
            new=new,
            is_calibrated=value is None,
        )
        if not self._ledger.change_threshold(change):
            return False
        _LOG.warning(
            '"%s" set the threshold to %.10g (calibrated: %.3g)', by, new, self._calibrated
        )
        with self._changing:
            if self._calibration_id != change.calibration_id:
                return False
            self._in_force = new
        return True
