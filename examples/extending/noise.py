"""A camera that gives frames of noise."""

from typing import Literal

import numpy as np

from agent.cameras.pace import PacedCamera
from agent.cameras.settings import AnyCameraSettings
from agent.ports import CameraContext
from engine.frame import Frame
from engine.spec import spec


@spec
class NoiseSettings(AnyCameraSettings):
    type: Literal["noise"] = "noise"


class NoiseCamera(PacedCamera):
    is_live = True

    def renewed(self) -> "NoiseCamera":
        return NoiseCamera(self.context)

    def read(self) -> Frame:
        pixels = np.random.default_rng(self.number).integers(0, 256, (480, 640), np.uint8)
        return self.frame(pixels)


def open(_settings: NoiseSettings, context: CameraContext) -> NoiseCamera:
    return NoiseCamera(context)
