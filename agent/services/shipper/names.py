"""Names of objects in the bucket: who, when and which parts, so that a list shows every gap.

    parts/date=2026-11-27/site=hamburg/agent=line-3/4f0c2a9be4d1-3601-7200-3600.parquet
                                                    epoch, first, last, how many
    frames/site=hamburg/agent=line-3/4f0c2a9be4d1-4711.jpg
    labels/site=hamburg/agent=line-3/4f0c2a9be4d1-1-12.jsonl
    doctor/site=hamburg/agent=line-3.txt

First and last are positions: they count the parts of a ledger in the order in which they were
recorded, without a gap. Sequences, which a part has from its trigger, may overtake each other. The
folders are Hive's, which DuckDB, Spark and others read as columns. The day comes first, so that one
list has the day of a whole fleet.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self
from urllib.parse import quote, unquote

from agent.record.rows import Event

_PARTS: Final = re.compile(
    r"parts/date=(?P<date>\d{4}-\d\d-\d\d)/site=(?P<site>[^/=]+)/agent=(?P<agent>[^/=]+)/"
    r"(?P<epoch>[0-9a-f]+)-(?P<first>\d{1,19})-(?P<last>\d{1,19})-(?P<count>\d{1,19})\.parquet"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """An object with parts, as its name tells."""

    site: str
    agent: str
    date: str
    epoch: str
    first: int
    last: int
    count: int

    @property
    def name(self) -> str:
        """Its whole name."""
        return (
            f"{parts_of(self.date)}{_owner(self.site, self.agent)}/"
            f"{self.epoch}-{self.first}-{self.last}-{self.count}.parquet"
        )

    @classmethod
    def of(cls, name: str) -> Self | None:
        """What a name tells; `None` for that of something else."""
        if (found := _PARTS.fullmatch(name)) is None:
            return None
        return cls(
            site=unquote(found["site"]),
            agent=unquote(found["agent"]),
            date=found["date"],
            epoch=found["epoch"],
            first=int(found["first"]),
            last=int(found["last"]),
            count=int(found["count"]),
        )

    @classmethod
    def holding(cls, parts: Sequence[Event], *, site: str) -> Self:
        """The object for these parts of one epoch and day, in their order."""
        first = parts[0]
        return cls(
            site=site,
            agent=first.agent_id,
            date=day(first),
            epoch=first.epoch,
            first=first.position,
            last=parts[-1].position,
            count=len(parts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Parts of an epoch that no object has: `parts` of the positions from `first` to `last`."""

    epoch: str
    first: int
    last: int
    parts: int


def missing(objects: Iterable[Shipped]) -> Iterator[Missing]:
    """What is missing between and in the objects of one agent, by their names alone.

    Before the first object of an epoch nothing is known to be missing: the ledger may have begun
    another epoch in the same file, and goes on counting there.
    """
    newest: dict[str, int] = {}
    for one in sorted(objects, key=lambda each: (each.epoch, each.first)):
        known = newest.get(one.epoch, one.first - 1)
        if one.first > known + 1:
            gap = one.first - known - 1
            yield Missing(epoch=one.epoch, first=known + 1, last=one.first - 1, parts=gap)
        if (parts := one.last - one.first + 1 - one.count) > 0:
            yield Missing(epoch=one.epoch, first=one.first, last=one.last, parts=parts)
        newest[one.epoch] = max(known, one.last)


def parts_of(date: str) -> str:
    """What the names of all objects with parts of a day begin with."""
    return f"parts/date={date}/"


def day(event: Event) -> str:
    """The day in UTC on which a part was decided."""
    return f"{datetime.fromtimestamp(event.decided_ns // 1_000_000_000, UTC):%Y-%m-%d}"


def frame_name(site: str, agent: str, epoch: str, sequence: int) -> str:
    """Where the frame of a part is."""
    return f"frames/{_owner(site, agent)}/{epoch}-{sequence}.jpg"


def labels_name(site: str, agent: str, epoch: str, first: int, last: int) -> str:
    """Where labels are, with the ids of the first and the last."""
    return f"labels/{_owner(site, agent)}/{epoch}-{first}-{last}.jsonl"


def probe_name(site: str, agent: str) -> str:
    """Where `agent doctor` tries whether the bucket takes anything."""
    return f"doctor/{_owner(site, agent)}.txt"


def _owner(site: str, agent: str) -> str:
    return f"site={quote(site, safe='')}/agent={quote(agent, safe='')}"
