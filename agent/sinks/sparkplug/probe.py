"""What a broker allows of an edge node, before the line needs it."""

import json
import queue
from dataclasses import replace
from typing import Final

from agent.mqtt.link import Heard, Link, address
from agent.mqtt.security import check_settings
from agent.sinks.sparkplug.settings import SparkplugSettings
from agent.sinks.sparkplug.sink import as_level
from engine.errors import BrokerError

_HOST_S: Final = 2.0
_RIGHTS: Final = "check the broker's access rules"


def probe(settings: SparkplugSettings, agent_id: str, cameras: list[str]) -> tuple[str, list[str]]:
    """Do what the node will do, under another name; says what was there, and what is missing.

    What is published at QoS 0 no broker answers. So whether the node may write is asked with
    MQTT 5, where the broker speaks it, and nobody hears it.

    Raises `ConfigurationError` for settings that cannot work, and `BrokerError` where the broker is
    away or refuses.
    """
    check_settings(settings)
    name, node = f"atac-{agent_id}-sparkplug-probe", settings.node or agent_id
    place, missing = f"spBv1.0/{settings.group}", []
    heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
    with Link(settings, name, hear=heard.put) as link:
        link.subscribe(f"{place}/NCMD/{node}")
        link.subscribe(f"{place}/DCMD/{node}/+")
        if settings.primary_host is not None:
            link.subscribe(f"spBv1.0/STATE/{settings.primary_host}")
            if not _is_online(heard):
                missing.append(
                    f"the primary host {settings.primary_host} is not online: parts wait"
                )
    said = (
        f"{address(settings)} answers MQTT {settings.version}; {place}/…/{node} may read commands"
    )
    topics = [f"{place}/{kind}/{node}" for kind in ("NBIRTH", "NDATA", "NDEATH")]
    devices = [f"{node}/{as_level(camera)}" for camera in cameras]
    topics += [f"{place}/{k}/{each}" for each in devices for k in ("DBIRTH", "DDATA", "DDEATH")]
    try:
        with Link(replace(settings, version="5"), name) as link:
            refused = [topic for topic in topics if link.may_write(topic) is not None]
    except BrokerError:
        missing.append("whether the node may write is not known, as the broker speaks no MQTT 5")
        return said, missing
    if refused:
        raise BrokerError(f"{address(settings)}: refuses {', '.join(refused)}; {_RIGHTS}")
    return f"{said} and write", missing


def _is_online(heard: "queue.SimpleQueue[Heard]") -> bool:
    try:
        said = json.loads(heard.get(timeout=_HOST_S).payload)
    except (queue.Empty, ValueError):
        return False
    return isinstance(said, dict) and said.get("online") is True
