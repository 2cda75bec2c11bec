"""What an agent remembers of its fleet, in one small file.

Serials must not fall, also after a start.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from agent.station.status import FleetStatus
from engine.bundle import replace_file
from engine.errors import DesiredStateError
from engine.regular_file import read_regular
from engine.spec import SchemaError, parse, spec

KEPT: Final = "fleet.json"
_MAX_BYTES: Final = 100_000


@spec
class Ends:
    """How the parts of an epoch ended: all, the NG ones, and those without a verdict."""

    epoch: str
    ended: int
    ng: int
    errors: int

    def since(self, before: "Ends") -> "Ends":
        """What ended after `before`; of another epoch, all."""
        if before.epoch != self.epoch:
            return self
        return replace(
            self,
            ended=self.ended - before.ended,
            ng=self.ng - before.ng,
            errors=self.errors - before.errors,
        )


@spec
class Kept:
    """The newest state that was taken and what became of it; `is_settled`: nothing is to be done.

    `digest` is its manifest's. `trial` is how parts had ended when its bundle came into force.
    """

    schema_version: int = 1
    digest: str = ""
    expires: str = ""
    is_settled: bool = False
    stop_serial: int = 0
    is_stopped: bool = False
    stopped_why: str = ""
    trial: Ends | None = None
    status: FleetStatus = FleetStatus()


_JSON: Final = TypeAdapter(Kept)


def read_kept(folder: Path) -> Kept:
    """What was kept in a folder; nothing, where nothing was.

    Raises `DesiredStateError` for a damaged file: forgetting its serial would let old states in.
    """
    path = folder / KEPT
    try:
        return parse(
            _JSON, read_regular(path, limit=_MAX_BYTES), version=1, noun="memory of a fleet"
        )
    except FileNotFoundError:
        return Kept()
    except (OSError, SchemaError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DesiredStateError(
            f"{path}: cannot be read ({why}); if nobody has put an old desired state into the "
            "registry, remove the file"
        ) from None


def write_kept(folder: Path, kept: Kept) -> None:
    """Keep it, atomically; raises `DesiredStateError` where the disk refuses."""
    path = folder / KEPT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, _JSON.dump_json(kept, indent=2) + b"\n")
    except OSError as error:
        raise DesiredStateError(
            f"{path}: cannot be written ({error.strerror}); the line goes on with its bundle"
        ) from None
