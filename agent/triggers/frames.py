"""Every frame is a part: what holds for a camera without a trigger of its own."""

import threading
from typing import Literal

from agent.ports import Clock
from agent.triggers.settings import AnyTriggerSettings
from engine.spec import spec


@spec
class FramesSettings(AnyTriggerSettings):
    """The default: nothing announces a part before its frame."""

    type: Literal["frames"] = "frames"


def open(_settings: FramesSettings, _stop: threading.Event, _clock: Clock) -> None:
    """There is no source: the camera's frames are the triggers."""
