"""Pictures of parts, by epoch and sequence; nothing here takes a path from outside.

Sources, in this order: a live frame of the last minutes, the ledger's thumbnail, evidence. What was
made once is kept, within a limit of bytes.
"""

import threading
from collections import OrderedDict
from typing import Any, Final

import numpy as np

from agent.child import AgentEnd, RefusedError
from agent.record.evidence_files import EvidenceIndex
from agent.services.page.history import Row
from engine.errors import ImageError
from engine.frame import Box, FoundRegion, Inspection, Pass, Pixels
from engine.image import decode_image
from engine.picture import annotated, framed, jpeg, reduced
from engine.regular_file import read_regular

Key = tuple[str, int]
KINDS: Final = ("tile", "large", "plain", "bare", "bare_tile")
"""Small and large, with all that is known; large with the box alone; large and small without."""
_TILE: Final = 200
_LIVE: Final = 640
_LARGE: Final = 1280
_KEPT_BYTES: Final = 24_000_000
_FILE_MAX: Final = 50_000_000


class Pictures:
    """JPEGs of parts; thread-safe.

    Args:
        agent: Asked for live frames and thumbnails.
        evidence: Names the frames that are kept; `None` where none are.
    """

    def __init__(self, agent: AgentEnd, evidence: EvidenceIndex | None) -> None:
        self._agent = agent
        self._evidence = evidence
        self._finding = threading.Lock()
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Key], bytes] = OrderedDict()
        self._bytes = 0
        self._live: dict[str, tuple[int, Key, dict[str, Any]]] = {}
        self._frames = 0

    # ---- live

    @property
    def version(self) -> int:
        """Changes with each live frame."""
        return self._frames

    def look(self, cameras: list[str]) -> list[Key]:
        """Ask for the newest frame of each camera; gives the parts whose frames are new."""
        new = []
        for camera in cameras:
            known = self._live.get(camera)
            after = known[1] if known else ("", 0)
            said, blobs = self._agent.pulse("live", camera=camera, after=after)
            if isinstance(said, dict):
                new.append(self._take(camera, said, blobs))
        return new

    def _take(self, camera: str, said: dict[str, Any], blobs: Any) -> Key:
        key = str(said["epoch"]), int(said["sequence"])
        pixels = np.frombuffer(blobs[0], np.uint8).reshape(said["shape"])
        picture = reduced(pixels, _LIVE)
        if said["score"] is not None:
            picture = annotated(picture, _inspection(said, picture, blobs[1]), said["threshold"])
        shown = jpeg(picture, max_bytes=200_000, quality=80)
        with self._lock:
            self._frames += 1
            self._live[camera] = self._frames, key, said
            self._keep(("large", key), shown)
        return key

    def frames(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """For each camera the number of its newest frame, and what was said of it."""
        with self._lock:
            return {name: (number, said) for name, (number, _, said) in self._live.items()}

    def is_live(self, epoch: str, sequence: int) -> bool:
        """Whether there is a large picture without asking anybody."""
        return ("large", (epoch, sequence)) in self._kept

    # ---- parts

    def has(self, row: Row) -> bool:
        """Whether there is any picture of a part, as far as can be told without asking."""
        if row.has_thumbnail or self.is_live(row.epoch, row.sequence):
            return True
        with self._finding:
            return self._evidence is not None and (
                self._evidence.find(row.epoch, row.sequence) is not None
            )

    def known(self, kind: str, epoch: str, sequence: int) -> bytes | None:
        """A picture that was made before, without asking anybody."""
        return self._known((kind, (epoch, sequence)))

    def picture(self, kind: str, row: Row) -> bytes | None:
        """A picture of a part, one of `KINDS`; `None` where there is none."""
        key = (kind, (row.epoch, row.sequence))
        side = _TILE if kind in {"tile", "bare_tile"} else _LARGE
        made = None
        if kind in {"tile", "large"}:
            made = self._from_thumbnail(row, side)
        if made is None:
            made = self._from_frame(row, side, has_box=not kind.startswith("bare"))
        if made is None and kind == "tile":
            made = _small(self.known("large", row.epoch, row.sequence))
        if made is not None:
            with self._lock:
                self._keep(key, made)
        return made

    def frame(self, epoch: str, sequence: int) -> bytes | None:
        """The whole frame as it was inspected, as the file that evidence has."""
        with self._finding:
            path = None if self._evidence is None else self._evidence.find(epoch, sequence)
        try:
            return None if path is None else read_regular(path, limit=_FILE_MAX)
        except OSError:
            return None

    def _from_thumbnail(self, row: Row, side: int) -> bytes | None:
        if not row.has_thumbnail:
            return None
        try:
            _, blobs = self._agent.ask("thumbnail", epoch=row.epoch, sequence=row.sequence)
        except RefusedError:
            return None
        if not blobs or side == _LARGE:
            return bytes(blobs[0]) if blobs else None
        return _small(bytes(blobs[0]))

    def _from_frame(self, row: Row, side: int, *, has_box: bool) -> bytes | None:
        data = self.frame(row.epoch, row.sequence)
        if data is None:
            return None
        try:
            pixels = decode_image(data, source="evidence")
        except ImageError:
            return None
        box = _box(row.box) if has_box and row.box is not None else None
        return jpeg(framed(pixels, box, max_side=side), max_bytes=400_000)

    def _known(self, key: tuple[str, Key]) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: tuple[str, Key], data: bytes) -> None:
        self._bytes += len(data) - len(self._kept.pop(key, b""))
        self._kept[key] = data
        while self._bytes > _KEPT_BYTES:
            _, old = self._kept.popitem(last=False)
            self._bytes -= len(old)


def _small(picture: bytes | None) -> bytes | None:
    """A small picture, quickly: two pixels each way make one, others are left out."""
    try:
        pixels = None if picture is None else decode_image(picture, source="picture")
    except ImageError:
        return None
    if pixels is None:
        return None
    step = max(1, max(pixels.shape[:2]) // (2 * _TILE))
    return jpeg(reduced(pixels[::step, ::step], _TILE), quality=75)


def _inspection(said: dict[str, Any], picture: Pixels, maps: bytes) -> Inspection:
    """What was found, in the coordinates of the picture."""
    height, width = said["size"]
    whole = Box.whole(width, height)
    boxes = [whole, *([_box(said["box"])] if said["box"] else [])]
    score_map = np.frombuffer(maps, np.float32).reshape(said["map"])
    found = Inspection(
        score=said["score"],
        deviation=0.0,
        passes=tuple(Pass(box=box, score=said["score"], view_s=0, network_s=0) for box in boxes),
        attention=score_map,
        score_map=score_map,
        map_threshold=said["map_threshold"],
        regions=tuple(FoundRegion.told(each) for each in said["regions"]),
    )
    return found.scaled(of=whole, to=Box.around(picture))


def _box(sides: Any) -> Box:
    left, top, right, bottom = sides
    return Box(left=left, top=top, right=right, bottom=bottom)
