"""`agent report`: a shift, a day or a week as a page that can be printed, and as CSV."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.errors import AtacError, ConfigurationError

if TYPE_CHECKING:
    from agent.production import Source
    from agent.settings import Config


def report(
    *,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    begin: Annotated[
        str | None,
        typer.Option("--from", help="Day, or day and time, as 2026-11-27 06:00; default: today."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="The same; a day alone is included; default: now.")
    ] = None,
    html: Annotated[Path, typer.Option(help="The page.")] = Path("runs/report.html"),
    table: Annotated[
        Path | None, typer.Option("--csv", help="A file of counts by hour, camera and state.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Report what was made and rejected, where, the worst parts, golden samples and changes.

    Example: agent report --from 2026-11-23 --to 2026-11-27 --html week.html --csv week.csv

    Times are this machine's. While the agent runs, the figures are those of its page.
    """
    from agent.golden import protocols
    from agent.production import as_csv, as_html, gather, moment_ns
    from engine.bundle import replace_file

    now_ns = time.time_ns()
    midnight = f"{time.strftime('%Y-%m-%d')}"
    try:
        from_ns = moment_ns(begin or midnight)
    except ValueError:
        raise ConfigurationError("--from", begin, "write a day, as 2026-11-27") from None
    try:
        to_ns = now_ns if end is None else moment_ns(end, is_end=True)
    except ValueError:
        raise ConfigurationError("--to", end, "write a day, as 2026-11-27") from None
    if to_ns <= from_ns:
        raise ConfigurationError("--to", end, "is not after --from")
    from agent.settings import load_config

    settings = load_config(config)
    with ExitStack() as stack:
        found = gather(
            _source(settings, stack),
            protocols(settings.check.folder),
            agent_id=settings.agent.id,
            from_ns=from_ns,
            to_ns=to_ns,
        )
    for path, data in ((html, as_html(found)), (table, as_csv(found).encode())):
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, data)
            except OSError as error:
                option = "--html" if path is html else "--csv"
                remedy = f"cannot be written ({error.strerror})"
                raise ConfigurationError(option, str(path), remedy) from error
    if as_json:
        answer = {
            "parts": found.total(),
            "yield": found.part_yield(),
            "cameras": {
                camera: {state.value: n for state, n in found.counts(camera).items()}
                for camera in found.cameras
            },
            "ng_said": dict(found.said),
            "changes": len(found.changes),
            "checks": len(found.checks),
            "html": str(html),
        }
        typer.echo(json.dumps(answer, indent=2))
    else:
        share = found.part_yield()
        good = "" if share is None else f", yield {100 * share:.2f} %"
        typer.echo(f"{found.total()} parts from {found.span}{good}\nPage: {html}")


def _source(settings: "Config", stack: ExitStack) -> "Source":
    """The ledger, or the page's history while an agent has the ledger."""
    from agent.production_sources import LedgerSource
    from agent.record.stopped import stopped_ledger

    if not settings.ledger.path.is_file():
        raise ConfigurationError("ledger.path", str(settings.ledger.path), "there is no ledger yet")
    ledger = stack.enter_context(stopped_ledger(settings.ledger.path, settings.agent.id))
    if ledger is not None:
        return LedgerSource(ledger.connection, settings)
    from agent.services.page.figures import HistoryFile, HistorySource
    from agent.services.page.opening import HISTORY
    from agent.services.page.settings import PageSettings

    for service in settings.services:
        if isinstance(service, PageSettings):
            history = service.place(settings.ledger.path) / HISTORY
            if history.is_file():
                typer.echo("the agent runs: figures of its page, without changes", err=True)
                return HistorySource(stack.enter_context(HistoryFile(history)), None)
    raise AtacError("the agent runs and has no page that could tell; stop it first")
