"""The MQTT sink: alarms, verdicts and health for a broker, and the requests that it brings."""

from agent.sinks.mqtt.settings import MqttSettings

__all__ = ["MqttSettings"]
