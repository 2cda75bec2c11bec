"""The agent's side of the page: its process, and the answers to its questions."""

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import Any, Final, Self

import numpy as np

from agent.child import Answer, RefusedError, ServiceChild
from agent.part import Part
from agent.ports import Watched
from agent.services.child_service import obeyed
from agent.services.page.settings import PageSettings
from agent.station.status import Status
from engine.frame import Pixels
from engine.image import visible

_BIND_S: Final = 2.0
_BACKLOG: Final = 64
_GONE_MS: Final = 20_000
_SHOWN_SIDE: Final = 1280
REQUESTS: Final = (
    "label",
    "labels_after",
    "set_threshold",
    "pause",
    "resume",
    "drift",
    "changes",
    "promotion",
    "promotion_status",
    "check",
    "check_status",
    "check_cancel",
    "switch",
)
"""What the page may ask of the agent; each is a method of `Requests`."""


class PageService:
    """Runs the page beside the line; a context manager.

    An address that cannot be listened on is a `fault`, and tried again.
    """

    def __init__(self, settings: PageSettings, watched: Watched) -> None:
        self._settings = settings
        self._watched = watched
        self._child: ServiceChild | None = None
        self._unbound: str | None = None
        self._faults: dict[str, str] = {}
        self.address: tuple[str, int] | None = None
        """Where it listens, once it does."""
        self._leaving = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atac-page-listen", daemon=True)

    @property
    def fault(self) -> str | None:
        """What is wrong with the page, or what the page has found wrong."""
        of_child = None if self._child is None else self._child.fault
        own = self._unbound or of_child
        return f"page: {own}" if own else next(iter(self._faults.values()), None)

    @property
    def pid(self) -> int | None:
        """The process id of the page; `None` while there is none."""
        return None if self._child is None else self._child.pid

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        with ExitStack() as stack:
            listening = self._listen()
            if listening is None:
                return
            stack.enter_context(listening)
            self.address = listening.getsockname()[:2]
            self._child = stack.enter_context(
                ServiceChild(
                    "page",
                    "agent.services.page.main",
                    setup=self._setup(),
                    feed=self._watched.feed,
                    answer=self._answer,
                    listening=[listening],
                )
            )
            self._leaving.wait()

    def _listen(self) -> socket.socket | None:
        host, port = self._settings.address
        while True:
            try:
                listening = listen(host, port)
            except OSError as error:
                why = error.strerror or str(error)
                self._unbound = f"cannot listen on {self._settings.listen}: {why}; name another"
            else:
                self._unbound = None
                return listening
            if self._leaving.wait(_BIND_S):
                return None

    def _setup(self) -> Mapping[str, object]:
        config = self._watched.config
        evidence = config.evidence
        return {
            "agent_id": config.agent.id,
            "listen": self._settings.listen,
            "folder": self._settings.place(config.ledger.path),
            "labelled": self._settings.labelled(config.ledger.path),
            "certificate_file": self._settings.certificate_file,
            "key_file": self._settings.key_file,
            "idle_s": self._settings.idle_minutes * 60,
            "shifts": self._settings.shifts,
            "near": evidence.near,
            "audit": evidence.audit,
            "evidence": evidence.folder,
            "keep_days": config.ledger.keep_days,
            "checks": config.check.folder,
            "config_file": self._watched.config_file,
            "started": time.time(),
            "bundle": config.bundle.path,
            "products": {
                product.name: {
                    "bundle": product.bundle.path,
                    "cameras": [name for name in config.lines if name not in config.views(product)],
                }
                for product in config.products
            },
            "product_from": None if config.product_from is None else config.product_from.type,
            "training": self._settings.training,
            "backbone_weights": self._settings.backbone_weights,
        }

    # ---- answers, by the threads of the child

    def _answer(self, question: str, values: dict[str, Any]) -> Answer:
        match question:
            case "status":
                status = self._watched.status()
                return None if status.time_ns == values["known"] else told(status), ()
            case "epoch":
                return self._watched.status().epoch, ()
            case "live":
                return self._live(str(values["camera"]), tuple(values["after"]))
            case "thumbnail":
                jpeg = self._watched.feed.thumbnail(str(values["epoch"]), int(values["sequence"]))
                return None, () if jpeg is None else (jpeg,)
            case "fault":
                self._note(str(values["name"]), values["text"])
                return None, ()
            case _ if question in REQUESTS and self._watched.requests is not None:
                return obeyed(self._watched.requests, question, values), ()
        raise RefusedError(f"there is no question {question}")

    def _note(self, name: str, text: str | None) -> None:
        with suppress(KeyError):
            del self._faults[name]
        if text is not None:
            self._faults[name] = f"{name}: {text}"

    def _live(self, camera: str, after: tuple[object, ...]) -> Answer:
        part = self._watched.live.newest(camera)
        if part is None or part.frame is None:
            return None, ()
        key = (self._watched.status().epoch, part.trigger.sequence)
        if key == after:
            return None, ()
        return _shown(part, key)


def _shown(part: Part, key: tuple[str, int]) -> Answer:
    """A part with its frame, not larger than can be shown, and its score map."""
    assert part.frame is not None
    pixels, found = visible(part.frame), part.inspection
    small = _thinned(pixels)
    blobs = [np.ascontiguousarray(small).tobytes()]
    said: dict[str, object] = {
        "epoch": key[0],
        "sequence": key[1],
        "part_id": part.part_id,
        "camera": part.camera,
        "state": part.ended.state.value,
        "threshold": part.ended.threshold,
        "decided_ns": part.ended.decided_ns,
        "shape": small.shape,
        "size": pixels.shape[:2],
        "score": None,
    }
    if found is not None:
        box = found.box
        said |= {
            "score": found.score,
            "box": [box.left, box.top, box.right, box.bottom] if found.zoomed else None,
            "map_threshold": found.map_threshold,
            "map": found.score_map.shape,
            "regions": [asdict(each) for each in found.regions],
        }
        blobs.append(np.ascontiguousarray(found.score_map, dtype=np.float32).tobytes())
    return said, blobs


def _thinned(pixels: Pixels) -> Pixels:
    """Every n-th pixel, so that copying costs the agent little; the page makes it smooth."""
    step = max(1, max(pixels.shape[:2]) // _SHOWN_SIDE)
    return pixels[::step, ::step]


def told(status: Status) -> dict[str, object]:
    """A status as JSON can hold it."""
    return asdict(status)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises `OSError` where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections have these too: a browser whose machine has gone is forgotten soon.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
