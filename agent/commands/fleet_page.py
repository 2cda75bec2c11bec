"""`agent fleet page` and `agent fleet users`: the page of a whole fleet, and who may see it."""

import json
import signal
import threading
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from engine.errors import ConfigurationError

Plan = Annotated[Path, typer.Option("--fleet", help="The lines, their brokers and their bucket.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
_PLAN: Final = Path("fleet.yaml")


def page(*, fleet: Plan = _PLAN, as_json: AsJson = False) -> None:
    """Serve the page of the fleet: all lines, the worst first, until it is stopped.

    Example: agent fleet page --fleet fleet.yaml
    """
    from agent.fleet.page.serving import served
    from agent.fleet.plan import load_plan

    plan = load_plan(fleet)
    if not plan.brokers:
        raise ConfigurationError("brokers", None, "is missing: nobody could say how lines are")
    if plan.bucket is not None:
        _require_extra()
    leaving = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leaving.set())
    try:
        with served(plan) as address:
            answer = {"address": address, "lines": len(plan.lines)}
            said = f"the page of {len(plan.lines)} lines is at {address}"
            typer.echo(json.dumps(answer, indent=2) if as_json else said)
            leaving.wait()
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigurationError("page.listen", plan.page.listen, f"{why}; name another") from None


def users(
    *,
    action: Annotated[
        Literal["add-user", "remove-user", "users"], typer.Argument(help="What to do.")
    ] = "users",
    name: Annotated[str, typer.Argument(help="The user.")] = "",
    fleet: Plan = _PLAN,
    as_json: AsJson = False,
) -> None:
    """Add or remove somebody who may see the page of the fleet, or print all.

    Example: agent fleet users add-user ada

    Asks for the password, or reads it from the first line of its input. The page may be running.
    """
    from agent.commands.page import change_users
    from agent.fleet.plan import load_plan
    from agent.services.page.access import USERS

    folder = load_plan(fleet).page.folder
    folder.mkdir(parents=True, exist_ok=True)
    command = f"agent fleet users {action}"
    change_users(folder / USERS, command, action, name, role="viewer", as_json=as_json)


def _require_extra() -> None:
    """Refuse a bucket where what reads it is not installed."""
    import importlib.util

    from engine.extras import install

    for name in ("boto3", "duckdb"):
        if importlib.util.find_spec(name) is None:
            remedy = f"needs {name}; install with: {install('shipper')}"
            raise ConfigurationError("bucket", None, remedy)
