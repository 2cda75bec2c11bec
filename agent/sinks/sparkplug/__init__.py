"""The Sparkplug B sink: the agent as an edge node, its cameras as devices."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.sinks.sparkplug.settings import SparkplugSettings

if TYPE_CHECKING:
    from agent.part import Part
    from agent.ports import Sink

__all__ = ["SparkplugSettings", "open"]


def open(
    settings: SparkplugSettings, *, agent_id: str, is_alarm: "Callable[[Part], bool]"
) -> "Sink":
    """See `agent.registry.open_sink`."""
    from agent.sinks.sparkplug.sink import SparkplugSink  # noqa: PLC0415 - paho, only when used

    return SparkplugSink(settings, agent_id=agent_id, is_alarm=is_alarm)
