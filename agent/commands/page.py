"""`agent page`: who may log in to the operator's page."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from agent.services.page.settings import PageSettings


def page(
    *,
    action: Annotated[
        Literal["add-user", "remove-user", "users"], typer.Argument(help="What to do.")
    ],
    name: Annotated[str, typer.Argument(help="The user.")] = "",
    role: Annotated[
        Literal["viewer", "operator", "engineer", "admin"],
        typer.Option(help="What the user may do."),
    ] = "operator",
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print all users as JSON.")] = False,
) -> None:
    """Add a user of the operator's page, give one another password or role, or remove one.

    Example: agent page add-user ada --role engineer

    Asks for the password, or reads it from the first line of its input. The agent may be running.
    A viewer looks, an operator labels parts, an engineer changes threshold and bundle, an
    administrator manages users.
    """
    from agent.services.page.access import USERS
    from agent.settings import load_config

    settings = load_config(config)
    users = _page(settings.services, config).place(settings.ledger.path) / USERS
    change_users(users, f"agent page {action}", action, name, role=role, as_json=as_json)


def change_users(
    users: Path, command: str, action: str, name: str, *, role: str, as_json: bool
) -> None:
    """Add or remove a user of a page, or print all.

    Args:
        users: The file with them.
        command: What was called, for errors.
        action: `add-user`, `remove-user` or `users`.
        name: The user.
        role: Of a new one.
        as_json: Print all as JSON.

    Raises:
        ConfigurationError: The name or the password cannot be used.
    """
    from agent.services.page.access import Access, Role

    with Access(users, idle_s=0) as access:
        said = ""
        if action == "users":
            said = "\n".join(f"{known}  {theirs.name.lower()}" for known, theirs in access.users())
        elif not name:
            raise ConfigurationError(command, None, "name the user")
        elif action == "remove-user":
            if not access.remove_user(name):
                raise ConfigurationError(command, name, "there is no such user")
            said = f"{name} is removed, and logged out"
        else:
            try:
                access.add_user(name, _password(), Role[role.upper()])
            except ValueError as error:
                raise ConfigurationError(command, name, str(error)) from None
            said = f"{name} may log in as {role}"
        found = {known: theirs.name.lower() for known, theirs in access.users()}
    if as_json or said:
        typer.echo(json.dumps({"users": found}, indent=2) if as_json else said)


def _page(services: tuple[object, ...], config: Path) -> "PageSettings":
    from agent.services.page.settings import PageSettings

    found = [one for one in services if isinstance(one, PageSettings)]
    if not found:
        raise ConfigurationError("page", None, f"is missing in {config}; write page: {{}}")
    return found[0]


def _password() -> str:
    if sys.stdin.isatty():
        typed: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return typed
    return sys.stdin.readline().rstrip("\n")
