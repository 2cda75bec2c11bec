"""The `agent` command: one function per sub-command lives in `agent/commands/`.

Imports nothing but Python's own before the child of `agent run` has been started.
"""

import importlib
import sys
from contextlib import nullcontext
from io import TextIOWrapper
from typing import Any, Final, NoReturn

from agent.inference.start import StartingChild
from engine.errors import (
    AtacError,
    BundleError,
    CalibrationError,
    ConfigurationError,
    NoBundleError,
)
from engine.privacy import keep_private

COMMANDS: Final = (
    "demo",
    "train",
    "retrain",
    "evaluate",
    "export",
    "build",
    "calibrate",
    "run",
    "bench",
    "cameras",
    "doctor",
    "page",
    "check",
    "report",
    "support",
    "replay",
    "compare",
    "promote",
    "rollback",
    "trigger",
    "product",
    "fleet",
    "sign",
    "verify",
)
"""Each names the module `agent.commands.<name>` and what is called `<name>` in it."""
_INTERRUPTED: Final = 130
"""The exit code of what Ctrl-C ended, 128 and the signal's number."""


def main() -> None:
    """Run `agent`; exit code 0: done, 1: failed, 2: wrong arguments or configuration."""
    keep_private()
    if isinstance(sys.stdout, TextIOWrapper):  # names of files need not be Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    inspects = sys.argv[1:2] == ["run"] and "--help" not in sys.argv
    try:
        with StartingChild() if inspects else nullcontext() as child:
            code = _invoke(child)
    except (ConfigurationError, NoBundleError) as error:
        _fail(str(error), code=2)
    except (BundleError, CalibrationError) as error:
        # A service that is started again finds the same bundle and the same calibration.
        _fail(str(error), code=2 if inspects else 1)
    except AtacError as error:
        _fail(str(error), code=1)
    except OSError as error:  # a disk or a device that failed where no command foresaw it
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail("stopped", code=_INTERRUPTED)
    sys.exit(code)


def _invoke(child: StartingChild | None) -> int:
    """Do as the command line says; commands find `child` in typer's context."""
    import typer
    import typer.exceptions

    app = typer.Typer(
        help="Visual inspection on the edge: train, calibrate, run, and hear about defects.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(lambda: None)  # one command alone would not be named on the command line
    asked = sys.argv[1:2]
    for name in asked if asked and asked[0] in COMMANDS else COMMANDS:
        found = _command(name)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False, obj=child)
    except typer.exceptions.TyperException as error:
        _fail(f"{error.format_message()} (agent --help lists commands and options)", code=2)
    except typer.Abort:
        _fail("stopped", code=_INTERRUPTED)
    if code == _INTERRUPTED:  # typer's answer to Ctrl-C
        _fail("stopped", code=_INTERRUPTED)
    return code if isinstance(code, int) else 0


def _command(name: str) -> Any:
    """The function of a command, or the `Typer` of one that has commands of its own."""
    return getattr(importlib.import_module(f"agent.commands.{name}"), name)


def _fail(message: str, *, code: int) -> NoReturn:
    logs = sys.modules.get("agent.logs")  # there once a command has set up its log
    if logs is None or not logs.tell_end(message):
        sys.stderr.write(f"agent: {message}\n")
    sys.exit(code)
