"""Evidence files: named so that a person finds one, and the index by which the agent does.

    2026-11-27/main/14-05-09.123_4711_NG_3.214.jpg
    day/camera/local time _ part id _ state _ score

What comes from outside, the camera's name and the part id, is written in letters, digits and a few
signs. The index is a text file of the agent's own in the folder: epoch, sequence and name of each
file, written before the file. Nothing that it does not name is ever the agent's.
"""

import hashlib
import os
import re
import tempfile
import time
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from agent.part import Part, State
from engine.regular_file import open_regular

_DAY_S: Final = 86_400.0
_INDEX_MAX_BYTES: Final = 1_000_000_000
_TEXT_BYTES: Final = 90
_NO_SCORE: Final = "none"
_LINE: Final = re.compile(
    r"(?P<epoch>[0-9a-f]{12}) (?P<sequence>\d{1,19}) "
    r"(?P<name>\d{4}-\d\d-\d\d/(?P<camera>[\w-][\w.-]*)(?:~(?P<product>[\w-][\w.-]*))?/[\d.-]+_[\w.~-]+"
    rf"_(?P<state>{'|'.join(State)})_(?P<score>-?\d+\.\d+|{_NO_SCORE})\.jpg)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """One file of a part: `name` is its path below the folder, as `file_name` gives it."""

    epoch: str
    sequence: int
    name: str

    @property
    def line(self) -> str:
        """Its line of the index."""
        return f"{self.epoch} {self.sequence} {self.name}\n"

    @classmethod
    def of(cls, line: str) -> Self | None:
        """What a line of the index names; `None` for what no agent has written."""
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        return cls(epoch=found["epoch"], sequence=int(found["sequence"]), name=found["name"])

    @property
    def camera(self) -> str:
        """The camera, as it is written in file names."""
        return self._piece("camera") or ""

    @property
    def product(self) -> str | None:
        """The product, as it is written in file names; `None` where all parts are alike."""
        return self._piece("product")

    @property
    def state(self) -> State:
        """How the part ended."""
        return State(self._piece("state") or "")

    @property
    def score(self) -> float | None:
        """Its score to three digits; `None` for a part that was not inspected."""
        score = self._piece("score")
        return None if score in {None, _NO_SCORE} else float(score or "")

    def _piece(self, name: str) -> str | None:
        found = _LINE.fullmatch(self.line.rstrip("\n"))
        assert found is not None, "names are made by file_name, or were matched"
        return found[name]


def file_name(part: Part, *, is_taken: bool = False) -> str:
    """Where the file of an ended part lies below the folder.

    With `is_taken` another part has that name, so the sequence is added to the part id.
    """
    trigger, found = part.trigger, part.inspection
    moment = local(trigger.triggered_ns)
    name = safe(part.part_id or "no-id")
    if is_taken:
        name = f"{name}~{trigger.sequence}"
    score = _NO_SCORE if found is None else f"{found.score:.3f}"
    at = f"{moment:%H-%M-%S}.{moment.microsecond // 1000:03d}"
    place = "~".join(map(safe, filter(None, (part.camera, part.product))))
    return f"{moment:%Y-%m-%d}/{place}/{at}_{name}_{part.ended.state.value}_{score}.jpg"


def safe(text: str) -> str:
    """`text` from outside as a piece of a file name: never empty, hidden, a path or too long."""
    written = "".join(
        letter if letter.isalnum() or letter in "-._" else "-"
        for letter in unicodedata.normalize("NFC", text)
    )
    short = written.encode()[:_TEXT_BYTES].decode(errors="ignore").lstrip(".")
    return short or "-"


def local(time_ns: int) -> datetime:
    """A time in the zone of this machine."""
    return datetime.fromtimestamp(time_ns // 1_000_000 / 1000).astimezone()


def index_path(folder: Path, agent_id: str) -> Path:
    """The index of one agent in a folder that several may share."""
    owner = hashlib.sha256(agent_id.encode()).hexdigest()[:12]
    return folder / f".atac-evidence-{owner}"


class EvidenceIndex:
    """Finds the file of a part, also while an agent writes there; used by one thread."""

    def __init__(self, folder: Path, agent_id: str) -> None:
        self._folder = folder
        self._path = index_path(folder, agent_id)
        self._identity = (0, 0)
        self._read = 0
        self._files: dict[tuple[str, int], Filed] = {}

    def files(self) -> list[Filed]:
        """All that it names, in the order in which they were kept; some may be gone."""
        self._take_up()
        return list(self._files.values())

    def find(self, epoch: str, sequence: int) -> Path | None:
        """The file of a part; `None` where none is kept."""
        self._take_up()
        filed = self._files.get((epoch, sequence))
        path = None if filed is None else self._folder / filed.name
        return path if path is not None and path.is_file() else None

    def _take_up(self) -> None:
        with suppress(OSError), open_regular(self._path) as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._identity or status.st_size < self._read:
                self._identity, self._read = (status.st_dev, status.st_ino), 0
                self._files.clear()
            file.seek(self._read)
            data = file.read(_INDEX_MAX_BYTES)
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if (filed := Filed.of(line)) is not None:
                    self._files[filed.epoch, filed.sequence] = filed


def kept(
    folder: Path,
    agent_id: str,
    *,
    days: float,
    product: str | None = None,
    cameras: Collection[str] = (),
) -> list[Filed]:
    """The frames of inspected parts in an evidence folder, the oldest first.

    Args:
        folder: The folder.
        agent_id: Whose parts.
        days: How far back.
        product: Those of this product; `None`: of all.
        cameras: Those of these cameras; empty: of all.
    """
    since, found = time.time() - days * _DAY_S, []
    names = {safe(name) for name in cameras}
    for filed in EvidenceIndex(folder, agent_id).files():
        if names and filed.camera not in names:
            continue
        if product is not None and filed.product != safe(product):
            continue
        try:
            is_recent = (folder / filed.name).stat().st_mtime >= since
        except OSError:  # it has been removed meanwhile
            continue
        if is_recent and filed.state in {State.OK, State.NG} and filed.score is not None:
            found.append(filed)
    return found


def check_folder(folder: Path) -> str | None:
    """Why nothing can be kept in `folder`; `None` where a file could be written just now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"a picture")
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None
