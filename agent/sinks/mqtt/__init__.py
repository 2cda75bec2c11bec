"""The MQTT sink: alarms, verdicts and health for a broker, and the requests that it brings."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.sinks.mqtt.settings import MqttSettings

if TYPE_CHECKING:
    from agent.part import Part
    from agent.ports import Sink

__all__ = ["MqttSettings", "open"]


def open(settings: MqttSettings, *, agent_id: str, is_alarm: "Callable[[Part], bool]") -> "Sink":
    """See `agent.registry.open_sink`."""
    from agent.sinks.mqtt.sink import MqttSink  # noqa: PLC0415 - paho, only where it is used

    return MqttSink(settings, agent_id=agent_id, is_alarm=is_alarm)
