"""The `agent` command: one function per sub-command lives in `agent/commands/`."""

import importlib
import sys
from collections.abc import Callable
from typing import Final, NoReturn

import typer
import typer.exceptions

from engine.errors import AtacError, ConfigurationError

COMMANDS: Final = (
    "demo",
    "train",
    "evaluate",
    "export",
    "build",
    "calibrate",
    "run",
    "bench",
    "doctor",
    "replay",
    "sign",
    "verify",
)
"""Each names the module `agent.commands.<name>` and the function `<name>` in it."""


def main() -> None:
    """Run `agent`; exit code 0: done, 1: failed, 2: wrong arguments or configuration."""
    app = typer.Typer(
        help="Visual inspection on the edge: train, calibrate, run, and hear about defects.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    for name in COMMANDS:
        app.command(name)(_command(name))
    try:
        code = app(standalone_mode=False)
    except ConfigurationError as error:
        _fail(str(error), code=2)
    except AtacError as error:
        _fail(str(error), code=1)
    except typer.exceptions.TyperException as error:
        _fail(f"{error.format_message()} (agent --help lists commands and options)", code=2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", code=130)
    sys.exit(code if isinstance(code, int) else 0)


def _command(name: str) -> Callable[..., object]:
    function: Callable[..., object] = getattr(
        importlib.import_module(f"agent.commands.{name}"), name
    )
    return function


def _fail(message: str, *, code: int) -> NoReturn:
    sys.stderr.write(f"agent: {message}\n")
    sys.exit(code)
