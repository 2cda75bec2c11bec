"""What the lines of a fleet say of themselves: the health of their agents, on brokers of sites."""

import json
import queue
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from time import monotonic
from typing import Any

from agent.fleet.plan import FleetPlan
from agent.mqtt.link import Subscriber
from engine.errors import BrokerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One agent: what is in force, and what became of its desired state, where it has one."""

    agent: str
    time: str
    bundle_id: str | None
    is_degraded: bool
    state: str | None = None
    serial: int | None = None
    reason: str | None = None
    judged: int | None = None
    changed_verdicts: int | None = None
    max_false_reject: float | None = None

    @classmethod
    def of(cls, health: Mapping[str, Any]) -> "Report":
        """Of a health message; raises `KeyError` or `TypeError` for anything else."""
        fleet = health["fleet"] or {}
        promise = fleet.get("promise") or {}
        return cls(
            agent=str(health["agent"]),
            time=str(health["time"]),
            bundle_id=health["bundle_id"],
            is_degraded=bool(health["degraded"]),
            max_false_reject=promise.get("max_false_reject"),
            **{
                name: fleet.get(name)
                for name in ("state", "serial", "reason", "judged", "changed_verdicts")
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The newest reports by line, and the brokers that are away, each in one line."""

    reports: Mapping[str, Report]
    away: tuple[str, ...] = ()


def heard(plan: FleetPlan, lines: Collection[str], *, within_s: float) -> Heard:
    """What these lines say of themselves in this time; those whose broker is away are silent."""
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    found: dict[str, Report] = {}
    wanted, away = set(lines), []
    with ExitStack() as stack:
        for broker in plan.brokers:
            topic = broker.topics.format(agent="+", what="health")
            subscriber = Subscriber(broker, topic, lambda _, payload: messages.put(payload))
            try:
                stack.enter_context(subscriber)
            except BrokerError as error:
                away.append(str(error))
        until = monotonic() + within_s
        while wanted - found.keys() and (left_s := until - monotonic()) > 0:
            try:
                report = Report.of(json.loads(messages.get(timeout=left_s)))
            except (queue.Empty, ValueError, KeyError, TypeError, AttributeError):
                continue
            if report.agent in wanted:
                found[report.agent] = report
    return Heard(reports=found, away=tuple(away))
