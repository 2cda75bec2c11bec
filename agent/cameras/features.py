"""A camera's features in a configuration: their SFNC names and the values to be written."""

import math
import threading
from concurrent.futures import Future
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field

from agent.camera_child.device import DeviceCamera
from agent.camera_child.wire import Message
from agent.cameras.settings import AnyCameraSettings, FeatureName, Features, FeatureValue
from agent.ports import CameraContext
from agent.settings_values import Text
from engine.spec import spec

_HANGS_S: Final = 1.0
"""A child with an open camera says three times a second that it waits."""


def feature(features: Features, name: str) -> FeatureValue | None:
    """The value that `name` is given last; `None`: none."""
    return dict(features).get(name)


def is_on(value: FeatureValue | None) -> bool:
    """Whether an enumeration of On and Off is on; YAML takes these words for true and false."""
    return value is True or value == "On"


@spec
class FeaturesSettings(AnyCameraSettings):
    """A camera with features by SFNC names.

    `device` is its serial number, address or id; without one it is the only one. `features` are
    written in this order before it starts, read back and compared. `bits` says how many of the
    lower bits of a pixel count, where it has more than eight. With `TriggerMode: On` every frame
    is a part; with `TriggerSource: Software` beside it the camera exposes when a part is
    announced. `trigger_count_chunk` names the chunk in which the camera counts its triggers.
    """

    device: Text | None = None
    features: Features = ()
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    trigger_count_chunk: FeatureName | None = None

    def __post_init__(self) -> None:
        if self.is_fired and self.trigger is None:
            raise ValueError(
                "TriggerSource: Software needs a trigger that announces parts; write one below "
                "trigger, or TriggerMode: Off"
            )

    @property
    def is_triggered(self) -> bool:
        """Whether the camera waits for something before each frame."""
        return is_on(feature(self.features, "TriggerMode"))

    @property
    def is_fired(self) -> bool:
        """Whether it waits for the agent."""
        return self.is_triggered and feature(self.features, "TriggerSource") == "Software"


class FeaturesCamera(DeviceCamera):
    """A camera with features; triggered where they say so, else free-running.

    Args:
        settings: Which camera, and its features.
        context: What it is opened with.
    """

    max_memory: ClassVar[int]
    """The bytes that its child may take."""

    def __init__(self, settings: FeaturesSettings, context: CameraContext) -> None:
        super().__init__(
            settings.name,
            context,
            what=f"camera {settings.device or settings.name}",
            triggered=settings.is_triggered,
            fires=settings.is_fired,
            bits=settings.bits,
        )
        self._settings = settings
        self._changing = threading.Lock()
        self._wanted = self._sent = next(iter(context.features), None)
        self._is_refused = False
        self._asked = _done()

    @classmethod
    def looking(cls) -> dict[str, Any]:
        """What a child is told that shall say which cameras there are."""
        return {
            "max_memory": cls.max_memory,
            "device": None,
            "features": None,
            "is_free_running": True,
            "trigger_count_chunk": None,
        }

    def child_settings(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "max_memory": self.max_memory,
            "device": settings.device,
            "features": self._features(),
            "is_free_running": not settings.is_triggered,
            "trigger_count_chunk": settings.trigger_count_chunk,
        }

    def renewed(self) -> Self:
        camera = type(self)(self._settings, self.context)
        camera.number = self.number
        if self._wanted is not None:
            camera.adjust(self._wanted)
        return camera

    # ---- features that differ from product to product

    def adjust(self, product: str) -> Future[str | None]:
        """Have the camera set up for `product`; any thread may call, and nothing waits.

        Gives why it refuses, once it has answered. One that is away is set up when it comes back.
        """
        with self._changing:
            if product not in self.context.features:
                return _done()
            if product == self._wanted and not self._is_refused:
                return self._asked
            self._answer("another product came before it was set up")
            self._wanted, self._is_refused, self._asked = product, False, Future()
            if self.opened is None:
                self._answer(None)
            else:
                self._ask()
            return self._asked

    def connect(self) -> None:
        self.asleep_s = math.inf
        super().connect()
        with self._changing:
            self.product = self._sent
            self.asleep_s = _HANGS_S
            if self._wanted == self._sent:
                self._answer(None)
            elif self.opened is not None:
                self._ask()

    def adjusted(self, told: Message) -> None:
        with self._changing:
            self.asleep_s = _HANGS_S
            product, problem = told["adjusted"], None
            if "refused" in told:
                problem = f"does not take {told['refused']} {told['value']!r}: {told['remedy']}"
                self.product, self._is_refused = "", True
                self.fault = f"{problem}; parts of {product} end as ERROR"
            else:
                self.takes(told["opened"])
                self.product, self.fault = product, None
            if product == self._wanted:
                self._answer(problem)

    def _ask(self) -> None:
        if self._child is not None:
            self.asleep_s = math.inf  # it may wait for a camera that is slow to answer
            features = self._features()
            self._child.tell({"do": "adjust", "product": self._sent, "features": features})

    def _features(self) -> Features:
        """What the child is told of the features; `product` is set when it has them."""
        self._sent = self._wanted
        of_product = () if self._sent is None else self.context.features[self._sent]
        return (*self._settings.features, *of_product)

    def _answer(self, problem: str | None) -> None:
        if not self._asked.done():
            self._asked.set_result(problem)


def _done() -> Future[str | None]:
    done: Future[str | None] = Future()
    done.set_result(None)
    return done
