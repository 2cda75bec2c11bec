"""`agent product`: what the line makes now, and a switch to another product."""

import json
from pathlib import Path
from typing import Annotated

import typer


def product(
    *,
    name: Annotated[
        str | None, typer.Argument(help="The product to switch to; without it: say which.")
    ] = None,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    by: Annotated[str, typer.Option(help="Who asks; default: this user.")] = "",
    why: Annotated[str, typer.Option(help="The reason; kept with the change.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Say which product the running line makes, or take the next parts for another one.

    Example: agent product lemon --config agent.yaml

    Parts that have begun stay what they are. The running agent gets the request over MQTT 5; its
    mqtt.commands must list product and switch_product.
    """
    from agent.commands.bundles import user
    from agent.settings import load_config
    from agent.sinks.mqtt.requests import ask
    from agent.sinks.mqtt.settings import MqttSettings
    from engine.errors import ConfigurationError

    settings = load_config(config)
    known = [one.name for one in settings.products]
    if name is not None and name not in known:
        remedy = f"write {' or '.join(known)}" if known else "the configuration has no products"
        raise ConfigurationError("product", name, remedy)
    broker = next((sink for sink in settings.sinks if isinstance(sink, MqttSettings)), None)
    if broker is None:
        raise ConfigurationError("sinks", None, "names no broker, so the agent cannot be asked")
    agent = settings.agent.id
    if name is None:
        told = ask(broker, agent, "product")
    else:
        told = ask(broker, agent, "switch_product", product=name, by=user(by), why=why)
    typer.echo(json.dumps(told, indent=2) if as_json else f"{agent}: makes {told['product']}")
