"""What people say and ask, kept in the ledger: labels, thresholds, and requests that were obeyed.

Every function here works on one connection and runs in the ledger's owner thread.
"""

import sqlite3
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.record.rows import clean
from agent.record.schema import read_only


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdChange:
    """Somebody changes the threshold of a calibration, or takes that back (`is_calibrated`)."""

    calibration_id: str
    by: str
    nonce: str
    old: float
    new: float
    is_calibrated: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What somebody did to the agent besides its threshold: `promote`, `rollback` or `product`.

    `old` and `new` are ids of bundles, or names of products.
    """

    kind: str
    who: str
    why: str
    old: str
    new: str
    nonce: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """One line of the audit log: who changed what, when and why."""

    changed_ns: int
    kind: str
    who: str
    why: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What `who`, in this `role`, says of a part, and why it was looked at: `queue`."""

    epoch: str
    sequence: int
    label: str
    who: str = ""
    role: str = ""
    queue: str = ""


def parted_label(label: str) -> tuple[str, str]:
    """A label as people chose it, and the kind of defect where they named one.

    `defective: scratch` is `defective` and `scratch`.
    """
    word, _, kind = label.partition(": ")
    return word, kind


def insert_label(connection: sqlite3.Connection, label: Label) -> bool:
    """Note what somebody says of a part, beside what was said; `False`: there is no such part."""
    return bool(
        connection.execute(
            "INSERT INTO labels (epoch, sequence, labelled_ns, label, who, role, queue)"
            " SELECT epoch, sequence, :now_ns, :label, :who, :role, :queue FROM triggers"
            " WHERE epoch = :epoch AND sequence = :sequence",
            {
                **{name: clean(text) for name, text in asdict(label).items() if name != "sequence"},
                "sequence": label.sequence,
                "now_ns": time.time_ns(),
            },
        ).rowcount
    )


def labels_after(connection: sqlite3.Connection, known: int, limit: int) -> list[dict[str, object]]:
    """The next labels after the one with the id `known`, in the order of labelling."""
    rows = connection.execute(
        "SELECT * FROM labels WHERE id > ? ORDER BY id LIMIT ?", (known, limit)
    )
    return [dict(row) for row in rows]


def audited(
    connection: sqlite3.Connection, calibration_id: str, threshold: float
) -> tuple[int, int]:
    """Good parts that were drawn at random, and how many of them lie above `threshold`.

    Of this calibration. Only what was looked at because it was drawn counts: parts that somebody
    looked at for another reason are no random sample. The latest word on each counts.
    """
    row = connection.execute(
        "SELECT count(*) AS good, coalesce(sum(score > :threshold), 0) AS above FROM"
        " (SELECT DISTINCT epoch, sequence FROM labels WHERE queue = 'audit')"
        " JOIN triggers USING (epoch, sequence) JOIN runs USING (run)"
        " WHERE audit IS NOT NULL AND score IS NOT NULL AND calibration_id = :calibration_id"
        " AND 'good' = (SELECT label FROM labels WHERE labels.epoch = triggers.epoch"
        "  AND labels.sequence = triggers.sequence ORDER BY id DESC LIMIT 1)",
        {"threshold": threshold, "calibration_id": calibration_id},
    ).fetchone()
    return row["good"], row["above"]


def insert_threshold(
    connection: sqlite3.Connection, epoch: str, after: int, change: ThresholdChange
) -> bool:
    """Note a change of the threshold, made when part `after` was the newest."""
    connection.execute(
        "INSERT INTO thresholds"
        " (changed_ns, epoch, after, calibration_id, who, why, nonce, old, new, is_calibrated)"
        " VALUES (:now_ns, :epoch, :after, :calibration_id, :who, :why, :nonce, :old, :new,"
        " :is_calibrated)",
        {
            "now_ns": time.time_ns(),
            "epoch": epoch,
            "after": after,
            "calibration_id": change.calibration_id,
            "who": clean(change.by),
            "why": clean(change.why),
            "nonce": change.nonce,
            "old": change.old,
            "new": change.new,
            "is_calibrated": change.is_calibrated,
        },
    )
    return True


def insert_change(connection: sqlite3.Connection, epoch: str, after: int, change: Change) -> bool:
    """Note a change, made when part `after` was the newest."""
    connection.execute(
        "INSERT INTO changes (changed_ns, epoch, after, kind, who, why, nonce, old, new)"
        " VALUES (:now_ns, :epoch, :after, :kind, :who, :why, :nonce, :old, :new)",
        {
            "now_ns": time.time_ns(),
            "epoch": epoch,
            "after": after,
            "kind": change.kind,
            "who": clean(change.who),
            "why": clean(change.why),
            "nonce": change.nonce,
            "old": change.old,
            "new": change.new,
        },
    )
    return True


def read_changes(connection: sqlite3.Connection, since_ns: int = 0) -> list[Audited]:
    """The audit log from a time on, the oldest first."""
    rows = connection.execute(
        "SELECT changed_ns, kind, who, why, old, new FROM changes WHERE changed_ns >= :since"
        " UNION ALL SELECT changed_ns, 'threshold', who, why, printf('%.6g', old),"
        " printf('%.6g', new) FROM thresholds WHERE changed_ns >= :since ORDER BY changed_ns",
        {"since": since_ns},
    )
    return [Audited(**dict(row)) for row in rows]


def read_product(connection: sqlite3.Connection) -> str | None:
    """The product that somebody switched to last."""
    row = connection.execute(
        "SELECT new FROM changes WHERE kind = 'product' ORDER BY id DESC LIMIT 1"
    ).fetchone()
    return None if row is None else str(row["new"])


def read_threshold(connection: sqlite3.Connection, calibration_id: str) -> float | None:
    """What the threshold of a calibration was changed to; `None` for not, or taken back."""
    row = connection.execute(
        "SELECT new, is_calibrated FROM thresholds WHERE calibration_id = ?"
        " ORDER BY id DESC LIMIT 1",
        (calibration_id,),
    ).fetchone()
    return None if row is None or row["is_calibrated"] else float(row["new"])


def threshold_in_file(path: Path, calibration_id: str) -> float | None:
    """As `read_threshold`, of a file that may not be there or that an agent has open: `None`."""
    if not path.is_file():
        return None
    try:
        with read_only(path) as connection:
            return read_threshold(connection, calibration_id)
    except sqlite3.Error:
        return None


def use_nonce(connection: sqlite3.Connection, nonce: str, until_ns: int, now_ns: int) -> bool:
    """Note that a request is obeyed, until it expires; `False` when it was obeyed before."""
    connection.execute("DELETE FROM nonces WHERE until_ns < ?", (now_ns,))
    return bool(
        connection.execute(
            "INSERT OR IGNORE INTO nonces (nonce, until_ns) VALUES (?, ?)", (nonce, until_ns)
        ).rowcount
    )
