"""What is to be shipped next, and how far that has come.

    rows after the cursor ──▶ frames, then their parts as one object ──▶ the cursor moves

An object has parts of one epoch and day. Before it is put, its end is noted beside the cursor: what
was put without an answer is then put again under the same name, and is there already.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, Protocol

import duckdb
from pydantic import TypeAdapter, ValidationError

from agent.part import State
from agent.record.feed import START, Cursor, cursor, rest_s
from agent.record.rows import Event
from agent.services.shipper.names import Shipped, day, frame_name, labels_name
from agent.services.shipper.parquet import to_parquet
from agent.services.shipper.store import Store, StoreError
from engine.bundle import replace_file

_LOG: Final = logging.getLogger("atac_agent.shipper")
_STATE: Final = "shipped.json"
_MOST: Final = 36_000
"""Parts of one object: an hour at ten a second; some 20 MB while they are gathered."""
HOUR_NS: Final = 3_600_000_000_000


class ShippingError(Exception):
    """Nothing can be shipped just now; the message says why and what to do."""


class Source(Protocol):
    """The agent whose parts are shipped; `None`: the ledger cannot be read just now."""

    def rows_after(self, after: Cursor) -> list[Event] | None:
        """The next parts after the one at `after`."""
        ...

    def labels_after(self, known: int) -> tuple[str, Sequence[Mapping[str, Any]]] | None:
        """The ledger's epoch, and the next labels after the one with the id `known`."""
        ...

    def frame(self, epoch: str, sequence: int) -> bytes | None:
        """The frame of a part, where one is kept."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far shipping has come, as it is kept in a file.

    `positions` has the last position that is there for each epoch, `ends` the epoch and last
    position of an object that may be there, `frames` how many frames of which hour since 1970 are
    there. `labels` is the epoch and id of the newest label.
    """

    newest: Cursor = START
    positions: Mapping[str, int] = field(default_factory=dict)
    ends: tuple[str, int] | None = None
    frames: tuple[int, int] = (0, 0)
    labels: tuple[str, int] = ("", 0)

    def has(self, event: Event) -> bool:
        """Whether a part is there."""
        return event.position <= self.positions.get(event.epoch, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """An object that is to be put, after these frames, and the progress `then`."""

    name: str
    data: bytes
    parts: int
    frames: tuple[tuple[str, int], ...]
    then: Progress


class Shipper:
    """Ships what is new, when it is told to; used by one thread.

    Args:
        source: Has the parts.
        open_store: Opens what takes them, again after each failure.
        folder: Has the cursor, and room for an object while it is made.
        site: Where the agent is.
        agent_id: Whose parts these are.
        near: An OK part whose score is less than `near` thresholds below it is doubtful.
        frames_an_hour: The most frames that go for each hour of parts, besides labelled ones.
        rest: Waits, so that the ledger's thread does not.
    """

    def __init__(
        self,
        source: Source,
        open_store: Callable[[], Store],
        *,
        folder: Path,
        site: str,
        agent_id: str,
        near: float,
        frames_an_hour: int,
        rest: Callable[[float], object] = time.sleep,
    ) -> None:
        self._source = source
        self._open_store = open_store
        self._store: Store | None = None
        self._made: _Made | None = None
        self._folder = folder
        self._site = site
        self._agent_id = agent_id
        self._near = near
        self._frames_an_hour = frames_an_hour
        self._rest = rest
        self._progress = read_progress(folder)

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        return self._progress

    def ship(self) -> int:
        """Ship all that is there when it begins; says how many parts.

        Raises `ShippingError` where the ledger cannot be read or the disk is full, `StoreError`
        where nothing can be put. What was shipped until then is not shipped again.
        """
        shipped = 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            is_all = False
            while not is_all:
                # What could not be put is put again; making it again costs the line more.
                if self._made is None:
                    parts, is_all = self._next()
                    if not parts:
                        break
                    self._made = self._made_of(parts)
                self._ship(self._made)
                shipped += self._made.parts
                self._made = None
            self._ship_labels()
        except ConnectionError:
            raise
        except OSError as error:
            remedy = "make room, or name another folder"
            raise ShippingError(f"{self._folder}: {error.strerror or error}; {remedy}") from None
        except duckdb.Error as error:  # of a full disk, too
            raise ShippingError(f"{self._folder}: {' '.join(str(error).split())}") from None
        return shipped

    def _next(self) -> tuple[list[Event], bool]:
        """The parts of the next object, and whether there are no more: others wait their turn.

        On a line that makes parts while an object is put, there would be small ones without end.
        """
        parts: list[Event] = []
        for part in self._new():
            if parts and (part.epoch, day(part)) != (parts[0].epoch, day(parts[0])):
                break
            parts.append(part)
            if (part.epoch, part.position) == self._progress.ends or len(parts) == _MOST:
                break
        else:
            return parts, True
        return parts, False

    def _new(self) -> Iterator[Event]:
        after = self._progress.newest
        while True:
            asked = time.perf_counter()
            rows = self._source.rows_after(after)
            took_s = time.perf_counter() - asked
            if rows is None:
                raise ShippingError("the ledger cannot be read; see its fault")
            if not rows:
                return
            yield from (row for row in rows if not self._progress.has(row))
            after = cursor(rows[-1])
            self._rest(rest_s(took_s))

    def _made_of(self, parts: Sequence[Event]) -> "_Made":
        """The object for these parts, whose end is noted before it is put."""
        last = parts[-1]
        self._note(replace(self._progress, ends=(last.epoch, last.position)))
        chosen, hour = self._chosen(parts), _hour(last)
        return _Made(
            name=Shipped.holding(parts, site=self._site).name,
            data=to_parquet(parts, self._folder),
            parts=len(parts),
            frames=tuple((part.epoch, part.sequence) for part in chosen),
            then=replace(
                self._progress,
                newest=cursor(last),
                positions={**self._progress.positions, last.epoch: last.position},
                ends=None,
                frames=(hour, self._used(hour) + sum(_hour(part) == hour for part in chosen)),
            ),
        )

    def _ship(self, made: "_Made") -> None:
        for epoch, sequence in made.frames:
            self._ship_frame(epoch, sequence)
        self._put(made.name, made.data)
        self._note(made.then)

    def _put(self, name: str, data: bytes) -> None:
        if self._store is None:
            self._store = self._open_store()
        try:
            self._store.put(name, data)
        except StoreError:
            self._store = None  # its key may have been replaced
            raise

    def _chosen(self, parts: Sequence[Event]) -> list[Event]:
        """Parts whose frames go: of each hour as many audited as doubtful ones and alarms."""
        hours: dict[int, dict[str, list[Event]]] = {}
        for part in parts:
            if (kind := chosen_as(part, self._near)) is not None:
                kinds = hours.setdefault(_hour(part), {"audit": [], "doubtful": [], "alarm": []})
                kinds[kind].append(part)
        chosen: list[Event] = []
        for hour, kinds in hours.items():
            in_turns = [part for turn in zip_longest(*kinds.values()) for part in turn if part]
            chosen += in_turns[: self._frames_an_hour - self._used(hour)]
        return chosen

    def _used(self, hour: int) -> int:
        """How many frames of this hour are there."""
        last, used = self._progress.frames
        return used if hour == last else 0

    def _ship_frame(self, epoch: str, sequence: int) -> None:
        frame = self._source.frame(epoch, sequence)
        if frame is not None:
            self._put(frame_name(self._site, self._agent_id, epoch, sequence), frame)

    def _ship_labels(self) -> None:
        while True:
            known_epoch, known = self._progress.labels
            answer = self._source.labels_after(known)
            if answer is not None and answer[0] != known_epoch and known:
                known, answer = 0, self._source.labels_after(0)  # another ledger
            if answer is None or not answer[1]:
                return
            epoch, labels = answer
            for label in labels:
                self._ship_frame(str(label["epoch"]), int(label["sequence"]))
            first, last = int(labels[0]["id"]), int(labels[-1]["id"])
            lines = "".join(json.dumps(dict(label)) + "\n" for label in labels)
            name = labels_name(self._site, self._agent_id, epoch, first, last)
            self._put(name, lines.encode())
            self._note(replace(self._progress, labels=(epoch, last)))

    def _note(self, progress: Progress) -> None:
        replace_file(self._folder / _STATE, json.dumps(asdict(progress)).encode())
        self._progress = progress


def _hour(part: Event) -> int:
    return part.decided_ns // HOUR_NS


def chosen_as(part: Event, near: float) -> str | None:
    """Why the frame of a part may be worth shipping; `None`: it is not."""
    if part.audit is not None:
        return "audit"
    if part.state is not State.OK:
        return "alarm"
    if part.score is None or part.threshold is None:
        return None
    is_near = part.score > part.threshold - near * abs(part.threshold)
    return "doubtful" if is_near else None


def read_progress(folder: Path) -> Progress:
    """The progress in a folder; from the beginning where there is none, or it cannot be read."""
    path = folder / _STATE
    try:
        return TypeAdapter(Progress).validate_json(path.read_bytes())
    except FileNotFoundError:
        return Progress()
    except (OSError, ValidationError) as error:
        _LOG.warning("%s: %s; parts may be there twice", path, " ".join(str(error).split()))
        return Progress()
