"""What people say of parts: into the ledger, from there into the history and the data set.

    page ── label ──▶ ledger ── labels after ──▶ history.sqlite
                                    └──────────▶ labelled/labels.jsonl, labelled/frames/HASH.jpg

The frame of a labelled part is copied at once, so that no limit of evidence takes it away. Nothing
there is overwritten: a later line of a part stands beside the earlier ones, and counts.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.child import AgentEnd, RefusedError
from agent.record.annotations import parted_label
from agent.record.rows import part_id, utc
from agent.services.page.access import Visitor
from agent.services.page.history import History
from agent.services.page.pictures import Pictures

_LOG: Final = logging.getLogger("atac_agent.page")
LABELS: Final = ("good", "defective", "unsure")
WITHDRAWN: Final = "withdrawn"
FRAMES: Final = "frames"
RECORDS: Final = "labels.jsonl"


class Labels:
    """Labels on their way; thread-safe.

    Args:
        agent: Keeps them in its ledger.
        history: Has them for the screens.
        pictures: Has the frames.
        folder: The data set.
    """

    def __init__(self, agent: AgentEnd, history: History, pictures: Pictures, folder: Path) -> None:
        self._agent = agent
        self._history = history
        self._pictures = pictures
        self._folder = folder
        self._lock = threading.Lock()
        self._kept: set[tuple[str, int, int]] | None = None

    def say(
        self,
        epoch: str,
        sequence: int,
        label: str,
        *,
        by: Visitor,
        queue: str,
        kind: str = "",
    ) -> None:
        """Keep what somebody says of a part.

        Args:
            epoch: The part's epoch.
            sequence: The part's sequence.
            label: One of `LABELS`, or `WITHDRAWN`.
            by: Who says it.
            queue: Why they looked at it.
            kind: Of defect, in their own words.

        Raises:
            RefusedError: The part has gone, or the ledger cannot be written.
        """
        self._agent.ask(
            "label",
            part=part_id(self._agent.setup["agent_id"], epoch, sequence),
            label=f"{label}: {kind}" if kind and label == "defective" else label,
            by=by.name,
            role="" if by.role is None else by.role.name.lower(),
            queue=queue,
        )

    def take(self) -> None:
        """Take what the ledger has more than we do, whoever said it."""
        with self._lock:
            while True:
                said, _ = self._agent.pulse("epoch")
                epoch = str(said)
                try:
                    found, _ = self._agent.ask(
                        "labels_after", known=self._history.newest_label(epoch)
                    )
                except RefusedError:
                    return
                if not isinstance(found, list) or not found:
                    return
                self._history.add_labels(found, epoch)
                for label in found:
                    self._keep(label)

    def _keep(self, label: Mapping[str, Any]) -> None:
        epoch, sequence = str(label["epoch"]), int(label["sequence"])
        kept = self._known()
        if (epoch, sequence, label["labelled_ns"]) in kept:
            return
        row = self._history.part(epoch, sequence)
        word, kind = parted_label(str(label["label"]))
        record: dict[str, object] = {
            "time": utc(label["labelled_ns"]),
            "labelled_ns": label["labelled_ns"],
            "id": part_id(self._agent.setup["agent_id"], epoch, sequence),
            "epoch": epoch,
            "sequence": sequence,
            "label": word,
            **({"kind": kind} if kind else {}),
            **{name: label[name] for name in ("who", "role", "queue")},
        }
        if row is not None:
            names = ("camera", "part_id", "state", "score", "threshold", "audit", "triggered_ns")
            record |= {name: getattr(row, name) for name in names}
            if row.product is not None:
                record["product"] = row.product
        try:
            record["file"] = self._copied(self._pictures.frame(epoch, sequence))
            with (self._folder / RECORDS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            _LOG.error("%s: a labelled frame cannot be kept: %s", self._folder, error)
        else:
            kept.add((epoch, sequence, label["labelled_ns"]))

    def _copied(self, frame: bytes | None) -> str | None:
        """The name of the frame in the data set; `None` where there is no frame."""
        self._folder.mkdir(0o750, parents=True, exist_ok=True)
        (self._folder / FRAMES).mkdir(0o750, exist_ok=True)
        if frame is None:
            return None
        name = f"{FRAMES}/{hashlib.sha256(frame).hexdigest()}.jpg"
        path = self._folder / name
        if not path.exists():
            unfinished = path.with_suffix(".part")
            unfinished.write_bytes(frame)
            unfinished.replace(path)
        return name

    def _known(self) -> set[tuple[str, int, int]]:
        if self._kept is None:
            self._kept = set()
            path = self._folder / RECORDS
            for line in path.read_text("utf-8").splitlines() if path.exists() else ():
                try:
                    record = json.loads(line)
                    self._kept.add(
                        (record["epoch"], int(record["sequence"]), record["labelled_ns"])
                    )
                except (ValueError, KeyError, TypeError):
                    _LOG.warning("%s: a line that is no record is left as it is", path)
        return self._kept
