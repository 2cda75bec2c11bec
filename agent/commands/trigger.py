"""`agent trigger`: announce a part to the running agent."""

import json
from pathlib import Path
from typing import Annotated

import typer


def trigger(
    *,
    part_id: Annotated[str | None, typer.Argument(help="The part's id.")] = None,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    camera: Annotated[str | None, typer.Option(help="The camera; default: the only one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Announce a part at a camera whose trigger is `software`, as a light barrier would.

    Example: agent trigger --config agent.yaml A-1204

    The running agent gets the request over MQTT 5; its mqtt.commands must list trigger.
    """
    from agent.settings import load_config
    from agent.sinks.mqtt.requests import ask
    from agent.sinks.mqtt.settings import MqttSettings
    from engine.errors import ConfigurationError

    settings = load_config(config)
    broker = next((sink for sink in settings.sinks if isinstance(sink, MqttSettings)), None)
    if broker is None:
        raise ConfigurationError("sinks", None, "names no broker, so the agent cannot be asked")
    agent = settings.agent.id
    told = ask(broker, agent, "trigger", camera=camera, part_id=part_id)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        named = "" if part_id is None else f" {part_id}"
        typer.echo(f"{agent}: part{named} at camera {told['camera']}")
