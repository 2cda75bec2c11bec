"""What a broker allows of an edge node, before the line needs it."""

from agent.mqtt.link import Link, address
from agent.mqtt.security import check_settings
from agent.sinks.sparkplug.settings import SparkplugSettings


def probe(settings: SparkplugSettings, agent_id: str) -> str:
    """Connect under another name and subscribe to the node's commands; says what was there.

    Raises `ConfigurationError` for settings that cannot work, and `BrokerError` where the broker is
    away or refuses. What is published at QoS 0 no broker answers, so rights to write are not seen.
    """
    check_settings(settings)
    node = f"{settings.group}/NCMD/{settings.node or agent_id}"
    with Link(settings, f"atac-{agent_id}-sparkplug-probe") as link:
        link.subscribe(f"spBv1.0/{node}")
    return f"{address(settings)} answers MQTT {settings.version}, and commands can be read"
