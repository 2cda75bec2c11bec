"""Where the figures of a report come from, with the pictures of its worst parts."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from agent.part import State
from agent.production import Hourly, Worst
from agent.record.annotations import Audited
from agent.record.evidence_files import EvidenceIndex
from agent.record.figures import LedgerFigures
from agent.settings import Config
from engine.errors import ImageError
from engine.frame import Pixels
from engine.image import decode_image, read_image
from engine.picture import reduced

_SIDE: Final = 320


class LedgerSource:
    """The ledger of an agent that is stopped."""

    def __init__(self, connection: sqlite3.Connection, config: Config) -> None:
        self._figures = LedgerFigures(connection)
        folder = config.evidence.folder
        self._index = None if folder is None else EvidenceIndex(folder, config.agent.id)

    def hourly(self, from_ns: int, to_ns: int) -> Hourly:
        return self._figures.hourly(from_ns, to_ns)

    def positions(self, from_ns: int, to_ns: int) -> Iterator[tuple[str, float, float]]:
        return self._figures.positions(from_ns, to_ns)

    def said(self, from_ns: int, to_ns: int) -> Counter[str]:
        return self._figures.said(from_ns, to_ns)

    def worst(self, from_ns: int, to_ns: int, most: int) -> list[Worst]:
        return [
            Worst(
                **{**row, "state": State(row["state"])},
                picture=self._picture(row["epoch"], row["sequence"]),
            )
            for row in self._figures.highest(from_ns, to_ns, most)
        ]

    def changes(self, from_ns: int, to_ns: int) -> list[Audited]:
        return self._figures.changes(from_ns, to_ns)

    def _picture(self, epoch: str, sequence: int) -> Pixels | None:
        """The frame of a part as it was kept, or its thumbnail."""
        path = None if self._index is None else self._index.find(epoch, sequence)
        with suppress(ImageError):
            if path is not None:
                return reduced(read_image(path), _SIDE)
            if (jpeg := self._figures.thumbnail(epoch, sequence)) is not None:
                return reduced(decode_image(jpeg, source="thumbnail"), _SIDE)
        return None
