"""Figures of a report from the ledger's file, which no agent has open."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from agent.part import State
from agent.record import annotations
from agent.record.annotations import Audited

_BETWEEN: Final = "triggered_ns >= ? AND triggered_ns < ? AND state IS NOT NULL"
_HOUR_NS: Final = 3_600_000_000_000


@dataclass(frozen=True, slots=True)
class LedgerFigures:
    """What `connection` holds; times are UTC in nanoseconds, the last one excluded."""

    connection: sqlite3.Connection

    def hourly(self, from_ns: int, to_ns: int) -> dict[tuple[int, str, State], int]:
        """Parts by the UTC hour of their trigger, camera and state."""
        rows = self.connection.execute(
            f"SELECT triggered_ns / {_HOUR_NS} AS hour, camera, state, count(*) AS parts"  # noqa: S608 (our own words)
            f" FROM triggers WHERE {_BETWEEN} GROUP BY 1, 2, 3",
            (from_ns, to_ns),
        )
        return {(row["hour"], row["camera"], State(row["state"])): row["parts"] for row in rows}

    def positions(self, from_ns: int, to_ns: int) -> Iterator[tuple[str, float, float]]:
        """Where NG parts had their box: camera, and its centre from 0 to 1 across and down."""
        for row in self.connection.execute(
            "SELECT camera, evidence, frame_width, frame_height FROM triggers"  # noqa: S608 (our own words)
            f" WHERE {_BETWEEN} AND state = 'NG' AND evidence IS NOT NULL",
            (from_ns, to_ns),
        ):
            passes = json.loads(row["evidence"])["passes"]
            if len(passes) > 1:
                left, top, right, bottom = passes[-1]["box"]
                yield (
                    row["camera"],
                    (left + right) / 2 / row["frame_width"],
                    (top + bottom) / 2 / row["frame_height"],
                )

    def said(self, from_ns: int, to_ns: int) -> Counter[str]:
        """The newest labels of NG parts, as they were given; none and withdrawn are empty."""
        rows = self.connection.execute(
            "SELECT (SELECT label FROM labels WHERE labels.epoch = triggers.epoch"  # noqa: S608 (our own words)
            "  AND labels.sequence = triggers.sequence ORDER BY id DESC LIMIT 1) AS label"
            f" FROM triggers WHERE {_BETWEEN} AND state = 'NG'",
            (from_ns, to_ns),
        )
        labels = (row["label"] or "" for row in rows)
        return Counter("" if label == "withdrawn" else label for label in labels)

    def highest(self, from_ns: int, to_ns: int, most: int) -> list[dict[str, Any]]:
        """The parts with the highest scores, measured in thresholds where these are positive."""
        rows = self.connection.execute(
            "SELECT epoch, sequence, camera, part_id, triggered_ns, state, score, threshold,"  # noqa: S608 (our own words)
            " (SELECT label FROM labels WHERE labels.epoch = triggers.epoch"
            "  AND labels.sequence = triggers.sequence ORDER BY labelled_ns DESC LIMIT 1) AS label"
            f" FROM triggers WHERE {_BETWEEN} AND score IS NOT NULL AND threshold IS NOT NULL"
            " ORDER BY CASE WHEN threshold > 0 THEN score / threshold ELSE score END DESC LIMIT ?",
            (from_ns, to_ns, most),
        )
        return [dict(row) for row in rows]

    def thumbnail(self, epoch: str, sequence: int) -> bytes | None:
        """The small annotated picture of a part, if there is one."""
        row = self.connection.execute(
            "SELECT jpeg FROM thumbnails WHERE epoch = ? AND sequence = ?", (epoch, sequence)
        ).fetchone()
        return None if row is None else bytes(row["jpeg"])

    def changes(self, from_ns: int, to_ns: int) -> list[Audited]:
        """The audit log of that time."""
        found = annotations.read_changes(self.connection, from_ns)
        return [one for one in found if one.changed_ns < to_ns]
