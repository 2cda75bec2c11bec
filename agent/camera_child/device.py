"""A camera whose vendor's code runs in a child that gives frames by itself.

The child's side is `stream.py`. A kind of such a camera is a module of `agent/cameras` with its
settings and a class derived from `DeviceCamera`, and a module of this package with the vendor's
code; both have the kind's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

import numpy as np

from agent.camera_child.camera import ChildCamera
from agent.camera_child.process import CameraChild
from agent.camera_child.wire import Message
from agent.cameras.pixel_formats import PIXEL_FORMATS, picture
from agent.ports import CameraContext
from engine.errors import CameraError, ConfigurationError, ImageError
from engine.frame import Frame, Pixels

_OPENING_S: Final = 10.0
_FROZEN_S: Final = 2.0
_FINDING_S: Final = 30.0
_LOOK_S: Final = 0.25
_LARGEST_ID: Final = 65_535
"""Of GigE Vision's 16-bit block ids; 1 follows, as 0 is none."""
_LARGEST_STEP: Final = 10_000
_NOTHING: Final[Pixels] = np.empty((0, 0), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a camera says of itself once it is open; what a kind does not know is empty.

    `id` names the device in every event. `features` are those of the configuration, as the camera
    has them, and `before` has those that were different until they were written; `notes` say in one
    sentence each what should be better, such as a small packet size.
    """

    slot_bytes: int
    pixel_format: str
    id: str | None = None
    vendor: str = ""
    model: str = ""
    serial: str = ""
    firmware: str = ""
    address: str = ""
    features: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    packet_size: int | None = None
    notes: tuple[str, ...] = ()


class BlockIds:
    """The numbers of frames behind a camera's block ids, whose 16 bits may wrap."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._number = 0
        self._is_short = True

    def restart(self) -> None:
        """The camera begins to count again."""
        self._last, self._is_short = None, True

    def number(self, block_id: int) -> int:
        """The unwrapped id: higher by one for each frame that the camera has made."""
        last, self._last = self._last, block_id
        if last is None:
            self._number = block_id
            return block_id
        self._is_short &= block_id <= _LARGEST_ID
        step = block_id - last
        if step < 0 and self._is_short and step % _LARGEST_ID <= _LARGEST_STEP:
            step %= _LARGEST_ID
        self._number += max(1, step)  # a count that stands still or falls tells nothing
        return self._number


def found(kind: str, settings: Mapping[str, Any], python: str | None) -> list[dict[str, Any]]:
    """The devices that a child of this kind finds; raises `CameraError` when it cannot look.

    Args:
        kind: The module of `agent/camera_child`.
        settings: What the child is told, from which it knows that it shall look.
        python: As for `CameraChild`.
    """
    child = CameraChild(kind, settings, python=python)
    try:
        child.tell({"do": "find"})
        until = monotonic() + _FINDING_S
        while monotonic() < until:
            if (told := child.hear(_LOOK_S)) is None or "doing" in told:
                continue
            if "found" in told:
                return list(told["found"])
            raise CameraError(f"{kind} {told.get('gone', 'cannot be looked for')}")
        raise CameraError(f"{kind} has not answered for {_FINDING_S:g} s")
    except ConnectionError as error:
        raise CameraError(f"{kind}: the process that looks {error}") from None
    finally:
        child.close(grace_s=1.0)


class DeviceCamera(ChildCamera):
    """A camera with a child of `agent/camera_child`; `child_settings` and `kind` are left to add.

    A child that hangs for two seconds, crashes or takes too much memory is replaced; the agent and
    its other cameras do not wait for it. `opened` is what the device has said of itself, `None`
    while it is away.

    Args:
        name: The camera's name in the configuration.
        context: What it is opened with.
        what: Names it in messages: `camera CAM1`.
        triggered: Whether every frame is a part.
        fires: Whether the camera exposes when `fire` is called.
        bits: How many bits of a pixel count; `None`: all that its format has.
    """

    is_live = True
    grace_s = 2.0

    def __init__(
        self,
        name: str,
        context: CameraContext,
        *,
        what: str,
        triggered: bool,
        fires: bool = False,
        bits: int | None = None,
    ) -> None:
        super().__init__(context, what=what)
        self.triggered = triggered
        self.fires = fires
        self.opened: Opened | None = None
        self._name = name
        self._bits = bits
        self._ids = BlockIds()
        self._first: int | None = None
        self._base = 0
        self._was_open = False
        self.product: str | None = None
        """Whose features it has, where they differ from product to product; `""`: nobody's."""

    @property
    def description(self) -> str:
        if (opened := self.opened) is None:
            return ""
        named = {
            "": f"{opened.vendor} {opened.model}".strip(),
            "serial ": opened.serial,
            "firmware ": opened.firmware,
            "at ": opened.address,
            "packets of ": f"{opened.packet_size} bytes" if opened.packet_size else "",
        }
        features = [
            f"{name} {value}" + (f" (was {opened.before[name]})" if name in opened.before else "")
            for name, value in opened.features.items()
        ]
        return ", ".join([*(what + text for what, text in named.items() if text), *features])

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.opened is None else self.opened.notes

    def connect(self) -> None:
        self.opened, self.fault = None, None
        self.stuck_s = _OPENING_S
        told = self.ask({"do": "open"})
        if told is None:
            return
        if "refused" in told:
            raise self._refused(told)
        self.stuck_s = _FROZEN_S
        self.takes(told["opened"])
        self._was_open = True

    def takes(self, said: Message) -> None:
        """The camera is open, or has started again: its ids begin again."""
        opened = Opened(**said | {"notes": tuple(said.get("notes", ()))})
        if opened.pixel_format not in PIXEL_FORMATS:
            known = ", ".join(PIXEL_FORMATS)
            remedy = f"this agent does not read it; write one of {known}"
            raise self._refused(
                {"refused": "PixelFormat", "value": opened.pixel_format, "remedy": remedy}
            )
        self._ids.restart()
        self._first, self._base = None, self.number
        self.opened = opened

    def adjusted(self, told: Message) -> None:
        """The camera has been set up for a product, or refuses that."""

    def read(self) -> Frame | None:
        """The next frame; `None` when told to stop. Raises `ImageError`, `CameraError`."""
        while (told := self.ask(None)) is not None and "adjusted" in told:
            self.adjusted(told)
        return None if told is None else self._frame(told)

    def fire(self) -> None:
        """Have the camera expose now, where it waits for that; any thread may call."""
        child = self._child
        if child is not None and self.opened is not None:
            child.tell({"do": "fire"})

    def _frame(self, told: Message) -> Frame:
        opened, child = self.opened, self._child
        assert opened is not None
        assert child is not None
        slot = told["frame"]
        block_id = self._ids.number(told["block_id"])
        if self._first is None:
            self._first = block_id
        self.number = self._base + block_id - self._first
        try:
            pixels, bayer = _NOTHING, None
            if told["problem"] is None:
                pixels, bayer = picture(
                    child.slot(slot * opened.slot_bytes, opened.slot_bytes),
                    told["pixel_format"],
                    width=told["width"],
                    height=told["height"],
                    stride=told["stride"],
                    bits=self._bits,
                    keeps_bayer=self.context.takes_bayer(),
                )
        except ValueError as error:
            self.number += 1
            raise ImageError(self._what, str(error)) from None
        finally:
            child.tell({"do": "free", "slot": slot})
        frame = Frame(
            pixels=pixels,
            bayer=bayer,
            number=self.number,
            captured_ns=told["captured_ns"],
            device_id=opened.id,
            block_id=block_id,
            device_ns=told["device_ns"],
            exposure_us=told["exposure_us"],
            trigger_count=told["trigger_count"],
            problem=told["problem"],
            product=self.product,
        )
        self.number += 1
        return frame

    def _refused(self, told: Message) -> Exception:
        """What cannot work ends the run at its start; a camera that comes back may be another."""
        error = ConfigurationError(
            f"camera {self._name}, {told['refused']}", told["value"], told["remedy"]
        )
        return self.gone(f"does not take the configuration: {error}") if self._was_open else error
