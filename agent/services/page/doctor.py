"""`agent doctor` in a process of its own, asked from the page; it may take a while."""

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

from agent.child_environment import child_environment

_LOG: Final = logging.getLogger("atac_agent.page")
_WITHIN_S: Final = 180.0

Findings = list[dict[str, Any]]


class Doctor:
    """Examines the machine, one at a time; thread-safe.

    Args:
        config_file: What the agent was started with; `None`: nothing can be examined.
    """

    def __init__(self, config_file: Path | None) -> None:
        self._file = config_file
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.findings: Findings | None = None
        """What was found last; `None` before the first time, and where it has failed."""

    @property
    def is_running(self) -> bool:
        """Whether somebody has to wait."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self) -> None:
        """Begin, unless it runs."""
        with self._lock:
            if self._file is not None and not self.is_running:
                self._thread = threading.Thread(
                    target=self.examine, name="page-doctor", daemon=True
                )
                self._thread.start()

    def examine(self) -> Findings | None:
        """Examine now, and wait for what is found; the cameras are left to the line."""
        code = "from agent.cli import main; main()"
        command = [sys.executable, "-P", "-c", code, "doctor", "--config", str(self._file)]
        found: Findings | None = None
        try:
            done = subprocess.run(  # noqa: S603 - our own program
                [*command, "--running", "--json"],
                capture_output=True,
                timeout=_WITHIN_S,
                check=False,
                env=child_environment() | {"OMP_NUM_THREADS": "1"},
            )
            found = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            _LOG.warning("doctor has not answered: %s", error)
        self.findings = found
        return found
