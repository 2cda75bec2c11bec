"""Parts announced by a variable of a PLC's OPC UA server that counts them, or its product."""

import threading
from typing import Annotated, Literal

from pydantic import Field, model_validator

from agent.opcua.settings import NodeId, PlcServerSettings
from agent.ports import Clock, TriggerSource
from agent.settings_values import Milliseconds
from agent.triggers.settings import WindowSettings
from engine.spec import spec


@spec
class OpcuaSettings(WindowSettings):
    """The PLC's server; `count_node` counts triggers, the others say what the newest part is.

    `id_node` has its id, `product_node` the name or number of its product. The PLC writes the count
    last. `publish_ms` is how often the server tells of changes; a trigger is heard so much later,
    at most. Without `count_node`, which only `product_from` may be, the product is that of the
    whole line.
    """

    type: Literal["opcua"] = "opcua"
    server: PlcServerSettings
    count_node: NodeId | None = None
    id_node: NodeId | None = None
    product_node: NodeId | None = None
    publish_ms: Annotated[Milliseconds, Field(ge=1, le=10_000)] = 10.0

    @property
    def names_products(self) -> bool:
        """Whether each announcement says what the part is."""
        return self.product_node is not None

    @property
    def counts_parts(self) -> bool:
        """Whether it announces parts; False: it only says what the line makes."""
        return self.count_node is not None

    @model_validator(mode="after")
    def _says_something(self) -> "OpcuaSettings":
        if self.count_node is None and self.product_node is None:
            raise ValueError("write count_node, the variable that counts parts")
        return self


def open(settings: OpcuaSettings, stop: threading.Event, clock: Clock) -> TriggerSource:
    """The source that subscribes to these variables."""
    from agent.opcua.plc import OpcuaTriggers, check_installed  # noqa: PLC0415

    check_installed("camera.trigger.type")
    return OpcuaTriggers(
        settings.server,
        count_node=settings.count_node,
        id_node=settings.id_node,
        product_node=settings.product_node,
        every_s=settings.publish_ms / 1e3,
        stop=stop,
        clock=clock,
    )
