"""`agent doctor`: check this machine and a configuration before the line depends on them."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def doctor(
    *,
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("agent.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check Python, packages, configuration, bundle, calibration, camera, ledger and broker.

    Example: agent doctor --config agent.yaml

    One line each, with what to do about it. Exit code 1 when anything would stop the line.
    """
    from agent.doctor import examine

    findings = []
    colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    for finding in examine(config):
        findings.append(finding)
        if not as_json:
            level = typer.style(f"{finding.level:<4}", fg=colours[finding.level])
            typer.echo(f"{level}  {finding.check:<13}  {finding.message}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.level == "fail" for finding in findings):
        sys.exit(1)
