"""Images of a folder as a camera: one part each, none skipped.

A child process looks for files, reads and decodes them: a share that hangs, a file that no decoder
survives or an image that would take all memory end that process, not the agent.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from agent.camera_child.camera import ChildCamera
from agent.camera_child.wire import Message
from agent.cameras.pace import interval_s
from agent.cameras.settings import AnyCameraSettings
from agent.ports import CameraContext
from agent.settings_values import AnyPath, PartsPerMinute
from engine.errors import ImageError
from engine.frame import Frame
from engine.spec import spec

_LOG: Final = logging.getLogger("atac_agent.camera")
_ASK_S: Final = 1.0
_RECENT: Final = 100_000
"""Contents that may not be in the ledger yet."""
_TIDIED: Final = 1000
"""Files that are moved or deleted before the next image is asked for."""
_BASE_BYTES: Final = 120_000_000
_BYTES_PER_PIXEL: Final = 8


@spec
class FolderSettings(AnyCameraSettings):
    """All images below `path`, sorted by name.

    `after_last` says what follows the last image: the run ends, the folder is `watch`ed for new
    images, or all are shown again (`repeat`). `parts_per_minute` paces them; without it the next
    image is there as soon as it is wanted. docs/cameras.md explains the other keys.
    """

    type: Literal["folder"] = "folder"
    path: AnyPath
    after_last: Literal["end", "watch", "repeat"] = "end"
    parts_per_minute: PartsPerMinute | None = None
    settle_s: Annotated[float, Field(ge=0.2, le=3600)] = 2.0
    done: Literal["keep", "move", "delete"] = "keep"
    done_folder: AnyPath | None = None
    must_be_mount: bool = False
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    accept_damaged: bool = False
    max_megapixels: Annotated[float, Field(ge=0.01, le=1000)] = 25.0

    @property
    def folder(self) -> Path | None:
        return self.path

    @property
    def written_to(self) -> Mapping[str, Path]:
        return {} if self.done_folder is None else {"done_folder": self.done_folder}

    def __post_init__(self) -> None:
        if self.done != "keep" and self.after_last != "watch":
            raise ValueError(f"done: {self.done} needs after_last: watch")
        if (self.done == "move") != (self.done_folder is not None):
            raise ValueError("done: move and done_folder need each other")


def open(settings: FolderSettings, context: CameraContext) -> "FolderCamera":
    """The camera that `settings` describe, not entered yet."""
    return FolderCamera(settings, context)


class FolderCamera(ChildCamera):
    """A triggered camera over a folder.

    Entered again after a `CameraError` it continues where it was, with what the folder has then. A
    watched folder's images are known by their content, also after a restart where `context` tells
    what is recorded.
    """

    kind = "folder"

    def __init__(self, settings: FolderSettings, context: CameraContext) -> None:
        super().__init__(
            context,
            what=f"camera folder {settings.path}",
            interval_s=interval_s(settings.parts_per_minute),
        )
        self._settings = settings
        self._waiting: deque[str] = deque()
        self._done: set[str] = set()
        self._recent: OrderedDict[str, str] = OrderedDict()
        self._untidied: OrderedDict[str, str] = OrderedDict()
        """Contents whose files are to be moved or deleted, by content."""
        self._ahead: str | None = None  # the image that is read before it is wanted
        self._said: set[str] = set()
        self._unreadable: str | None = None
        self._untidy: str | None = None
        self._was_mount = False

    def connect(self) -> None:
        self._ahead = None
        if self._settings.after_last != "watch":
            self._waiting = deque(name for name in self._list() if name not in self._done)
        else:
            self.ask({"do": "look"})

    def renewed(self) -> "FolderCamera":
        camera = FolderCamera(self._settings, self.context)
        camera.number, camera._names = self.number, dict(self._names)
        camera._done, camera._recent = set(self._done), self._recent.copy()
        camera._untidied = self._untidied.copy()
        return camera

    def read(self) -> Frame | None:
        """The next image; `None` after the last one, or when stopped.

        Raises `ImageError` for an image that cannot be used: it counts as a frame, and the next
        call continues with the next image. Raises `CameraError` when the folder has gone.
        """
        if not self.pace.wait():
            return None
        if self._settings.after_last == "watch":
            told = self._awaited()
        elif (name := self._next_name()) is None:
            return None
        else:
            told = self.ask(None if name == self._ahead else {"do": "read", "path": name})
            self._ahead = None
        return None if told is None else self._used(told)

    def _used(self, told: Message) -> Frame:
        """The frame that the child tells of; it is done with, whatever comes of it."""
        name, content = told["name"], told.get("content")
        if content is not None:
            self._remember(content, name)
        elif self._waiting and self._waiting[0] == name:
            self._done.add(self._waiting.popleft())
        if "failed" in told:
            self.count(name, content)
            raise ImageError(*_halves(told["failed"]))
        if told["note"] is not None:
            self._say(told["note"], f"{name}: {told['note']}")
        frame = self.frame(self.picture(told), name, content)
        if content is None and self._waiting:
            # Decoded while this one is inspected.
            self._ahead = self._waiting[0]
            self.begin({"do": "read", "path": self._ahead})
        return frame

    def _next_name(self) -> str | None:
        """The image whose turn it is; it stays first in `_waiting` until it is done."""
        if not self._waiting:
            if self._settings.after_last == "end":
                return None
            self._done.clear()
            self._waiting = deque(self._list())
        return self._waiting[0] if self._waiting else None

    def _list(self) -> Sequence[str]:
        """All images; raises `CameraError` when there are none."""
        names: list[str] = []
        told = self.ask({"do": "list"})
        while told is not None and "names" in told:
            names += told["names"]
            told = self.ask(None)
        if told is None:
            return ()
        if not names:
            left_out = f"; {told['left_out']}" if told["left_out"] else ""
            raise self.gone(f"holds no images{left_out}")
        return names

    def _awaited(self) -> Message | None:
        """What the child says of the next new image; `None` when it is time to stop."""
        while True:
            self._tidy()
            told = self.ask({"do": "next", "within_s": _ASK_S})
            if told is None or "name" in told:
                return told

    # ---- the child

    def child_settings(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "path": str(settings.path),
            "settle_s": settings.settle_s,
            "must_be_mount": settings.must_be_mount or self._was_mount,
            "max_pixels": round(settings.max_megapixels * 1e6),
            "max_memory": round(_BASE_BYTES + _BYTES_PER_PIXEL * settings.max_megapixels * 1e6),
            "bits": settings.bits,
            "accept_damaged": settings.accept_damaged,
            "done_folder": None if settings.done_folder is None else str(settings.done_folder),
        }

    def replied(self, told: Message) -> Message | None:
        """Which contents need no inspection; else what the child says of the folder is noted."""
        if "recorded?" in told:
            return {"recorded": self._recorded(told["recorded?"])}
        self._note(told)
        return None

    def failed(self, doing: Message, reason: str) -> Message | None:
        """A file that no decoder survives is passed over; else the folder has gone."""
        if doing.get("doing") != "decode":
            return None
        failed = f"{self._settings.path / doing['name']}: cannot be decoded: {reason}"
        return {"failed": failed, "name": doing["name"], "content": doing["content"] or None}

    def _note(self, told: Message) -> None:
        self._was_mount = self._was_mount or told.get("is_mount", False)
        if "fault" in told:
            if told["fault"] != self._unreadable:
                self._tell_of(told["fault"])
            self._unreadable = told["fault"]
        if "untidy" in told:
            if told["untidy"] != self._untidy:
                said = told["untidy"] or f"no longer true: {self._untidy}"
                _LOG.warning("camera %s: %s", self._settings.name, said)
            self._untidy = told["untidy"]
        self.fault = "; ".join(filter(None, (self._unreadable, self._untidy))) or None
        if told.get("left_out"):
            self._say("left out", f"{self._settings.path}: {told['left_out']}")

    def _tell_of(self, fault: str | None) -> None:
        self._said.discard("left out")
        if fault is None:
            _LOG.warning("camera %s: all folders can be read again", self._settings.name)

    def _say(self, key: str, message: str) -> None:
        """Say something once."""
        if key not in self._said:
            self._said.add(key)
            _LOG.warning("camera %s: %s", self._settings.name, message)

    # ---- what was inspected

    def _remember(self, content: str, name: str) -> None:
        self._recent[content] = name
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        if self._settings.done != "keep" and self.context.recorded is not None:
            self._untidied[content] = name

    def _recorded(self, asked: Sequence[tuple[str, str]]) -> list[int]:
        """The places of those contents, each with its file's name, that need no inspection."""
        known: Collection[str] = ()
        if self.context.recorded is not None:
            known = set(self.context.recorded([content for content, _ in asked]))
        if self._settings.done != "keep":
            self._untidied.update((content, name) for content, name in asked if content in known)
        return [
            index
            for index, (content, _) in enumerate(asked)
            if content in known or content in self._recent
        ]

    def _tidy(self) -> None:
        """Move or delete the files whose parts are in the ledger."""
        if not self._untidied or self.context.recorded is None:
            return
        some = dict(islice(self._untidied.items(), _TIDIED))
        done = self.context.recorded(tuple(some))
        if not done:
            return
        told = self.ask({"do": "tidy", "files": [(some[content], content) for content in done]})
        for content in () if told is None else told["done"]:
            del self._untidied[content]


def _halves(failed: str) -> tuple[str, str]:
    source, _, reason = failed.partition(": ")
    return source, reason
