"""What a broker allows of what the agent will do there, before the line needs it."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from agent.mqtt.link import FAILURE, Acknowledged, Link, RetainError, address
from agent.mqtt.message import Message
from agent.mqtt.security import check_settings
from agent.sinks.mqtt.messages import Topics, What, state
from agent.sinks.mqtt.settings import MqttSettings
from engine.errors import BrokerError

_RIGHTS: Final = "check the broker's access rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """The answer in one line; `refused` and `missing` say what cannot work and what is left out."""

    answer: str
    refused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def probe(settings: MqttSettings, agent_id: str, *, has_fleet: bool = False) -> Probed:
    """Do what the agent will do, with clients of another name and on topics where nobody listens.

    Raises `ConfigurationError` for settings that cannot work, and `BrokerError` where the broker is
    away or refuses the connection.
    """
    check_settings(settings)
    topics = Topics(agent_id=agent_id, template=settings.topics)
    missing = []
    with ExitStack() as both:
        link = _connected(both, settings, topics)
        if not link.keeps_retained:
            missing.append("keeps no retained messages: who connects later is not told of `state`")
        refused = list(_unwritable(link, settings, topics, has_fleet=has_fleet))
        if settings.commands and settings.version == "5":
            missing += _requests(both, settings, topics)
        # A second connection may have cost the first, where each user has but one.
        _published(link, f"{topics.of('response')}/doctor")
    security = "with TLS" if settings.tls else "without TLS"
    name = f"as {settings.user}" if settings.user else "without a user name"
    return Probed(
        answer=f"{address(settings)} answers MQTT {settings.version}, {security}, {name}",
        refused=tuple(refused),
        missing=tuple(missing),
    )


def _connected(both: ExitStack, settings: MqttSettings, topics: Topics) -> Link:
    """A connection with the agent's will, kept where the broker keeps anything."""
    name, will = f"atac-{topics.agent_id}-probe", state(topics, online=False)
    with Link(settings, name):
        pass  # without a will more brokers say what they have against us
    try:
        return both.enter_context(Link(settings, name, will=will))
    except RetainError:
        link = Link(settings, name, will=replace(will, retain=False))
        both.enter_context(link)
        link.keeps_retained = False
        return link


def _unwritable(
    link: Link, settings: MqttSettings, topics: Topics, *, has_fleet: bool
) -> Iterator[str]:
    if settings.version != "5" or settings.qos == 0:
        return  # the broker says nothing of what it is sent
    wanted: list[What] = ["state", "health", "alarm", "thumbnail"]
    wanted += ["verdict"] if settings.every_part else []
    wanted += ["fleet"] if has_fleet else []
    for what in wanted:
        topic = topics.of(what)
        if _published(link, f"{topic}/doctor") is None:
            continue
        if (reason := link.may_write(topic)) is not None:
            yield f"refuses what the agent writes on {topic} ({reason}); {_RIGHTS}"


def _requests(both: ExitStack, settings: MqttSettings, topics: Topics) -> Iterator[str]:
    link = both.enter_context(Link(settings, f"atac-{topics.agent_id}-probe-requests"))
    topic = topics.of("request")
    try:
        link.subscribe(topic, takes_retained=False)
    except BrokerError as error:
        yield f"no requests are taken: {error}; {_RIGHTS}, or set mqtt.commands: []"
        return
    answer = f"{topics.of('response')}/doctor"
    if (reason := _published(link, answer)) is not None:
        yield f"requests are not answered: refuses {answer} ({reason}); {_RIGHTS}"


def _published(link: Link, topic: str) -> str | None:
    """Publish a test as the agent does; the reason of a refusal."""
    mid = link.publish(Message(topic=topic, payload=b"test", content_type="text/plain"))
    while True:
        events = link.acknowledged(10.0)
        if not events:
            raise BrokerError(f"{topic}: the broker acknowledges nothing")
        for event in events:
            if not isinstance(event, Acknowledged):
                raise link.error(event)
            if event.mid == mid:
                return event.reason if event.code >= FAILURE else None
