"""The threshold in force: the calibration's, unless somebody was allowed to change it.

A change is written into the ledger before it counts: who asked, when, from what to what. It holds
from the next part on and over restarts, until it is taken back or the calibration is another one.
"""

import logging
from dataclasses import dataclass
from typing import Final

from agent.ledger import Ledger
from agent.ledger_file import ThresholdChange

_LOG: Final = logging.getLogger("atac_agent.line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What counts, and what the calibration says."""

    in_force: float
    calibrated: float


class Threshold:
    """Read by the lanes for each part, changed by the sender's thread."""

    def __init__(self, ledger: Ledger, *, calibrated: float, calibration_id: str) -> None:
        self._ledger = ledger
        self._calibrated = calibrated
        self._calibration_id = calibration_id
        changed = ledger.changed_threshold(calibration_id)
        self._in_force = calibrated if changed is None else changed
        if changed is not None:
            _LOG.warning("the threshold is %g, as somebody asked; not %g", changed, calibrated)

    @property
    def value(self) -> float:
        """The threshold for the next part."""
        return self._in_force

    @property
    def both(self) -> Thresholds:
        return Thresholds(in_force=self._in_force, calibrated=self._calibrated)

    def change(self, value: float | None, *, by: str, nonce: str) -> bool:
        """Use `value` from the next part on, `None` for the calibration's.

        `False` when the ledger cannot be written: then nothing has changed.
        """
        new = self._calibrated if value is None else value
        change = ThresholdChange(
            calibration_id=self._calibration_id,
            by=by,
            nonce=nonce,
            old=self._in_force,
            new=new,
            is_calibrated=value is None,
        )
        if not self._ledger.change_threshold(change):
            return False
        _LOG.warning("the threshold is changed from %g to %g by %s", self._in_force, new, by)
        self._in_force = new
        return True
