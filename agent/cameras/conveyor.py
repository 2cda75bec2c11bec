"""A conveyor that makes its own parts, whose defects are known."""

from typing import Literal

from agent.cameras.pace import PacedCamera, interval_s
from agent.cameras.settings import AnyCameraSettings
from agent.ports import CameraContext
from agent.settings_values import Count, PartsPerMinute, Seed, Share
from engine.frame import Frame
from engine.spec import spec


@spec
class ConveyorSettings(AnyCameraSettings):
    """Generated parts, from number 0 on; the same seed makes the same parts.

    The source ends after `parts`; without it it never ends. `parts_per_minute` paces the belt;
    without it a part arrives as soon as the agent is free.
    """

    type: Literal["conveyor"] = "conveyor"
    seed: Seed = 0
    defect_rate: Share = 0.1
    parts: Count | None = None
    parts_per_minute: PartsPerMinute | None = None


def open(settings: ConveyorSettings, context: CameraContext) -> "ConveyorCamera":
    """The camera that `settings` describe, not entered yet."""
    return ConveyorCamera(settings, context)


class ConveyorCamera(PacedCamera):
    """A triggered camera over the belt: every part gives one frame, none is skipped."""

    is_live = True

    def __init__(self, settings: ConveyorSettings, context: CameraContext) -> None:
        # Drawing takes OpenCV, which settings do without.
        from agent.synthetic import flange

        super().__init__(context, interval_s=interval_s(settings.parts_per_minute))
        self._settings = settings
        self._flange = flange
        flange.part(settings.seed, 0, 0.0)  # what all share is drawn before the first is due

    def read(self) -> Frame | None:
        """The next part's frame; `None` after the last of `settings.parts`, or when stopped."""
        settings = self._settings
        if self.number == settings.parts or not self.pace.wait():
            return None
        made = self._flange.part(settings.seed, self.number, settings.defect_rate)
        return self.frame(made.pixels)

    def renewed(self) -> "ConveyorCamera":
        camera = ConveyorCamera(self._settings, self.context)
        camera.number = self.number
        return camera

    def truth(self, number: int) -> str:
        """What part `number` shows: `good` or one of `DEFECTS`."""
        return self._flange.truth(self._settings.seed, number, self._settings.defect_rate)
