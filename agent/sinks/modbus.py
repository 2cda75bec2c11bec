"""The handshake with a PLC over Modbus TCP; see docs/plc.md."""

import ipaddress
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from agent.clock import SystemClock
from agent.settings_values import HostName, Milliseconds, Name, Port, Text
from agent.sinks.settings import AnySinkSettings
from engine.spec import spec

if TYPE_CHECKING:
    from agent.part import Part
    from agent.plc.exchange import Exchange
    from agent.ports import Sink

_SERVED_AT = 1502
_CLIENT_OF = 502
_LAST = 65_535 - 32


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("write an IP address or a network, such as 192.168.0.10") from None
    return text


Register = Annotated[int, Field(ge=0, le=_LAST)]


@spec
class ModbusSettings(AnySinkSettings):
    """One PLC and how to talk to it.

    With `allow` the agent is the server, and a PLC at one of these addresses reads and writes;
    it listens at `listen`, port 1502. With `host` the PLC is the server, at port 502, and the agent
    reads and writes its registers every `poll_ms`. The agent's block begins at register `agent_at`,
    the PLC's at `plc_at`. A result that is not there `due_ms` after its trigger is NG and late.
    """

    type: Literal["modbus"] = "modbus"
    name: Name = "plc"
    allow: tuple[Annotated[Text, AfterValidator(_network)], ...] = ()
    listen: HostName = "0.0.0.0"  # noqa: S104 - only what `allow` names is answered
    host: HostName | None = None
    port: Port | None = None
    unit: Annotated[int, Field(ge=0, le=255)] = 1
    agent_at: Register = 0
    plc_at: Register = 100
    poll_ms: Annotated[Milliseconds, Field(ge=2, le=1000)] = 10.0
    due_ms: Milliseconds | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where the agent listens, or the PLC does."""
        if self.host is None:
            return self.listen, self.port or _SERVED_AT
        return self.host, self.port or _CLIENT_OF

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "ModbusSettings":
        if bool(self.allow) == (self.host is not None):
            raise ValueError("write either allow, the PLC that may connect, or host, the PLC")
        if self.agent_at < self.plc_at + 20 and self.plc_at < self.agent_at + 32:
            raise ValueError("the blocks at agent_at (32 registers) and plc_at (20) overlap")
        return self


def open(settings: ModbusSettings, *, agent_id: str, is_alarm: "Callable[[Part], bool]") -> "Sink":
    """See `agent.registry.open_sink`."""
    from agent.plc.client import ModbusClient  # noqa: PLC0415 - no sockets for settings
    from agent.plc.exchange import Exchange  # noqa: PLC0415
    from agent.plc.server import ModbusServer  # noqa: PLC0415
    from agent.plc.sink import PlcSink  # noqa: PLC0415

    del agent_id, is_alarm  # a PLC knows its agent, and gets every result
    places = {"agent_at": settings.agent_at, "plc_at": settings.plc_at}

    def connection(exchange: "Exchange") -> AbstractContextManager[object]:
        if settings.host is None:
            listen = settings.address
            return ModbusServer(exchange, listen=listen, allowed=settings.allow, **places)
        host, port = settings.address
        return ModbusClient(
            exchange,
            host=host,
            port=port,
            unit=settings.unit,
            every_s=settings.poll_ms / 1e3,
            **places,
        )

    due_s = None if settings.due_ms is None else settings.due_ms / 1e3
    return PlcSink(settings.name, Exchange(due_s=due_s, clock=SystemClock()), connection)
