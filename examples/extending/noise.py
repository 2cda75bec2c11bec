"""A camera that gives frames of noise."""

from dataclasses import dataclass, replace
from threading import Event
from time import time_ns
from typing import Literal, Self

import numpy as np

from agent.cameras.settings import AnyCameraSettings
from engine.frame import Frame
from engine.spec import spec


@spec
class NoiseSettings(AnyCameraSettings):
    type: Literal["noise"] = "noise"


@dataclass
class NoiseCamera:
    settings: NoiseSettings
    stop: Event
    number: int = -1
    triggered, silence_s, is_live = True, None, True

    def renewed(self) -> "NoiseCamera":
        return replace(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def part_id(self, _number: int) -> None: ...

    def read(self) -> Frame | None:
        self.number += 1
        pixels = np.random.default_rng(self.number).integers(0, 256, (480, 640), np.uint8)
        return Frame(pixels=pixels, number=self.number, captured_ns=time_ns())


open = NoiseCamera
