"""What the lines of a fleet say of themselves: retained messages of agents, on brokers of sites."""

import json
import queue
import random
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Final

from agent.fleet.desired import LINE
from agent.fleet.plan import FleetPlan, SiteBroker
from agent.mqtt.link import Heard as Message
from agent.mqtt.link import Link
from engine.errors import BrokerError

_QUIET_S: Final = 1.0
"""A broker that has said nothing for so long has said all that it keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One agent: what is in force, and what became of its desired state, where it has one.

    On a line with `products` each of them has a report of its own, by place.
    """

    agent: str
    is_online: bool = True
    time: str | None = None
    bundle_id: str | None = None
    state: str | None = None
    serial: int | None = None
    reason: str | None = None
    judged: int | None = None
    changed_verdicts: int | None = None
    max_false_reject: float | None = None
    products: Mapping[str, "Report"] = field(default_factory=dict)

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "Report":
        """Of a message about the fleet; raises `KeyError` or `TypeError` for anything else."""
        fleet = message["fleet"] or {}
        agent, time, in_force = (
            str(message["agent"]),
            str(message["time"]),
            message.get("bundles") or {},
        )
        told = fleet.get("products") or {}
        return cls(
            agent=agent,
            time=time,
            bundle_id=message["bundle_id"],
            **_said(fleet),
            products={
                str(place): cls(
                    agent=agent, time=time, bundle_id=in_force.get(place), **_said(told.get(place))
                )
                for place in {**in_force, **told}
            },
        )

    def at(self, place: str) -> "Report | None":
        """What the line says of a product, or of its one bundle."""
        if place == LINE:
            return self
        found = self.products.get(place)
        return None if found is None else replace(found, is_online=self.is_online)

    def has_in_force(self, bundle_id: str) -> bool:
        """Whether this bundle inspects, and is through its trial."""
        return (self.state, self.bundle_id) == ("in force", bundle_id)


def _said(desired: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a message says of one desired bundle, as a report has it."""
    known = desired or {}
    names = ("state", "serial", "reason", "judged", "changed_verdicts")
    promise = known.get("promise") or {}
    return {
        **{name: known.get(name) for name in names},
        "max_false_reject": promise.get("max_false_reject"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The newest reports by line, and the brokers that are away, each in one line."""

    reports: Mapping[str, Report]
    away: tuple[str, ...] = ()


def heard(plan: FleetPlan, lines: Collection[str], *, within_s: float) -> Heard:
    """What brokers know of these lines, as soon as they have said it and at most in this time."""
    messages: queue.SimpleQueue[tuple[str, str, bytes]] = queue.SimpleQueue()
    reports: dict[str, Report] = {}
    states: dict[str, bool] = {}
    wanted, away = set(lines), []
    with ExitStack() as stack:
        for broker in plan.brokers:
            try:
                stack.enter_context(_listening(broker, messages))
            except BrokerError as error:
                away.append(str(error))
        until = monotonic() + within_s
        while (left_s := until - monotonic()) > 0 and wanted - (states.keys() & reports.keys()):
            is_rest = states.keys() >= wanted  # of lines that follow no desired state
            try:
                wait_s = min(left_s, _QUIET_S) if is_rest else left_s
                agent, what, payload = messages.get(timeout=wait_s)
                if agent in wanted and what == "state":
                    states[agent] = payload != b"offline"
                elif agent in wanted:
                    reports[agent] = Report.of(json.loads(payload))
            except queue.Empty:
                break
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
    return Heard(
        reports={
            line: replace(reports.get(line, Report(agent=line)), is_online=states.get(line, True))
            for line in states.keys() | reports.keys()
        },
        away=tuple(away),
    )


@contextmanager
def _listening(
    broker: SiteBroker, messages: queue.SimpleQueue[tuple[str, str, bytes]]
) -> Iterator[None]:
    """While this lasts, agent, kind and payload of what the lines of a broker say are queued."""
    pattern = pattern_of(broker.topics)

    def hear(message: Message) -> None:
        if (found := pattern.fullmatch(message.topic)) is not None:
            messages.put((found["agent"], found["what"], message.payload))

    with Link(broker, f"atac-fleet-{random.randrange(1 << 32):08x}", hear=hear) as link:
        for what in ("fleet", "state"):
            link.subscribe(broker.topics.format(agent="+", what=what))
        yield


def pattern_of(template: str) -> re.Pattern[str]:
    """Finds agent and kind of message in a topic made by this template."""
    text = re.escape(template)
    for name in ("agent", "what"):
        text = text.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>[^/]+)")
    return re.compile(text)
