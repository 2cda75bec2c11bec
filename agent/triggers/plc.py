"""Parts announced by the PLC that gets their results; see docs/plc.md."""

import threading
from typing import Literal

from agent.ports import Announces, Clock, Sink, TriggerSource
from agent.settings_values import Name
from agent.triggers.settings import SinkTriggerSettings
from engine.errors import ConfigurationError
from engine.spec import spec


@spec
class PlcSettings(SinkTriggerSettings):
    """`sink` is the name of the sink that shakes hands with the PLC.

    With `products` the PLC gives the number of each part's product.
    """

    type: Literal["plc"] = "plc"
    sink: Name = "plc"
    products: bool = False

    @property
    def names_products(self) -> bool:
        """Whether each announcement says what the part is."""
        return self.products


def open(
    settings: PlcSettings, stop: threading.Event, _clock: Clock, *, sink: Sink, camera: str
) -> TriggerSource:
    """The parts that the receiver of `sink` announces for `camera`."""
    if not isinstance(sink, Announces):
        remedy = "this sink announces no parts; name one that does, such as type: modbus"
        raise ConfigurationError("camera.trigger.sink", settings.sink, remedy)
    return sink.announces(camera, stop, names_products=settings.products)
