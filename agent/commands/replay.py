"""`agent replay`: have the messages of a range of parts sent once more."""

import json
from pathlib import Path
from typing import Annotated

import typer


def replay(
    *,
    first: Annotated[int, typer.Argument(min=1, help="First sequence number.")],
    last: Annotated[int, typer.Argument(min=1, help="Last sequence number, inclusive.")],
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    epoch: Annotated[
        str | None, typer.Option(help="Epoch of these numbers; default: the latest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Send the alarms of a range of parts again, to fill a consumer's gap.

    Example: agent replay --config agent.yaml 1204 1260

    Each message is marked as resent. A stopped agent sends them when it starts; a running one gets
    the request over MQTT 5.
    """
    from agent.record.replay import requeue_in_file
    from agent.settings import load_config
    from agent.sinks.mqtt.requests import ask
    from agent.sinks.mqtt.settings import MqttSettings
    from engine.errors import ConfigurationError

    settings = load_config(config)
    if last < first:
        raise ConfigurationError("LAST", last, f"is before FIRST, {first}; swap them")
    agent = settings.agent.id
    names = [sink.name for sink in settings.sinks]
    messages = requeue_in_file(settings.ledger.path, agent, names, (first, last), epoch)
    is_running = messages is None
    if messages is None:
        brokers = [sink for sink in settings.sinks if isinstance(sink, MqttSettings)]
        if not brokers:
            remedy = "names no broker, so a running agent cannot be asked; stop it first"
            raise ConfigurationError("sinks", None, remedy)
        asked = (ask(one, agent, "replay", first=first, last=last, epoch=epoch) for one in brokers)
        messages = sum(int(str(told["messages"])) for told in asked)
    if as_json:
        typer.echo(json.dumps({"messages": messages, "running": is_running}, indent=2))
    else:
        when = "is sending" if is_running else "will send, when it starts,"
        typer.echo(f"{agent} {when} {messages} messages again")
