"""What an agent remembers of its fleet, in one small file.

Serials must not fall, also after a start.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import Field, TypeAdapter

from agent.station.status import DesiredStatus
from engine.bundle import replace_file
from engine.errors import DesiredStateError
from engine.regular_file import read_regular
from engine.spec import SchemaError, parse, spec

KEPT: Final = "fleet.json"
_MAX_BYTES: Final = 1_000_000
_VERSION: Final = 2


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
class Going:
    """A desired bundle and what became of it; `is_settled`: nothing is to be done about it.

    `trial` is how parts had ended when it came into force.
    """

    is_settled: bool = False
    trial: Ends | None = None
    status: DesiredStatus


@spec
class Kept:
    """The newest state that was taken, and by place what became of the bundles that it names.

    `digest` is its manifest's.
    """

    schema_version: int = _VERSION
    serial: int = 0
    digest: str = ""
    expires: str = ""
    stop_serial: int = 0
    is_stopped: bool = False
    stopped_why: str = ""
    bundles: Mapping[str, Going] = Field(default_factory=dict)


_JSON: Final = TypeAdapter(Kept)


class Memory:
    """What is kept in a folder, on disk and here.

    Args:
        folder: The folder.
        changed: Called after each change.

    Raises:
        DesiredStateError: The file is damaged: forgetting its serial would let old states in.
    """

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        self._folder = folder
        self._changed = changed
        self.kept = read_kept(folder)

    def keep(self, kept: Kept) -> None:
        """Take this for true once it is on disk; raises `DesiredStateError` where that refuses."""
        write_kept(self._folder, kept)
        self.kept = kept
        self._changed()

    def put(self, place: str, going: Going) -> None:
        """Keep what became of one bundle; what is settled is true although the disk refuses."""
        kept = replace(self.kept, bundles={**self.kept.bundles, place: going})
        if going.is_settled:
            self.kept = kept
        self.keep(kept)


def read_kept(folder: Path) -> Kept:
    """What was kept in a folder; nothing, where nothing was.

    Raises `DesiredStateError` for a damaged file.
    """
    path = folder / KEPT
    try:
        return parse(
            _JSON, read_regular(path, limit=_MAX_BYTES), version=_VERSION, noun="memory of a fleet"
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
