"""Pictures of parts, by epoch and sequence; nothing here takes a path from outside.

Sources, in this order: a live frame of the last minutes, the ledger's thumbnail, evidence. What was
made once is kept, within a limit of bytes.
"""

import threading
from collections import OrderedDict
from typing import Any, Final

import cv2
import numpy as np

from agent.record.evidence_files import EvidenceIndex
from agent.services.child import AgentEnd, RefusedError
from engine.errors import ImageError
from engine.frame import Box, Inspection, Pass, Pixels
from engine.image import decode_image
from engine.picture import annotated, framed, jpeg, reduced
from engine.regular_file import read_regular

Key = tuple[str, int]
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
        self._live: dict[str, tuple[int, Key, bytes, dict[str, Any]]] = {}
        self._frames = 0

    # ---- live

    def look(self, cameras: list[str]) -> bool:
        """Ask for the newest frame of each camera; whether there is a new one."""
        is_new = False
        for camera in cameras:
            known = self._live.get(camera)
            after = known[1] if known else ("", 0)
            said, blobs = self._agent.pulse("live", camera=camera, after=after)
            if isinstance(said, dict):
                self._take(camera, said, blobs)
                is_new = True
        return is_new

    def _take(self, camera: str, said: dict[str, Any], blobs: Any) -> None:
        key = str(said["epoch"]), int(said["sequence"])
        pixels = np.frombuffer(blobs[0], np.uint8).reshape(said["shape"])
        picture = reduced(pixels, _LIVE)
        if said["score"] is not None:
            picture = annotated(picture, _inspection(said, picture, blobs[1]), said["threshold"])
        tile = jpeg(reduced(picture, _TILE), quality=75)
        shown = jpeg(picture, max_bytes=200_000, quality=80)
        with self._lock:
            self._frames += 1
            self._live[camera] = self._frames, key, shown, said
            self._keep(("tile", key), tile)
            self._keep(("large", key), shown)

    def live(self, camera: str) -> bytes | None:
        """The newest frame of a camera."""
        with self._lock:
            found = self._live.get(camera)
        return None if found is None else found[2]

    def frames(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """For each camera the number of its newest frame, and what was said of it."""
        with self._lock:
            return {name: (number, said) for name, (number, _, _, said) in self._live.items()}

    def has_tile(self, epoch: str, sequence: int) -> bool:
        """Whether there is a small picture without asking anybody."""
        return ("tile", (epoch, sequence)) in self._kept

    # ---- parts

    def tile(self, epoch: str, sequence: int) -> bytes | None:
        """A small picture."""
        return self._made("tile", (epoch, sequence), _TILE)

    def large(self, epoch: str, sequence: int) -> bytes | None:
        """A picture to judge a part by, with what was found."""
        return self._made("large", (epoch, sequence), _LARGE)

    def frame(self, epoch: str, sequence: int) -> bytes | None:
        """The whole frame as it was inspected, as the file that evidence has."""
        with self._finding:
            path = None if self._evidence is None else self._evidence.find(epoch, sequence)
        try:
            return None if path is None else read_regular(path, limit=_FILE_MAX)
        except OSError:
            return None

    def plain(self, epoch: str, sequence: int, box: Any) -> bytes | None:
        """The whole frame at a size to be shown, with its box alone."""
        key = ("plain", (epoch, sequence))
        if (known := self._known(key)) is not None:
            return known
        data = self.frame(epoch, sequence)
        if data is None:
            return None
        try:
            pixels = decode_image(data, source="evidence")
        except ImageError:
            return None
        shown = framed(pixels, None if box is None else _box(box), max_side=_LARGE)
        made = jpeg(shown, max_bytes=400_000)
        self._keep_made(key, made)
        return made

    def _made(self, kind: str, key: Key, side: int) -> bytes | None:
        if (known := self._known((kind, key))) is not None:
            return known
        try:
            _, blobs = self._agent.ask("thumbnail", epoch=key[0], sequence=key[1])
        except RefusedError:
            return None
        if not blobs:
            return None
        data = bytes(blobs[0])
        if kind == "tile":
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
            if pixels is None:
                return None
            rgb = np.ascontiguousarray(pixels[:, :, ::-1], dtype=np.uint8)
            data = jpeg(reduced(rgb, side), quality=75)
        self._keep_made((kind, key), data)
        return data

    def _known(self, key: tuple[str, Key]) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep_made(self, key: tuple[str, Key], data: bytes) -> None:
        with self._lock:
            self._keep(key, data)

    def _keep(self, key: tuple[str, Key], data: bytes) -> None:
        self._bytes += len(data) - len(self._kept.pop(key, b""))
        self._kept[key] = data
        while self._bytes > _KEPT_BYTES:
            _, old = self._kept.popitem(last=False)
            self._bytes -= len(old)


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
    )
    return found.scaled(of=whole, to=Box.around(picture))


def _box(sides: Any) -> Box:
    left, top, right, bottom = sides
    return Box(left=left, top=top, right=right, bottom=bottom)
