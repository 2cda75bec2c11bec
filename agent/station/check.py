"""A check with golden samples while the line runs: the next parts of a camera are the samples.

Verdicts and messages are as always, so that what sorts defective parts out is checked as well. The
protocol is written by a thread of its own. Where a check is required, its absence is a fault.
"""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent.golden import Basis, Sample, Truth, basis_of, expected, keep, missing, picture_of
from agent.golden import protocols as kept_protocols
from agent.part import Part
from agent.requests import RequestError
from agent.settings import Config
from agent.station.controls import Controls
from engine.errors import AtacError
from engine.image import visible

_LOG: Final = logging.getLogger("atac_agent.line")
_GIVEN_UP_S: Final = 900.0
"""A check whose samples do not come is over after this."""


_REMEMBERED: Final = 40
"""Protocols that a start reads."""


class GoldenCheck:
    """Hears of every recorded part; anything else may be called by any thread."""

    def __init__(self, config: Config, controls: Controls) -> None:
        self._config = config
        self._controls = controls
        self._lock = threading.Lock()
        self._camera = self._who = self._why = ""
        self._waiting: list[Truth] = []
        self._samples: list[Sample] = []
        self._ends_at = 0.0
        self._of = 0
        self._problem: str | None = None
        self._kept = kept_protocols(self._folder, newest=_REMEMBERED)

    @property
    def _folder(self) -> Path:
        return self._config.check.folder

    @property
    def fault(self) -> str | None:
        """That a check is due, or that its protocol cannot be kept."""
        if self._problem is not None:
            return self._problem
        settings = self._config.check
        if not settings.required:
            return None
        since_ns = time.time_ns() - round(settings.every_h * 3.6e12)
        due = [
            name
            for camera in self._config.cameras
            for name in missing(
                self._kept, self._basis(camera.name), [camera.name], since_ns=since_ns
            )
        ]
        if not due:
            return None
        return (
            f"golden samples have not passed at {', '.join(due)} with this bundle, threshold and "
            "camera: check them on the page, or stop the line and run agent check"
        )

    def begin(self, camera: str, *, by: str, why: str) -> Mapping[str, object]:
        """Take the next parts of a camera for the samples, the good ones first.

        Args:
            camera: Its name.
            by: Who shows them.
            why: What for.

        Raises:
            RequestError: There is no such camera, or a check is running.
        """
        settings = self._config.check
        if camera not in self._config.lines:
            raise RequestError(f"camera: there is none named {camera}")
        with self._lock:
            if self._is_running():
                raise RequestError("a check is running; finish it, or wait until it is given up")
            self._camera, self._who, self._why = camera, by, why
            self._waiting = list(expected(settings.good, settings.defective))
            self._of = len(self._waiting)
            self._samples = []
            self._ends_at = time.monotonic() + _GIVEN_UP_S
        return self.status()

    def cancel(self) -> Mapping[str, object]:
        """End a check that is running; nothing is kept of it."""
        with self._lock:
            self._waiting = []
        return self.status()

    def status(self) -> Mapping[str, object]:
        """What is shown next, and what has come of the last check."""
        with self._lock:
            is_running = self._is_running()
            last = self._kept[-1] if self._kept else None
            return {
                "running": is_running,
                "camera": self._camera if is_running else None,
                "next": self._waiting[0] if is_running else None,
                "done": len(self._samples) if is_running else 0,
                "of": self._of if is_running else 0,
                "last": None if last is None else last.protocol.statement,
                "last_file": None if last is None else last.path.name,
            }

    def add(self, part: Part) -> None:
        """Take one part; called in the recording thread."""
        if not self._waiting or part.camera != self._camera:
            return
        with self._lock:
            if not self._is_running():
                return
            found, pixels = part.inspection, None if part.frame is None else visible(part.frame)
            self._samples.append(
                Sample(
                    truth=self._waiting.pop(0),
                    part_id=part.part_id or "",
                    state=part.ended.state,
                    score=None if found is None else found.score,
                    reason=part.ended.reason,
                    picture=picture_of(pixels),
                )
            )
            if not self._waiting:
                threading.Thread(target=self._keep, name="atac-check", daemon=True).start()

    def _is_running(self) -> bool:
        return bool(self._waiting) and time.monotonic() < self._ends_at

    def _basis(self, camera: str) -> Basis:
        model, threshold = self._controls.model_at(camera), self._controls.threshold_at(camera)
        return basis_of(self._config, model.bundle_id, model.calibration_id, threshold.value)

    def _keep(self) -> None:
        try:
            kept = keep(
                self._folder,
                self._samples,
                self._basis(self._camera),
                camera=self._camera,
                who=self._who,
                why=self._why,
                backend=self._controls.model_at(self._camera).backend(),
                now_ns=time.time_ns(),
            )
        except (AtacError, OSError) as error:
            self._problem = str(error)
            _LOG.error("the protocol of a check cannot be kept: %s", error)
            return
        with self._lock:
            self._problem = None
            self._kept = [*self._kept, kept]
        _LOG.warning("golden samples at %s, %s", self._camera, kept.protocol.statement)
