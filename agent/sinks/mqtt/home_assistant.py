"""What Home Assistant is told so that it finds the agent by itself: one retained message.

Its entities read the messages that are sent anyway: `health`, `state` and `thumbnail`. The form is
that of Home Assistant's device discovery, from version 2024.11 on.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final

from agent.mqtt.message import Message
from agent.part import State
from agent.record.rows import software
from agent.sinks.mqtt.messages import Topics

_PREFIX: Final = "homeassistant"
_NOT_INSPECTED: Final = tuple(state for state in State if state not in {State.OK, State.NG})


def discovery(topics: Topics) -> Message:
    """The agent as a device with its entities."""
    node = _node(topics.agent_id)
    name, _, version = software().partition(" ")
    content = {
        "device": {
            "identifiers": [node],
            "name": topics.agent_id,
            "model": "Visual inspection",
            "sw_version": version,
        },
        "origin": {"name": name, "sw_version": version},
        "availability": [{"topic": topics.of("state")}],
        "components": {
            f"{node}_{key}": {"unique_id": f"{node}_{key}", **entity, **_source(entity, topics)}
            for key, entity in _entities().items()
        },
    }
    return Message(
        topic=f"{_PREFIX}/device/{node}/config",
        payload=json.dumps(content, ensure_ascii=False).encode(errors="replace"),
        retain=True,
    )


def _source(entity: Mapping[str, object], topics: Topics) -> dict[str, str]:
    """Where it comes from."""
    if entity["platform"] == "image":
        return {"image_topic": topics.of("thumbnail")}
    return {"state_topic": topics.of("health")}


def _entities() -> dict[str, dict[str, object]]:
    others = " + ".join(f"value_json.counts.{state}" for state in _NOT_INSPECTED)
    counted: dict[str, object] = {"state_class": "total_increasing"}
    return {
        "fault": {
            "platform": "binary_sensor",
            "name": "Fault",
            "device_class": "problem",
            "value_template": "{{ 'ON' if value_json.degraded else 'OFF' }}",
        },
        "reasons": _sensor("Reasons", "value_json.reasons | join('; ') | truncate(250)"),
        "rate": _sensor("Parts per second", "value_json.parts_per_second")
        | {"state_class": "measurement"},
        "ok": _sensor("OK", "value_json.counts.OK") | counted,
        "ng": _sensor("NG", "value_json.counts.NG") | counted,
        "not_inspected": _sensor("Not inspected", others) | counted,
        "p99": _sensor("Latency, 99th percentile", "value_json.latency_ms.p99")
        | {"unit_of_measurement": "ms", "state_class": "measurement"},
        "waiting": _sensor("Messages that wait", "value_json.outbox.waiting")
        | {"state_class": "measurement"},
        "last_alarm": {
            "platform": "image",
            "name": "Last alarm",
            "content_type": "image/jpeg",
        },
    }


def _sensor(name: str, value: str) -> dict[str, object]:
    return {"platform": "sensor", "name": name, "value_template": f"{{{{ {value} }}}}"}


def _node(agent_id: str) -> str:
    """The id as Home Assistant takes one, still different from that of any other agent."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", agent_id)
    if plain != agent_id:
        plain += f"_{hashlib.sha256(agent_id.encode(errors='replace')).hexdigest()[:8]}"
    return f"atac_{plain}"
