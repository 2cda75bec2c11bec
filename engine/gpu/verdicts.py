"""How the verdicts of a network on this GPU compared with ONNX Runtime's on the CPU.

`agent build --good` finds it; every start asks for it. It lies in the user's cache, sealed
(`engine/seal.py`), and belongs to one network, one runtime and one kind of GPU.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from engine.bundle import Bundle, Precision, Sha256, replace_file
from engine.errors import BackendError
from engine.parity import Parity
from engine.regular_file import read_regular
from engine.seal import sealed, unsealed
from engine.spec import spec

_LOG: Final = logging.getLogger(__name__)
_PURPOSE: Final = "parity"
_MAX_BYTES: Final = 100_000


@spec
class GpuParity:
    """How the decisions of one network on one GPU compared with ONNX Runtime's on the CPU.

    `subject` is the hash of what was compared. `accepted`: somebody has accepted the verdicts that
    changed.
    """

    subject: Sha256
    compared_at: str
    parity: Parity
    accepted: bool

    @property
    def refused(self) -> bool:
        return bool(self.parity.flips) and not self.accepted


_PARITY: Final = TypeAdapter(GpuParity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Where the comparison of `subject`, known by its hash, is kept."""

    path: Path
    subject: Sha256

    def read(self) -> GpuParity | None:
        """`None` if this very subject was never compared."""
        try:
            raw = read_regular(self.path, limit=_MAX_BYTES)
            found = _PARITY.validate_json(unsealed(self.path.parent, raw, purpose=_PURPOSE) or b"")
        except (OSError, ValidationError):
            return None
        return found if found.subject == self.subject else None

    def write(self, parity: Parity, *, accepted: bool) -> GpuParity:
        """Put the comparison in its place."""
        record = GpuParity(
            subject=self.subject,
            compared_at=datetime.now(UTC).isoformat(timespec="seconds"),
            parity=parity,
            accepted=accepted,
        )
        with cache_explained(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            data = _PARITY.dump_json(record, indent=2)
            replace_file(self.path, sealed(self.path.parent, data, purpose=_PURPOSE))
        return record

    def gate(self, what: str, command: str) -> None:
        """Warn where `what` was never compared; raise `BackendError` where it changes verdicts."""
        found = self.read()
        if found is None:
            _LOG.warning(
                "the verdicts of %s were never compared with ONNX Runtime's; compare them with: %s",
                what,
                command,
            )
        elif found.refused:
            raise BackendError(
                f"{what} changes verdicts: {found.parity.summary}; use another precision, or "
                f"accept it with: {command} --accept-flips"
            )


def comparing(bundle: Bundle, precision: Precision, backend: str) -> str:
    """The command that compares verdicts."""
    return (
        f"agent build --bundle {bundle.path} --backend {backend} --precision {precision} --good DIR"
    )


def cache_folder() -> Path:
    """Where plans and comparisons are kept: `atac-agent/plans` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "atac-agent" / "plans"


@contextmanager
def cache_explained(path: Path) -> Iterator[None]:
    """Errors of writing below the cache as `BackendError`."""
    try:
        yield
    except OSError as error:
        raise BackendError(
            f"{path} cannot be written ({error.strerror or error}); make room, or name another "
            "folder with XDG_CACHE_HOME"
        ) from error
