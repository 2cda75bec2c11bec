"""`agent doctor`: check this machine and a configuration before the line depends on them."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.doctor import Finding


def doctor(
    *,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    learn_triggers: Annotated[
        int | None,
        typer.Option(min=2, max=10_000, help="Measure the windows of triggers from this many."),
    ] = None,
    is_running: Annotated[
        bool, typer.Option("--running", help="The agent runs: leave its cameras alone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check Python, packages, configuration, bundle, calibration, camera, ledger and broker.

    Example: agent doctor --config agent.yaml

    One line for each, with what to do about it; the last line says whether the agent is ready. Exit
    code 1 if something would stop the line. With --learn-triggers 50, while the line runs and the
    agent does not, it measures min_ms and max_ms of each camera's trigger and part_ids instead, and
    writes them into the configuration.
    """
    from agent.doctor import examine
    from agent.learning import learn

    findings = []
    colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    found = (
        examine(config, is_running=is_running)
        if learn_triggers is None
        else learn(config, learn_triggers)
    )
    for finding in found:
        findings.append(finding)
        if not as_json:
            level = typer.style(f"{finding.level:<4}", fg=colours[finding.level])
            typer.echo(f"{level}  {finding.check:<13}  {finding.message}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    failed = any(finding.level == "fail" for finding in findings)
    if not as_json and learn_triggers is None:
        typer.echo(_verdict(findings, config))
    if failed:
        sys.exit(1)


def _verdict(findings: "Sequence[Finding]", config: Path) -> str:
    """What all findings together mean, in one line."""
    fail, warn = (sum(finding.level == level for finding in findings) for level in ("fail", "warn"))
    if fail:
        return f"not ready: fix {'the line' if fail == 1 else f'the {fail} lines'} marked fail"
    marked = f" (warnings: {warn})" if warn else ""
    return f"ready{marked}: agent run --config {config}"
