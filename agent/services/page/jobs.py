"""Retraining as a process of its own: it goes on when the page is started again.

retrain/20261127-140509/job.json      its process, who began it and when
                        log.txt       what it has said
                        out/          `agent retrain`'s folder; curve.jsonl grows by a line for
                                      each epoch, result.json is there at its end
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.child_environment import child_environment
from engine.bundle import replace_file

_LOG_BYTES: Final = 20_000
_KEPT: Final = 5
"""Trainings that are kept, with their bundles."""
_PAGES: Final = ("bundle/training.html", "bundle/calibration.html", "comparison.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training: `result` is what `agent retrain` gives at its end."""

    number: str
    who: str
    begun_ns: int
    is_running: bool
    log: str
    epochs: tuple[dict[str, Any], ...]
    """What each epoch came to: `number`, `of`, `loss`, and `separation` where it was measured."""
    result: dict[str, Any] | None
    pages: tuple[str, ...]
    bundle: Path


class Jobs:
    """The trainings in a folder, one at a time; thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def newest(self) -> Job | None:
        """The training that began last."""
        with suppress(OSError):
            names = sorted(each.name for each in self._folder.iterdir() if each.is_dir())
            return self._job(names[-1]) if names else None
        return None

    def begin(self, arguments: list[str], *, who: str) -> bool:
        """Begin `agent retrain` with these arguments; `False` while another one runs."""
        with self._lock:
            known = self.newest()
            if known is not None and known.is_running:
                return False
            now_ns = time.time_ns()
            number = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now_ns / 1e9))}"
            folder = self._folder / number
            folder.mkdir(parents=True)
            for old in sorted(each for each in self._folder.iterdir() if each.is_dir())[:-_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
            code = "import os; os.nice(9); from agent.cli import main; main()"
            command = [sys.executable, "-P", "-c", code, "retrain", "--out", str(folder / "out")]
            with (folder / "log.txt").open("wb") as log:
                process = subprocess.Popen(  # noqa: S603 - our own program
                    [*command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=child_environment(),
                    start_new_session=True,
                )
            self._processes[number] = process
            about = {"pid": process.pid, "who": who, "begun_ns": now_ns}
            replace_file(folder / "job.json", json.dumps(about).encode())
            return True

    def end(self) -> None:
        """End the training that runs."""
        known = self.newest()
        if known is not None and known.is_running:
            with suppress(OSError, ValueError):
                about = json.loads((self._folder / known.number / "job.json").read_text())
                os.killpg(int(about["pid"]), signal.SIGTERM)

    def page(self, name: str) -> bytes | None:
        """A page that the newest training has made; `None`: there is none of this name."""
        known = self.newest()
        if known is None or name not in known.pages:
            return None
        return (self._folder / known.number / "out" / name).read_bytes()

    def _job(self, number: str) -> Job:
        folder = self._folder / number
        out = folder / "out"
        about: dict[str, Any] = {}
        result = None
        with suppress(OSError, ValueError):
            about = json.loads((folder / "job.json").read_text())
        with suppress(OSError, ValueError):
            result = json.loads((out / "result.json").read_text())
        log = ""
        with suppress(OSError):
            log = (folder / "log.txt").read_bytes()[-_LOG_BYTES:].decode(errors="replace")
        return Job(
            number=number,
            who=str(about.get("who", "")),
            begun_ns=int(about.get("begun_ns", 0)),
            is_running=result is None and self._is_alive(number, about.get("pid")),
            log=log,
            epochs=_epochs(out / "curve.jsonl"),
            result=result,
            pages=tuple(name for name in _PAGES if (out / name).is_file()),
            bundle=out / "bundle",
        )

    def _is_alive(self, number: str, pid: object) -> bool:
        process = self._processes.get(number)
        if process is not None:
            return process.poll() is None
        with suppress(OSError, ValueError, TypeError):
            # Not a child of this process: it was begun by an earlier one.
            command = Path(f"/proc/{int(str(pid))}/cmdline").read_bytes()
            return b"retrain" in command
        return False


def _epochs(file: Path) -> tuple[dict[str, Any], ...]:
    """The whole lines of a curve."""
    epochs: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):  # the last line may be half there
        epochs.extend(json.loads(line) for line in file.read_text("utf-8").splitlines())
    return tuple(epochs)
