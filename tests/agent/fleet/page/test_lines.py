"""What the page knows of a line that has gone."""

from dataclasses import replace

from agent.clock import ManualClock
from agent.fleet.page.lines import Condition, Lines
from agent.sinks.mqtt.messages import Topics, fleet, health, state
from agent.station.status import FleetStatus, SinkStatus
from tests.agent.statuses import status


def test_an_offline_line_is_shown_with_what_its_broker_keeps():
    lines, topics = Lines(["line-1"], ManualClock()), Topics(agent_id="line-1")
    trial = FleetStatus(state="on trial", serial=7, bundle="b" * 64)
    sinks = {"mqtt": SinkStatus(is_connected=True)}
    now = status(agent_id="line-1", bundle_id="a" * 64, sinks=sinks, fleet=trial)
    after = replace(now, bundle_id="b" * 64, fleet=replace(trial, state="in force"))
    said = [
        ("state", state(topics, online=True)),
        ("health", health(topics, "mqtt", now)),
        ("fleet", fleet(topics, after)),
        ("fleet", replace(fleet(topics, after), payload=b"no JSON")),
    ]
    for what, message in said:
        lines.hear("hall 1", "line-1", what, message.payload)
    (line,) = lines.all()
    assert (line.state, line.bundle, line.parts_per_minute) == ("in force", "b" * 64, 0.0)
    lines.hear("hall 1", "line-1", "state", b"offline")
    (line,) = lines.all()
    assert (line.condition, line.state, line.serial) == (Condition.SILENT, "in force", 7)
    assert line.parts_per_minute is None
