"""Parts announced by a variable of a PLC's OPC UA server that counts them."""

import threading
from typing import Annotated, Literal

from pydantic import Field

from agent.opcua.settings import NodeId, PlcServerSettings
from agent.ports import Clock, TriggerSource
from agent.settings_values import Milliseconds
from agent.triggers.settings import WindowSettings
from engine.spec import spec


@spec
class OpcuaSettings(WindowSettings):
    """The PLC's server; `count_node` counts triggers, `id_node` has the id of the newest part.

    The PLC writes the id first, then the count. `publish_ms` is how often the server tells of
    changes; a trigger is heard so much later, at most.
    """

    type: Literal["opcua"] = "opcua"
    server: PlcServerSettings
    count_node: NodeId
    id_node: NodeId | None = None
    publish_ms: Annotated[Milliseconds, Field(ge=1, le=10_000)] = 10.0


def open(settings: OpcuaSettings, stop: threading.Event, clock: Clock) -> TriggerSource:
    """The source that subscribes to these variables."""
    from agent.opcua.plc import OpcuaTriggers, check_installed  # noqa: PLC0415

    check_installed("camera.trigger.type")
    return OpcuaTriggers(
        settings.server,
        count_node=settings.count_node,
        id_node=settings.id_node,
        every_s=settings.publish_ms / 1e3,
        stop=stop,
        clock=clock,
    )
