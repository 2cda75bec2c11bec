"""The handshake with a PLC over variables of its OPC UA server; see docs/plc.md."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from agent.clock import SystemClock
from agent.opcua.settings import NodeId, PlcServerSettings
from agent.settings_values import Milliseconds, Name
from agent.sinks.settings import AnySinkSettings
from engine.spec import spec

if TYPE_CHECKING:
    from agent.part import Part
    from agent.ports import Sink


def _template(text: str) -> str:
    if text.count("{name}") != 1:
        raise ValueError("write {name} where the name of each variable stands")
    return text


NodeTemplate = Annotated[NodeId, AfterValidator(_template)]


@spec
class OpcuaSettings(AnySinkSettings):
    """The PLC's server, and its variables.

    `agent_nodes` is the node id of each variable that the agent writes, `plc_nodes` of those that
    the PLC writes, with `{name}` for the name. They are read every `poll_ms`. A result that is not
    there `due_ms` after its trigger is NG and late.
    """

    type: Literal["opcua"] = "opcua"
    name: Name = "plc"
    server: PlcServerSettings
    agent_nodes: NodeTemplate
    plc_nodes: NodeTemplate
    poll_ms: Annotated[Milliseconds, Field(ge=2, le=1000)] = 20.0
    due_ms: Milliseconds | None = None


def open(settings: OpcuaSettings, *, agent_id: str, is_alarm: "Callable[[Part], bool]") -> "Sink":
    """See `agent.registry.open_sink`."""
    from agent.opcua.plc import HandshakeConnection, check_installed  # noqa: PLC0415
    from agent.plc.exchange import Exchange  # noqa: PLC0415
    from agent.plc.sink import PlcSink  # noqa: PLC0415

    del agent_id, is_alarm  # a PLC knows its agent, and gets every result
    check_installed("sinks.type")
    due_s = None if settings.due_ms is None else settings.due_ms / 1e3
    return PlcSink(
        settings.name,
        Exchange(due_s=due_s, clock=SystemClock()),
        lambda exchange: HandshakeConnection(
            exchange,
            settings.server,
            agent_nodes=settings.agent_nodes,
            plc_nodes=settings.plc_nodes,
            every_s=settings.poll_ms / 1e3,
        ),
    )
